"""Peak bytes of a rank by engine and ranks: measured, what ZeRO's formula says of the state, and what `plan` predicts.

    python benchmarks/memory.py --out benchmarks/results/memory.json

Real runs of `bigtrain train`. `state` is weights, gradients and optimizer state by `bigtrain/engines/zero_bytes.py`.
On a GPU the peak is the allocator's; on a CPU the whole process's, so that the same run with a model of nearly no size
is taken away: `above imports`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from _grid import WORDS, train
from _suite import MIB, Measured, Suite, in_turn, metric

SIZES = [
    "model=toy", "model.width=256", "model.mlp_width=1024", "model.layers=16", "data.sequence_length=64",
    "trainer.global_batch_size=4", "trainer.micro_batch_size=1", "trainer.max_steps=4",
]  # fmt: skip
NEARLY_NONE = ["model.width=8", "model.mlp_width=8", "model.heads=1", "model.layers=1"]
SMALL = ["model.width=32", "model.layers=2", "model.mlp_width=64"]
CASES: dict[str, tuple[str, int]] = {
    "local": ("local", 1),
    "zero3, 2 ranks": ("zero3", 2),
}


def predicted(config: Any, ranks: int) -> int:
    """Bytes of tensors that a rank is to hold at its peak, by `bigtrain plan`."""
    import torch

    from bigtrain.plan.memory import memory
    from bigtrain.plan.subject import Cluster, setup_of, shape_of

    shape = shape_of(config)
    assert shape is not None, "the suite trains the native decoder"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return round(memory(shape, setup_of(config, Cluster(1, ranks), device)).total)


def state_bytes(config: Any, ranks: int) -> int:
    """ZeRO's formula of what this engine holds on a rank."""
    from bigtrain.assembly import build_model
    from bigtrain.engines.zero_bytes import deepspeed_bytes

    model = build_model(config, None)
    name = config.engine.name
    stage = int(name[4]) if name.startswith("zero") else 0
    return sum(
        deepspeed_bytes(sum(p.numel() for p in model.parameters()), stage, ranks, config.precision.name).values()
    )


def run(words: list[str], ranks: int, root: Path) -> dict[str, Any]:
    """The peak of one run, and what was to be expected."""
    from bigtrain.config.compose import compose

    config = compose([*words, "model.vocab_size=2048"], ranks).config
    peak = train(words, root)["peak memory"]
    return {
        "peak": peak,
        "above imports": peak - train([*words, *NEARLY_NONE], root)["peak memory"],
        "state": state_bytes(config, ranks),
        "predicted": predicted(config, ranks),
    }


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    cases: Mapping[str, tuple[str, int]] = {"local": CASES["local"]} if small else CASES
    sizes = [*SIZES, *(SMALL if small else [])]
    measured = Measured({"shared": WORDS, "sizes": sizes, "cases": dict(cases), "subtracted": NEARLY_NONE})
    with tempfile.TemporaryDirectory() as folder:
        words = {
            case: ["recipe=smoke", *sizes, f"engine={engine}", f"launcher.processes={ranks}"]
            for case, (engine, ranks) in cases.items()
        }
        runs = {case: partial(run, words[case], cases[case][1], Path(folder)) for case in cases}
        measured.groups["a rank"] = in_turn(runs, rounds, say, measured.notes)
    return measured


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={
        "peak": metric(MIB),
        "above imports": metric(MIB),
        "state": metric(MIB, None),
        "predicted": metric(MIB, None),
    },
    pictured=("above imports", "predicted"),
    measure=measure,
    rounds=1,
)

if __name__ == "__main__":
    SUITE.main()
