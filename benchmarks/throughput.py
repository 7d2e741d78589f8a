"""Tokens a second (and MFU, where the device's peak is known) by engine, activation checkpointing and compile.

    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Real runs of `bigtrain train`, the medians of the later half of their steps. The first case is what others are held to;
`loss apart` is the difference of the last loss from its.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _grid import WORDS, train
from _suite import MIB, MS, Measured, Suite, in_turn, metric

MODELS = {
    "toy, 16 x 128": [
        "model=toy", "data.sequence_length=128", "trainer.global_batch_size=16", "trainer.micro_batch_size=8",
        "trainer.max_steps=10",
    ],
}  # fmt: skip
SMALL = ["trainer.max_steps=4", "trainer.global_batch_size=2", "trainer.micro_batch_size=1", "model.width=32"]
GRID = {
    "local": ["engine=local"],
    "local, compiled": ["engine=local", "trainer.compile=true"],
    "local, activations again (full)": ["engine=local", "trainer.activation_checkpointing=full"],
    "zero2, 2 ranks": ["engine=zero2", "launcher.processes=2"],
    "zero3, 2 ranks": ["engine=zero3", "launcher.processes=2"],
}


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    grid = dict(list(GRID.items())[:1]) if small else GRID
    measured = Measured({"shared": WORDS, "models": MODELS, "grid": grid})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for model, sizes in MODELS.items():
            words = {case: [*sizes, *(SMALL if small else []), *setting] for case, setting in grid.items()}
            runs = {case: partial(train, setting, root) for case, setting in words.items()}
            found = in_turn(runs, rounds, say, measured.notes)
            first = next(iter(found.values()))
            for rounds_ in found.values():
                for one, right in zip(rounds_, first, strict=True):
                    one["loss apart"] = abs(one["loss"] - right["loss"])
            measured.groups[model] = found
    return measured


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={
        "tokens/s": metric(("tokens/s", 1.0), "higher"),
        "step": metric(MS),
        "MFU": metric(("%", 100.0), "higher"),
        "peak memory": metric(MIB),
        "loss apart": metric(("1e-6", 1e6), None),
    },
    pictured=("tokens/s",),
    measure=measure,
    rounds=1,
)

if __name__ == "__main__":
    SUITE.main()
