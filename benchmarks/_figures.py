"""What the rounds of a suite amount to: medians with 95 % intervals, ratios, targets, and what has become worse.

A result is the plain dictionary that `_common.write_result` puts into one JSON file:

    suite, date, commit, hardware, versions, load_average, config
    metrics: {metric: {unit, better: "higher" | "lower" | null, scale}}   a value times scale is in that unit
    groups:  {group: {case: [{metric: value, ...} of each round]}}        the first case is what the others are held to
    targets: [{text, group, of: [case, metric], over: [case, metric], at_least | at_most}]
    notes:   what a reader must know besides: a peer that is missing, one that computes something else
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Result = dict[str, Any]

T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Student's t for 1, 2, ... degrees of freedom: 95 % lie between -t and t."""


class Figure(NamedTuple):
    """A median and its 95 % interval, which is without bounds where there is one round alone."""

    median: float
    low: float
    high: float

    def text(self, scale: float = 1.0) -> str:
        """`median ± half the interval`, to three digits."""
        half = (self.high - self.low) / 2
        return short(self.median * scale) + (f" ± {short(half * scale)}" if math.isfinite(half) else "")


def short(value: float) -> str:
    """Three digits that count, never in powers of ten."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def figure(values: Sequence[float]) -> Figure:
    """The median of the rounds, with Student's interval about it: a median errs sqrt(pi / 2) times as far as a mean."""
    median = statistics.median(values)
    if len(values) < 2:
        return Figure(median, -math.inf, math.inf)
    t = T_975[len(values) - 2] if len(values) - 2 < len(T_975) else 2.0
    half = t * statistics.stdev(values) * math.sqrt(math.pi / 2 / len(values))
    return Figure(median, median - half, median + half)


def rounds_of(result: Result, group: str, case: str, metric: str) -> list[float]:
    """The values of one metric, of the rounds that have it."""
    rounds = result["groups"].get(group, {}).get(case, [])
    return [found[metric] for found in rounds if found.get(metric) is not None]


def ratio(result: Result, group: str, of: Sequence[str], over: Sequence[str]) -> Figure | None:
    """(case, metric) over (case, metric), round by round, since what slows a round slows both; None: not measured."""
    above, below = rounds_of(result, group, *of), rounds_of(result, group, *over)
    if not above or len(above) != len(below) or not all(below):
        return None
    return figure([a / b for a, b in zip(above, below, strict=True)])


class Cell(NamedTuple):
    """One metric of one case."""

    group: str
    case: str
    metric: str
    value: Figure
    over_first: Figure | None
    """Over the first case of the group; None for that one itself."""


def cells(result: Result) -> Iterator[Cell]:
    """All that was measured, in the order of the file."""
    for group, cases in result["groups"].items():
        first = next(iter(cases), "")
        for case in cases:
            for metric in result["metrics"]:
                values = rounds_of(result, group, case, metric)
                if values:
                    over = None if case == first else ratio(result, group, (case, metric), (first, metric))
                    yield Cell(group, case, metric, figure(values), over)


class Held(NamedTuple):
    """A target and what was measured of it."""

    text: str
    found: Figure | None
    reached: bool | None


def targets(result: Result) -> list[Held]:
    """Every target of the suite; None: a case of it was not measured."""
    held = []
    for target in result["targets"]:
        found = ratio(result, target["group"], target["of"], target["over"])
        reached = None
        if found is not None:
            reached = found.median >= target.get("at_least", -math.inf) and found.median <= target.get(
                "at_most", math.inf
            )
        held.append(Held(target["text"], found, reached))
    return held


def same_machine(a: Result, b: Result) -> bool:
    """Whether times may be compared."""
    return bool(a["hardware"] == b["hardware"])


def regressions(now: Result, before: Result) -> list[str]:
    """A line for each figure whose interval lies wholly on the worse side of the earlier one's.

    On the same machine figures and ratios are compared, on another one ratios alone.
    """
    earlier = {(cell.group, cell.case, cell.metric): cell for cell in cells(before)}
    found = []
    for cell in cells(now):
        was, better = earlier.get((cell.group, cell.case, cell.metric)), now["metrics"][cell.metric]["better"]
        if was is None or better is None:
            continue
        pairs = [("", cell.value, was.value)] if same_machine(now, before) else []
        if cell.over_first and was.over_first:
            pairs.append((f" over {next(iter(now['groups'][cell.group]))}'s", cell.over_first, was.over_first))
        scale, unit = now["metrics"][cell.metric]["scale"], now["metrics"][cell.metric]["unit"]
        for over, new, old in pairs:
            if new.low > old.high if better == "lower" else new.high < old.low:
                by = (1.0, "") if over else (scale, f" {unit}")
                found.append(
                    f"{now['suite']}: {cell.group}, {cell.case}: {cell.metric}{over} was {old.text(by[0])}{by[1]} "
                    f"and is {new.text(by[0])}{by[1]}"
                )
    return found
