"""Weak scaling on one machine: 1, 2 and 4 ranks, each with the same share of the batch.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

One thread a rank. More ranks than cores (or GPUs: they are left out) share them, and then more ranks cannot be faster:
`tokens/s a device` divides by the cores that the ranks can have. Beyond this machine there is `bigtrain plan`: what it
says of weak scaling to 1,024 GPUs, which is not measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _grid import WORDS, train
from _suite import MIB, MS, Measured, Suite, in_turn, metric

SIZES = ["model=toy", "data.sequence_length=128", "trainer.micro_batch_size=8", "launcher.threads=1"]
A_RANK = 8
"""Samples a step."""
ENGINE = "zero2"
NODES = (1, 2, 8, 32, 128)


def run(ranks: int, steps: int, root: Path) -> dict[str, Any]:
    """One run."""
    given = [f"engine={ENGINE}", f"launcher.processes={ranks}", f"trainer.global_batch_size={A_RANK * ranks}"]
    found = train([*SIZES, *given, f"trainer.max_steps={steps}"], root)
    return found | {"tokens/s a device": found["tokens/s"] / min(ranks, cores())}


def planned() -> dict[str, list[dict[str, Any]]]:
    """Llama 8B at 16 samples a rank on nodes of 8 H100s, as planned."""
    from bigtrain.config.compose import compose
    from bigtrain.plan.plan import plan

    found = {}
    for nodes in NODES:
        batch = f"trainer.global_batch_size={16 * 8 * nodes}"
        config = compose(["recipe=pretrain/llama_8b", "hardware=h100x8", "data.path=none", batch], 8 * nodes).config
        one = plan(config, nodes=nodes)
        assert one.pace is not None
        rate = one.pace.tokens_per_s
        a_device = rate / (8 * nodes)
        figures = {"tokens/s": rate, "tokens/s a device": a_device, "step": one.pace.step, "peak memory": one.needed}
        found[f"{8 * nodes} ranks"] = [figures]
    return found


def cores() -> int:
    """What computes: GPUs where there are some."""
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    import torch

    most = torch.cuda.device_count() or 4
    counts = [count for count in ((1,) if small else (1, 2, 4)) if count <= most]
    steps = 4 if small else 12
    measured = Measured({"shared": WORDS, "sizes": SIZES, "ranks": counts, "samples a rank": A_RANK, "steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"{count} ranks": partial(run, count, steps, Path(folder)) for count in counts}
        measured.groups[ENGINE] = in_turn(runs, rounds, say, measured.notes)
    measured.groups["planned: llama_8b, H100"] = planned()
    return measured


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={
        "tokens/s": metric(("tokens/s", 1.0), "higher"),
        "tokens/s a device": metric(("tokens/s", 1.0), "higher"),
        "step": metric(MS),
        "peak memory": metric(MIB),
    },
    pictured=("tokens/s", "tokens/s a device"),
    measure=measure,
    rounds=1,
)

if __name__ == "__main__":
    SUITE.main()
