"""What the trainer measures between two log points: time, throughput, data wait, memory, MFU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bigtrain.telemetry.peaks import Arithmetic, peak_flops

if TYPE_CHECKING:
    import torch
    from torch import nn


def training_flops_per_token(
    matmul_parameters: int, *, layers: int, heads: int, head_dim: int, sequence_length: int
) -> float:
    """FLOPs of one token's forward and backward pass: 6 N + 12 L H Q S (PaLM, arXiv:2204.02311, appendix B).

    Recomputation (activation checkpointing) does not count: MFU is about the model's own arithmetic. The attention
    term is PaLM's, which does not halve it for the causal mask.

    Args:
        matmul_parameters: N, the parameters that every token is multiplied with: all but the embedding tables that
            are only looked up. An output head counts, so a table that is tied to the head counts once.
        layers: L, attention layers.
        heads: H, query heads.
        head_dim: Q, width of a head.
        sequence_length: S, tokens.
    """
    return 6.0 * matmul_parameters + 12.0 * layers * heads * head_dim * sequence_length


def matmul_parameters(model: nn.Module, looked_up: Iterable[nn.Parameter]) -> int:
    """Parameters that every token is multiplied with: all but the tables in `looked_up`, whole under ZeRO-3 too."""
    skipped = {id(parameter) for parameter in looked_up}
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in model.parameters() if id(p) not in skipped)


def device_peak_flops(device: torch.device, precision: Literal["fp32", "bf16", "fp16", "fp8"]) -> float | None:
    """Dense peak of this device in FLOP/s at a run's precision; None for a CPU and for a GPU that is not known."""
    if device.type != "cuda":
        return None
    import torch

    arithmetic: Arithmetic = precision
    if precision == "fp32" and torch.backends.cuda.matmul.allow_tf32:
        arithmetic = "tf32"
    return peak_flops(torch.cuda.get_device_name(device), arithmetic)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this rank has held so far, in bytes.

    On a GPU what torch's allocator handed out (`max_memory_allocated`); on a CPU the whole process's largest resident
    set (VmHWM), the interpreter and its libraries included.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


class Meters:
    """A stopwatch over the steps since the last log point.

    It reads no device scalar. On a GPU the numbers are right where they are asked for after something else has waited
    for the device: read the loss first, then call `window`.

    Args:
        device: this rank's device, waited for before a pause begins.
        flops_per_token: of `training_flops_per_token`; None: no MFU.
        peak_flops: of all devices of the run together, FLOP/s; None: no MFU.
    """

    def __init__(self, device: torch.device, *, flops_per_token: float | None = None, peak_flops: float | None = None):
        self._device = device
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._restart()

    def _restart(self) -> None:
        self._start = time.perf_counter()
        self._steps = 0
        self._tokens = 0
        self._data_wait = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the fetch of a batch: the time that the loop stands still for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._data_wait += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training (evaluation, checkpoints): left out of step time and throughput."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def step(self, tokens: int) -> None:
        """One optimizer step is done; `tokens` are those of all ranks."""
        self._steps += 1
        self._tokens += tokens

    def window(self) -> dict[str, float | None]:
        """Means over the steps since the last call, which a new window follows.

        `step_time_s` and `data_wait_s` in seconds a step, `tokens_per_s` over all ranks, `mfu` in [0, 1] or None.
        """
        steps = max(self._steps, 1)
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        tokens_per_s = self._tokens / elapsed
        mfu = None
        if self._flops_per_token is not None and self._peak_flops is not None:
            mfu = tokens_per_s * self._flops_per_token / self._peak_flops
        window = {
            "step_time_s": elapsed / steps,
            "tokens_per_s": tokens_per_s,
            "data_wait_s": self._data_wait / steps,
            "mfu": mfu,
        }
        self._restart()
        return window
