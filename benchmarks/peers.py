"""bigtrain beside the other trainers: one model, one set of tokens, one optimizer; speed, CPU time, memory.

    python benchmarks/peers.py --out benchmarks/results/peers.json

Every side is a process of its own, in its own documented way (`_sides.py`), and the sides take turns. All load the same
Hugging Face weights and see the same batches in fp32, so that the losses of every step must agree: a peer whose losses
differ is left out of the table. The first steps (allocation, compilation) do not count.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _sides
from _same import SIZES, told, write_weights
from _suite import MIB, MS, SECONDS, Measured, Suite, in_turn, metric, process

CLOSE = 2e-4
"""The most by which losses of a step may differ: other kernels add up in another order, and AdamW's first steps make
much of the last bits of small gradients."""
STEADY, LEAN = "bigtrain, compiled", "bigtrain, recomputing"
OURS = {"bigtrain": (), STEADY: ("trainer.compile=true",), LEAN: ("trainer.activation_checkpointing=full",)}
"""Ways of bigtrain to run, each with its overrides."""


def run_side(side: str, size: str, weights: Path, root: Path) -> dict[str, Any]:
    """One process; its values, with the losses of its steps."""
    with tempfile.TemporaryDirectory(dir=root) as work:
        out = Path(work, "meter.json")
        if side in OURS:
            process([*_sides.bigtrain(size, weights, out), *OURS[side]])
        else:
            process([_sides.__file__, side, size, str(weights), str(out)])
        found = json.loads(out.read_text())
    return found["values"] | {"losses": found["losses"]}


def missing(notes: list[str]) -> set[str]:
    """The peers that are not installed, each with a line of how to get it."""
    gone = set()
    for side, package in _sides.NEEDS.items():
        if importlib.util.find_spec(package) is None:
            gone.add(side)
            notes.append(f"{side} is not installed: pip install 'bigtrain[benchmark]' (or pip install {package})")
    return gone


def compare_losses(group: str, found: dict[str, list[dict[str, Any]]], notes: list[str]) -> None:
    """Take the losses out of the rounds, and the sides out whose losses are not bigtrain's."""
    right = found["bigtrain"][0]["losses"] if found.get("bigtrain") else None
    for side, rounds in list(found.items()):
        losses = [one.pop("losses") for one in rounds]
        if right is None or side == "bigtrain":
            continue
        apart = max(abs(a - b) for one in losses for a, b in zip(one, right, strict=True))
        notes.append(
            f"{group}: losses of {side} differ from bigtrain's by {apart:.1e} at most, over {len(right)} steps"
        )
        if not apart <= CLOSE:
            notes[-1] += f": MORE than {CLOSE:.0e}, it trains something else and does not count"
            del found[side]


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    size = "smallest" if small else "30M"
    measured = Measured({size: told(SIZES[size])})
    gone = missing(measured.notes)
    sides = [*OURS, *(side for side in _sides.SIDES if side not in gone)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights = root / size
        write_weights(SIZES[size], weights)
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            side: partial(run_side, side, size, weights, root) for side in sides
        }
        found = in_turn(cases, rounds, say, measured.notes)
        compare_losses(size, found, measured.notes)
        measured.groups[size] = found
    return measured


def target(text: str, metric: str, peer: str, ours: str = "bigtrain", **bound: float) -> dict[str, Any]:
    """bigtrain's metric over a peer's, in the model of 30 M parameters."""
    return {"text": text, "group": "30M", "of": [ours, metric], "over": [peer, metric], **bound}


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={
        "tokens/s": metric(("tokens/s", 1.0), "higher"),
        "step": metric(MS),
        "CPU a step": metric(SECONDS),
        "peak memory": metric(MIB),
    },
    pictured=("tokens/s", "peak memory"),
    targets=(
        target("tokens/s at least 1.5 × HF Trainer's", "tokens/s", "HF Trainer", at_least=1.5),
        target("tokens/s at least 1.2 × LitGPT's", "tokens/s", "LitGPT", at_least=1.2),
        target("tokens/s at least those of the compiled loop by hand", "tokens/s", "by hand, compiled", at_least=1.0),
        target("the same, bigtrain compiled too", "tokens/s", "by hand, compiled", STEADY, at_least=1.0),
        target("peak memory at most 0.4 × HF Trainer's", "peak memory", "HF Trainer", at_most=0.4),
        target("the same, bigtrain recomputing its blocks", "peak memory", "HF Trainer", LEAN, at_most=0.4),
    ),
    measure=measure,
    rounds=1,
)

if __name__ == "__main__":
    SUITE.main()
