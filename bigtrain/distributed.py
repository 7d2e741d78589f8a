"""Ranks: who this process is among the others, what they say to each other, and their random numbers.

Two process groups. The default one (NCCL on GPUs, gloo on CPUs) carries tensors and gives up after `timeout_s`. The
*control* group is gloo on the host, with a very long timeout: flags and small objects, without a device
synchronisation, and the others can wait there for hours while rank 0 prepares the data.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from bigtrain.errors import UserError
from bigtrain.placement import Placement, read_environment

T = TypeVar("T")
CONTROL_TIMEOUT = timedelta(days=7)
_control: dist.ProcessGroup | None = None
_hosts: dist.ProcessGroup | None = None
"""gloo with `timeout_s`; null: the default group is that already."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the others, and the device that it computes on."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    replicas: int = 1
    """Neighbouring ranks that get the same samples (sequence and tensor parallel)."""

    @property
    def data_rank(self) -> int:
        """Which samples this rank gets: its index among the `data_ranks`."""
        return self.rank // self.replicas

    @property
    def data_ranks(self) -> int:
        """Into how many parts the samples of a step are divided."""
        return self.world_size // self.replicas

    @property
    def first(self) -> bool:
        """Is this rank 0, the one that speaks and writes what is written once?"""
        return self.rank == 0


def setup(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_s: float = 1800.0) -> Ranks:
    """Find out who this process is, choose its device and join the others (a single process is a group too).

    Raises:
        UserError: incoherent variables of the launcher; a GPU asked for where there is none; more ranks than GPUs.
    """
    global _control, _hosts
    place = read_environment(dict(os.environ))
    chosen = _choose_device(device, place)
    # DeepSpeed and others read these, whichever launcher did or did not set them.
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(chosen.index or 0 if chosen.type == "cuda" else place.local_rank),
        LOCAL_WORLD_SIZE=str(place.local_world_size),
        DS_ACCELERATOR=chosen.type,  # transformers may import it too, and it would tell what it chose
    )
    if place.world_size == place.local_world_size and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo need not look up this machine's own name
    if not dist.is_initialized():
        on_gpu = chosen.type == "cuda"
        several = place.world_size > 1
        store = None
        if several:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.master_addr, str(place.master_port)
        else:
            store = HashStore()  # no port: nothing that another process could have taken
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=chosen if on_gpu and several else None,
        )
    _control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    if chosen.type == "cuda":
        _hosts = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return Ranks(place.rank, place.world_size, place.local_rank, place.local_world_size, chosen)


def teardown() -> None:
    """Leave the groups; safe to call twice."""
    global _control, _hosts
    _control = _hosts = None
    if dist.is_initialized():
        dist.destroy_process_group()


def _choose_device(wanted: str, place: Placement) -> torch.device:
    gpus = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UserError(
            "trainer.device=cuda, but this machine has 0 usable GPUs. Use trainer.device=auto (or cpu), or check the "
            "driver and CUDA_VISIBLE_DEVICES; `bigtrain doctor` shows what torch sees."
        )
    if place.own_gpu and gpus == 1:  # the scheduler shows each task its own GPU only
        index = 0
    elif max(place.local_world_size, place.local_rank + 1) > gpus:
        ranks = max(place.local_world_size, place.local_rank + 1)
        raise UserError(
            f"{ranks} ranks on this machine, but it has {gpus} usable GPU{'s' * (gpus != 1)}. "
            f"Use launcher.processes={gpus}, or trainer.device=cpu."
        )
    else:
        index = place.local_rank
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


# ---------------------------------------------------------------------------------------------- tensors over ranks


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place; the tensor is on the ranks' device."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise maximum over the ranks, in place; the tensor is on the ranks' device."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


# ------------------------------------------------------------------------------------- objects and flags, on the host


def _alone() -> bool:
    return _control is None or dist.get_world_size(_control) == 1


def barrier() -> None:
    """Wait for all ranks, for as long as it takes."""
    if not _alone():
        dist.barrier(group=_control)


def broadcast_object(value: T | None = None) -> T:
    """Rank 0's `value`, on every rank. Pickled by torch, between the processes of one job only."""
    box: list[Any] = [value]
    if not _alone():
        dist.broadcast_object_list(box, src=0, group=_control, device=torch.device("cpu"))
    result: T = box[0]
    return result


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, in the order of the ranks, on every rank (checkpoints: tables of slices, faults)."""
    if _alone():
        return [value]
    box: list[Any] = [None] * dist.get_world_size(_control)
    dist.all_gather_object(box, value, group=_control)
    return box


def sum_on_hosts(ranks: Ranks, *values: int) -> tuple[int, ...]:
    """Sums of plain integers over the ranks, with no device synchronised; gives up after `timeout_s` like any step."""
    if ranks.world_size == 1:
        return values
    box = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(box, group=_hosts)
    return tuple(box.tolist())


def run_on_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 while the others wait, and return its result on every rank.

    Raises:
        UserError: on every rank, the same, where rank 0 raised one.
        RuntimeError: on the other ranks, where rank 0 failed in another way.
    """
    if _alone():
        return work()
    if dist.get_rank() == 0:
        try:
            result = work()
        except UserError as error:
            broadcast_object(("user", str(error)))
            raise
        except BaseException as error:
            broadcast_object(("failed", f"{type(error).__name__}: {error}"))
            raise
        broadcast_object(("done", result))
        return result
    kind, value = broadcast_object()  # type: ignore[var-annotated]
    if kind == "user":
        raise UserError(value)
    if kind == "failed":
        raise RuntimeError(f"rank 0 failed: {value}")
    answer: T = value
    return answer


# ------------------------------------------------------------------------------------------------- random numbers


def seed_all(seed: int, rank: int | None = None) -> None:
    """Seed Python, NumPy and torch. Without a rank: the same everywhere (to build the model); with one: a stream of
    its own (dropout), unrelated to the others' and to the one that built the model."""
    word, legacy = np.random.SeedSequence([seed, 0 if rank is None else rank + 1]).generate_state(2, np.uint64)
    random.seed(int(word))
    np.random.seed(int(legacy) % 2**32)
    torch.manual_seed(int(word) % 2**63)


def rng_state() -> dict[str, Tensor]:
    """The state of every generator as plain tensors (Python, NumPy, torch, this rank's GPU): no pickle."""
    _, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict) and numpy["bit_generator"] == "MT19937"
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*numpy["state"]["key"].tolist(), numpy["state"]["pos"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy["has_gauss"], numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Tensor]) -> None:
    """Put back what `rng_state` returned; a GPU's state is left out where there is none now."""
    has, gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss if has else None))
    *keys, position = state["numpy"].tolist()
    has, cached = state["numpy_gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, int(has), cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
