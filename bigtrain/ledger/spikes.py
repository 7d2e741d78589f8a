"""Where the loss of a run jumps above what the steps before it let expect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigtrain.telemetry.metrics import FILE_NAME, numbers, read_lines

BEFORE, FEWEST = 16, 5
"""Logged losses before a step whose median is expected of it; of fewer, nothing is expected."""
AROUND = 64
"""Logged losses on either side from which the usual noise is taken: it changes as training goes on."""
SPIKE = 5.0
"""Times the usual noise above what is expected. Of smooth runs the largest is 2 to 4."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogPoint:
    """A logged loss: that of the batch of one step, on the weights before its update."""

    step: int
    after: int
    """The logged step before it: in between nothing is known."""
    loss: float
    height: float
    """Above what was expected, in units of the usual noise; infinite where the loss is no number."""


def log_points(run_dir: Path) -> list[LogPoint]:
    """The logged losses of training, in order of steps; empty where nothing was logged."""
    found: dict[int, float] = {}
    for line in read_lines(run_dir / FILE_NAME):
        loss = numbers(line).get("loss")
        if line["split"] == "train" and loss is not None:
            found[line["step"]] = float(loss)
    steps = sorted(found)
    losses = np.array([found[step] for step in steps])
    afters = [0, *steps[:-1]]
    return [LogPoint(*point) for point in zip(steps, afters, losses.tolist(), heights(losses).tolist(), strict=True)]


def heights(losses: Floats) -> Floats:
    """How far each of the losses (N,) lies above the median of those before it, in units of the usual noise.

    The noise is 1.4826 times the median absolute deviation of the neighbours, which single spikes do not move.
    """
    finite = np.isfinite(losses)
    known = losses[finite]
    above = np.array(
        [loss - np.median(known[max(0, at - BEFORE) : at]) if at >= FEWEST else 0.0 for at, loss in enumerate(known)]
    )
    scaled = np.zeros(len(known))
    for at in range(FEWEST, len(known)):
        near = above[max(FEWEST, at - AROUND) : at + AROUND + 1]
        middle = np.median(near)
        noise = 1.4826 * float(np.median(np.abs(near - middle)))
        scaled[at] = (above[at] - middle) / max(noise, 1e-3 * abs(known[at]))
    result = np.full(len(losses), np.inf)
    result[finite] = scaled
    return result


def spikes(points: list[LogPoint]) -> list[LogPoint]:
    """Where spikes begin, the highest first: of neighbouring points that stand out, the first."""
    begins = [
        point
        for before, point in zip([None, *points[:-1]], points, strict=True)
        if point.height >= SPIKE and not (before is not None and before.height >= SPIKE)
    ]
    return sorted(begins, key=lambda point: -point.height)
