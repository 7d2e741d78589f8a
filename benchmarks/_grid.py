"""Real runs of `bigtrain train` over a grid of overrides, for the suites of throughput, memory, scaling and the GPU."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _suite import process

WORDS = [
    "recipe=smoke", "data=moby_dick", "data.vocab_size=2048", "trainer.log_every=1", "trainer.eval_every=null",
    "trainer.eval_batches=1", "evaluation.report=false", "checkpoint.every=null", "schedule.warmup_steps=0",
]  # fmt: skip
"""What every run of a grid shares; what comes behind wins."""


def train(words: list[str], root: Path) -> dict[str, Any]:
    """One run's medians over the later half of its steps, and the losses of all.

    Raises:
        FailedError: it was refused, or failed.
    """
    with tempfile.TemporaryDirectory(dir=root) as folder:
        run_dir = Path(folder, "run")
        shared = [*WORDS, f"data.cache={root / 'prepared'}", f"run.dir={run_dir}"]
        process(["-m", "bigtrain", "train", *merged(shared, words)])
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    half = steps[len(steps) // 2 :]
    return {
        "tokens/s": statistics.median(line["tokens_per_s"] for line in half),
        "step": statistics.median(line["step_time_s"] for line in half),
        "MFU": half[-1]["mfu"],
        "peak memory": max(line["memory_peak_bytes"] for line in steps),
        "loss": steps[-1]["loss"],
    }


def merged(words: list[str], later: list[str]) -> list[str]:
    """Overrides in which each key stands once: the later one."""
    return list({word.partition("=")[0]: word for word in (*words, *later)}.values())
