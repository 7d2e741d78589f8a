"""A few steps of rank 0 under torch's profiler: a trace, and one page that says where they went."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.config.schema import Profiler

if TYPE_CHECKING:
    import torch

FOLDER, TRACE, SUMMARY = "profile", "trace.json.gz", "summary.md"
TOP = 12

KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha", "attention"),
    "matrix products": ("mm", "gemm", "linear", "matmul", "cutlass", "nvjet", "conv", "mkldnn"),
    "messages": ("nccl", "gloo", "c10d", "allreduce", "all_reduce", "allgather", "reduce_scatter", "broadcast"),
    "optimizer": ("adam", "optimizer", "lion", "sgd", "foreach"),
    "copies": ("copy", "memcpy", "memset", "contiguous", "clone", "cat"),
}
"""The first kind holds of which a word is in the name of an operator or a kernel; all else is elementwise."""


class Profile:
    """Call it after each step; `close` ends a recording that the run's end has cut short.

    Args:
        run_dir: where `profile/` is written.
        device: of rank 0.
        settings: which steps.
    """

    def __init__(self, run_dir: Path, device: torch.device, settings: Profiler) -> None:
        self._folder, self._device, self._settings = run_dir / FOLDER, device, settings
        self._seen, self._began = 0, 0.0
        self._recording: Any = None

    def __call__(self, step: int) -> None:
        """A step is done."""
        self._seen += 1
        if self._seen == self._settings.start:
            self._begin()
        elif self._recording is not None and self._seen == self._settings.start + self._settings.steps:
            self._end(self._settings.steps)

    def close(self) -> None:
        """What was recorded so far is written; where nothing was, that is said."""
        from bigtrain.telemetry.progress import say

        if self._recording is not None and self._seen > self._settings.start:
            self._end(self._seen - self._settings.start)
        elif self._seen <= self._settings.start:
            start = self._settings.start
            say(f"profile: none, as this was {self._seen} steps and it begins behind profiler.start={start}")

    def _begin(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._device.type == "cuda" else [])]
        self._recording = profile(activities=activities)
        self._wait()
        self._recording.start()
        self._began = time.perf_counter()

    def _end(self, steps: int) -> None:
        from bigtrain.telemetry.progress import say

        self._wait()
        wall = time.perf_counter() - self._began
        recording, self._recording = self._recording, None
        recording.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        recording.export_chrome_trace(str(self._folder / TRACE))
        page = summary(recording.key_averages(), wall, steps, gpu=self._device.type == "cuda")
        (self._folder / SUMMARY).write_text(page, encoding="utf-8")
        say(f"profile: {self._folder / SUMMARY}, {self._folder / TRACE} (for https://ui.perfetto.dev)")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)


def kind_of(name: str) -> str:
    """What an operator or a kernel is for."""
    low = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in low for word in words)), "elementwise and rest")


def summary(events: Any, wall: float, steps: int, *, gpu: bool) -> str:
    """Markdown: seconds of a step by kind, what is left between them, and the largest operators or kernels.

    Args:
        events: of `torch.profiler.profile.key_averages()`.
        wall: seconds of all recorded steps.
        steps: how many.
        gpu: time on the device counts, else that of the CPU.
    """
    field = "self_device_time_total" if gpu else "self_cpu_time_total"
    found = {event.key: getattr(event, field) / 1e6 for event in events if not event.key.startswith("ProfilerStep")}
    counts = {event.key: event.count for event in events}
    kinds: dict[str, float] = defaultdict(float)
    for name, seconds in found.items():
        kinds[kind_of(name)] += seconds
    gap = max(0.0, wall - sum(kinds.values()))
    kinds["gaps: nothing ran on the device" if gpu else "gaps: Python, waiting"] = gap
    lines = [f"# {steps} steps, {wall / steps:.4g} s each", "", "| where | s a step | of it |", "| --- | ---: | ---: |"]
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {seconds / steps:.4g} | {seconds / wall:.1%} |")
    lines += [
        "",
        f"| {'kernel' if gpu else 'operator'} | calls a step | s a step | of it |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, seconds in sorted(found.items(), key=lambda item: -item[1])[:TOP]:
        lines.append(f"| `{name[:90]}` | {counts[name] / steps:.4g} | {seconds / steps:.4g} | {seconds / wall:.1%} |")
    return "\n".join(lines) + "\n"
