"""ZeRO-Infinity (https://arxiv.org/abs/2104.07857): optimizer state and weights on a local disk, through libaio.

What DeepSpeed 0.19.8 needs or gets wrong, and what is done about it here:

- Its `async_io` op is compiled on first use: several minutes of silence. It is built once, by rank 0, who says so.
- It swaps only what is larger than a block (1 MiB) on a rank; the rest stays in the host's memory.
- It fetches weights into a few buffers of one size, which must hold the largest part of a parameter: `place`.
- A gradient whose place in its sub-group is no multiple of 512 bytes is read into unaligned memory with O_DIRECT: the
  read fails, nobody looks, and the step is taken with what the buffer held before. `read_aligned` mends it.
- All runs on a node would write the same files: each gets a folder of its own, `Folder`, removed when it ends.
"""

from __future__ import annotations

import atexit
import fcntl
import math
import os
import resource
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigtrain.config.schema import Engine
from bigtrain.distributed import Ranks, barrier, broadcast_object, gather_objects, run_on_first
from bigtrain.engines.deepspeed_start import silent
from bigtrain.errors import UserError

ALIGNMENT = 512
"""Bytes: of memory and file positions in a read or write that goes past the page cache (O_DIRECT)."""


def uses_disk(engine: Engine) -> bool:
    """Is anything offloaded to `nvme_path`?"""
    return "nvme" in (engine.offload_optimizer, engine.offload_parameters)


class Folder:
    """This run's folder below `nvme_path`, the same path on every node; `close` removes it.

    Raises:
        UserError: it cannot be made, or not be written to, on some rank: named.
    """

    def __init__(self, nvme_path: str, ranks: Ranks) -> None:
        self.path = Path(nvme_path) / broadcast_object(f"bigtrain-{uuid.uuid4().hex[:12]}")
        self._ranks = ranks
        atexit.register(self.close)  # also where the engine is never closed
        fault: str | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            fault = f"rank {ranks.rank}: {error.strerror or error}"
        faults = [one for one in gather_objects(fault) if one]
        if faults:
            self.close()
            raise UserError(
                f"engine.nvme_path={nvme_path} cannot be written to ({'; '.join(faults)}): "
                "name a folder on a local disk that is yours on every node."
            )

    def close(self) -> None:
        """Remove the files of this run."""
        if self._ranks.local_rank == 0:
            shutil.rmtree(self.path, ignore_errors=True)


def build_async_io(ranks: Ranks) -> None:
    """DeepSpeed's op for the disk: found, or compiled by rank 0 while the others wait, with a word on it.

    Raises:
        UserError: libaio, a compiler or ninja is missing.
    """
    from deepspeed.accelerator import get_accelerator

    from bigtrain.telemetry.progress import say

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")

    def build() -> None:
        missing = _missing(builder)
        if missing:
            raise UserError(
                f"offload to nvme needs {missing[0]}: {missing[1]}. Without it there is engine=zero3_offload."
            )
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "async_io"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "bigtrain.lock").open("w") as ours:  # the kernel lets go of it when a build is killed
            try:
                fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process compiles DeepSpeed's async_io in {folder}: waiting for it")
                fcntl.flock(ours, fcntl.LOCK_EX)
            if (folder / "lock").exists():  # torch's, on which every later build would wait for ever
                say(f"{folder / 'lock'} was left by a build that was killed: removed")
                (folder / "lock").unlink()
            if not (folder / "async_io.so").exists():
                say(f"compiling DeepSpeed's async_io in {folder}, once on this machine: a few minutes")
            with silent():
                builder.load(verbose=False)

    run_on_first(build)
    with silent():
        builder.load(verbose=False)
    barrier()


def _missing(builder: Any) -> tuple[str, str] | None:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++")):
        return "a C++ compiler", "apt install g++"
    if shutil.which("ninja") is None:
        return "ninja", "pip install ninja"
    if not builder.is_compatible(verbose=False):
        return "libaio and its headers", "apt install libaio-dev"
    return None


def place(settings: dict[str, Any], folder: Path, model: nn.Module, ranks: Ranks) -> None:
    """Write into DeepSpeed's `settings` the run's folder, and room for the weights that are fetched at once.

    Raises:
        UserError: the buffers are more than this user may lock in memory.
    """
    zero = settings["zero_optimization"]
    for section in ("offload_optimizer", "offload_param"):
        if zero.get(section, {}).get("device") == "nvme":
            zero[section]["nvme_path"] = str(folder)
    parts = [math.ceil(p.numel() / ranks.world_size) for p in model.parameters()]
    locked = 0
    if zero.get("offload_param", {}).get("device") == "nvme":
        fetched = zero["offload_param"]
        fetched.setdefault("buffer_size", max(parts))
        fetched.setdefault("buffer_count", _held_at_once(model) + 2)
        locked += fetched["buffer_size"] * fetched["buffer_count"]
    if zero.get("offload_optimizer", {}).get("device") == "nvme":
        locked += zero["offload_optimizer"]["buffer_count"] * min(sum(parts), zero["sub_group_size"] + max(parts))
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY and limit < 4 * locked:
        raise UserError(
            f"offload to nvme locks up to {4 * locked / 1e6:.0f} MB of memory a rank, and this user may lock "
            f"{limit / 1e6:.0f} MB: ulimit -l unlimited (or ask whoever runs the machine)."
        )


def _held_at_once(model: nn.Module) -> int:
    """Most parameters that a module and those that it is in have of their own: they are fetched together."""
    own = {name: len(list(module.parameters(recurse=False))) for name, module in model.named_modules()}
    above = {name: [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)] for name in own}
    return max(own[""] + sum(own.get(one, 0) for one in above[name] if name) for name in own)


def read_aligned(wrapped: Any) -> None:
    """Give the swapper of ZeRO-3's optimizer a way to read gradients that works at any offset."""
    from deepspeed.runtime.swap_tensor.utils import swap_in_tensors

    swapper = wrapped.optimizer_swapper
    if swapper is None:
        return

    def read(aio_handle: Any, parameter: Any, gradient_tensor: torch.Tensor) -> None:
        pieces = swapper.swap_params_info[parameter.ds_id].swapped_gradients.values()
        targets = [gradient_tensor.narrow(0, piece.offset, piece.length) for piece in pieces]
        # Memory of the op's own where the target is unaligned: it reads into pages that it has locked, then copies.
        buffers = [t if t.data_ptr() % ALIGNMENT == 0 else torch.empty_like(t) for t in targets]
        swap_in_tensors(aio_handle, buffers, [piece.path for piece in pieces])
        if aio_handle.wait() != len(buffers):
            raise RuntimeError(f"gradients could not be read from {swapper.swap_folder}")
        for target, buffer in zip(targets, buffers, strict=True):
            if buffer is not target:
                target.copy_(buffer)

    swapper._swap_in_pinned_gradients = read
