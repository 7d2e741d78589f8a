"""What every side of a comparison measures of itself: the time, CPU time and loss of each step, and its peak memory.

bigtrain has it as a tracker, the others call `step`. It is written when training ends.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

FIRST = 2
"""Steps that do not count: they allocate, and compile."""


class Meter:
    """Notes a step each time it is told one; on a GPU after waiting for it."""

    def __init__(self, file: Path, tokens: int) -> None:
        self.file, self.tokens = file, tokens
        self.stamps: list[tuple[float, float]] = []
        self.losses: list[float] = []

    def step(self, loss: float) -> None:
        """The end of a step, its loss read from the device."""
        self.stamps.append((time.perf_counter(), time.process_time()))
        self.losses.append(loss)
        if len(self.stamps) == FIRST:
            forget_peak()

    def log(self, step: int, split: str, metrics: Any) -> None:
        """bigtrain's way to say it; of the last step it does so once."""
        if split == "train" and step > len(self.stamps):
            self.step(metrics["loss"])

    def close(self) -> None:
        """Write what was measured."""
        counted = self.stamps[FIRST - 1 :]
        wall, cpu = ([b[i] - a[i] for a, b in itertools.pairwise(counted)] for i in (0, 1))
        values = {
            "tokens/s": self.tokens / statistics.median(wall),
            "step": statistics.median(wall),
            "CPU a step": statistics.median(cpu),
            "peak memory": peak(),
        }
        self.file.write_text(json.dumps({"values": values, "losses": self.losses}))


def forget_peak() -> None:
    """From here on the high-water mark is what the steps need: not what loading or compiling did."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes: of the GPU's allocator, or of the whole process."""
    import torch

    from bigtrain.telemetry.meters import peak_memory_bytes

    return peak_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def tracker(run_dir: Path, config: dict[str, Any], *, file: str, tokens: int) -> Meter:
    """The tracker component."""
    return Meter(Path(file), tokens)
