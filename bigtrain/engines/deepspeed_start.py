"""Bringing DeepSpeed in: quiet, without building anything on a CPU, and with ZeRO-3's weights sharded exactly."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config.schema import Engine
from bigtrain.distributed import Ranks
from bigtrain.engines.sharded_init import build_once as build_once
from bigtrain.errors import UserError

log = logging.getLogger("bigtrain.deepspeed")


def extensions_folder() -> Path:
    """Where DeepSpeed's ops are compiled: for this torch in this environment, as another's would be compiled again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = f"{torch.__version__}-{zlib.crc32(sys.prefix.encode()):08x}"
    return cache / "bigtrain" / "torch_extensions" / environment


def import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, for this device: its loggers speak to the rank's log only, and nothing is compiled on a CPU."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions_folder()))
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


def refuse_on_cpu(engine: Engine, device: torch.device) -> None:
    """ZeRO++'s quantised messages are CUDA kernels."""
    for key in ("quantized_weights", "quantized_gradients"):
        if getattr(engine, key) and device.type == "cpu":
            raise UserError(
                f"engine.{key} runs on a GPU only: its kernels are CUDA. Take engine.{key}=false, or engine=zero3."
            )


def forget_groups() -> None:
    """ZeRO++ refuses to make its groups of ranks twice in a process."""
    from deepspeed.utils import groups

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


Weights = dict[str, tuple[int, Tensor]]
"""Unrounded weights by name: the offset of the first element that is held here, and the elements, flat, on the host."""


def unrounded(model: nn.Module) -> Weights:
    """The model's own weights, whole: no copy, as rounding gives the parameters other memory."""
    return {name: (0, p.detach().cpu().view(-1)) for name, p in model.named_parameters() if p.requires_grad}


def shard(
    deepspeed: ModuleType, settings: dict[str, Any], model: nn.Module, dtype: torch.dtype, ranks: Ranks
) -> Weights:
    """Cut rank 0's weights into ZeRO-3's partitions in place, one parameter at a time: no more than one is ever whole
    on the others. Parameters stay the same objects, so that an optimizer made before keeps its groups. Returns this
    rank's slices of what was rounded to `dtype`."""
    slices: Weights = {}
    with silent():
        zero = deepspeed.zero.Init(config_dict_or_path=settings)
        for name, parameter in model.named_parameters():
            wanted = dtype if parameter.is_floating_point() else parameter.dtype
            if ranks.first:
                whole = parameter.data.to(ranks.device).contiguous()
            else:
                whole = torch.empty(parameter.shape, device=ranks.device, dtype=parameter.dtype)
            if wanted is not parameter.dtype and parameter.requires_grad:
                torch.distributed.broadcast(whole, 0)
                length = -(-whole.numel() // ranks.world_size)
                start = min(whole.numel(), length * ranks.rank)
                own = whole.view(-1)[start : start + length]
                slices[name] = (start, own.to("cpu", copy=True))
            parameter.data = whole.to(wanted)
            zero._convert_to_zero_parameters([parameter])  # broadcasts rank 0's values and keeps this rank's part
    for buffer in model.buffers():
        buffer.data = buffer.data.to(ranks.device)
    return slices
