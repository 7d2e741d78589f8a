"""Bringing DeepSpeed in: quiet, without building anything on a CPU, and with ZeRO-3's weights sharded exactly."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bigtrain.distributed import Ranks, run_on_first
from bigtrain.errors import UserError

log = logging.getLogger("bigtrain.deepspeed")


def import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, for this device: its loggers speak to the rank's log only, and nothing is compiled on a CPU."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bigtrain" / "torch_extensions"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache))
    os.environ["DS_ACCELERATOR"] = device.type  # chosen already; else a CPU beside idle GPUs would not be taken
    with silent():
        import deepspeed

    for renamed in ("reduce_scatter_tensor", "all_gather_into_tensor"):  # DeepSpeed's calls, nothing a user can mend
        warnings.filterwarnings("ignore", f".*{renamed}. is deprecated", FutureWarning)
    quiet = logging.getLogger("DeepSpeed")
    quiet.handlers[:] = [logging.NullHandler()]  # else its warnings would go to stderr where no log is set up
    quiet.propagate = True
    if device.type == "cpu":
        # `deepspeed.comm.torch` the attribute is torch itself; the module is found by its name only. Its shared-memory
        # op takes two minutes to compile, gloo does the same, and a killed build leaves a lock that hangs every later
        # run (pytorch#189245).
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    with silent():
        deepspeed.init_distributed(
            auto_mpi_discovery=False
        )  # takes torch's groups; before it, all think they are alone
    module: ModuleType = deepspeed
    return module


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What is printed goes to the log: standard output belongs to the program."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            log.debug(line)


def refuse_unsupported(deepspeed: ModuleType, dtype: torch.dtype) -> None:
    """DeepSpeed takes the dtype on this device, or a UserError says what to use instead."""
    accelerator = deepspeed.get_accelerator()
    if dtype is torch.float16 and not accelerator.is_fp16_supported():
        raise UserError(
            "DeepSpeed has no fp16 on this device (a CPU without fp16 instructions). "
            "Use precision=bf16 or precision=fp32, or engine=ddp."
        )
    if dtype is torch.bfloat16 and not accelerator.is_bf16_supported():
        raise UserError("DeepSpeed has no bf16 on this device. Use precision=fp16 or precision=fp32.")


# ------------------------------------------------------------------------------------------ ZeRO-3, sharded exactly


def build_once(build_model: Callable[[], nn.Module], ranks: Ranks) -> nn.Module:
    """The model, whole on rank 0; the others get its modules and buffers, and of its parameters the shapes only.

    So one rank runs the user's code and its random numbers, and all have what it built, pretrained weights included.
    (Building inside `deepspeed.zero.Init` instead gives other weights than those the model's code asks for: seen with
    transformers models from a config, first loss 89.9 where ln(vocabulary) = 6.9.) A model that cannot be pickled is
    built on every rank.
    """
    if ranks.world_size == 1:
        return build_model()
    built: list[nn.Module] = []

    def outline() -> bytes | None:
        built.append(build_model())
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):  # lambdas and local classes: whatever pickle says, there is another way
            _Outline(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(built[0])
            return buffer.getvalue()
        return None

    pickled = run_on_first(outline)
    if pickled is not None and not built:
        with contextlib.suppress(Exception):  # a class that this rank cannot import
            built.append(pickle.loads(pickled))  # from rank 0 of this job, over its own process group
    if not built:
        log.info("the model's modules cannot be pickled: this rank builds the whole model before it is sharded")
        built.append(build_model())
    return built[0]


class _Outline(pickle.Pickler):
    """Pickles a model without the values of its parameters; shared parameters stay shared."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            attributes = {key: item for key, item in vars(value).items() if not key.startswith("_")}
            return _hollow, (type(value), tuple(value.shape), value.dtype, value.requires_grad, attributes)
        return NotImplemented


def _hollow(
    kind: type[nn.Parameter], shape: tuple[int, ...], dtype: torch.dtype, trained: bool, attributes: dict[str, Any]
) -> nn.Parameter:
    """A parameter of the right shape that takes the memory of one element."""
    parameter = kind(torch.zeros(1, dtype=dtype).expand(shape), requires_grad=trained)
    vars(parameter).update(attributes)
    return parameter


def shard(deepspeed: ModuleType, settings: dict[str, Any], model: nn.Module, dtype: torch.dtype, ranks: Ranks) -> None:
    """Cut rank 0's weights into ZeRO-3's partitions in place, one parameter at a time: no more than one is ever whole
    on the others. Parameters stay the same objects, so that an optimizer made before keeps its groups."""
    with silent():
        zero = deepspeed.zero.Init(config_dict_or_path=settings)
        for parameter in model.parameters():
            wanted = dtype if parameter.is_floating_point() else parameter.dtype
            if ranks.first:
                parameter.data = parameter.data.to(ranks.device, wanted)
            else:
                parameter.data = torch.empty(parameter.shape, device=ranks.device, dtype=wanted)
            zero._convert_to_zero_parameters([parameter])  # broadcasts rank 0's values and keeps this rank's part
    for buffer in model.buffers():
        buffer.data = buffer.data.to(ranks.device)
