"""`sweep.png`: how the best of a sweep came about, and each swept value against the metric. Needs Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DONE, PRUNED, BEST, INK, SOFT = "#2f6fde", "#9aa5b4", "#e07b2e", "#16202c", "#5d6876"
ACROSS = 3
"""Panels side by side."""


def draw(
    out: Path, rows: Sequence[Mapping[str, Any]], metric: str, direction: str, logarithmic: Sequence[str] = ()
) -> None:
    """Draw the trials of a sweep.

    Args:
        out: the PNG file.
        rows: trials in their order, as in `sweep.json`: number, values, metric, state. One at least is `done`.
        metric: its name.
        direction: `minimize` or `maximize`.
        logarithmic: the keys whose values are drawn from a logarithmic scale.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    across = min(ACROSS, len(keys))
    down = -(-len(keys) // across)
    figure = Figure(figsize=(10.5, 3.4 + 3.2 * down), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + down, across, height_ratios=[1.1] + [1] * down)
    better = min if direction == "minimize" else max
    done = [row for row in rows if row["state"] == "done" and row["metric"] is not None]
    chosen = better(done, key=lambda row: row["metric"])
    shown = on_the_scale(rows, [row["metric"] for row in done], direction == "minimize")

    axes = figure.add_subplot(grid[0, :])
    _history(axes, rows, shown, chosen, better)
    _dressed(axes, "trial", metric)
    axes.set_title(f"best: trial {chosen['number']} with {metric} {chosen['metric']:.5g}", loc="left", color=INK)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=6, frameon=False, fontsize=9, columnspacing=1.4,
        handletextpad=0.4, borderaxespad=0.2,
    )  # fmt: skip
    for index, key in enumerate(keys):
        axes = figure.add_subplot(grid[1 + index // across, index % across])
        _against(axes, key, shown, chosen, key in logarithmic)
        _dressed(axes, key.lstrip("+"), metric if index % across == 0 else "")
    figure.savefig(out)


def on_the_scale(rows: Sequence[Mapping[str, Any]], done: Sequence[float], low_is_good: bool) -> list[dict[str, Any]]:
    """The trials with a metric, and where to draw them: `at`, and whether that is the edge of what is `off` the scale.

    The scale is that of the better three quarters of `done`: a trial that has diverged would leave of all others a
    flat line.
    """
    ordered = sorted(done, reverse=not low_is_good)
    good = ordered[-(-3 * len(ordered) // 4) - 1]
    reach = max(2 * abs(good - ordered[0]), 0.1 * abs(ordered[0])) or 1.0
    low, high = (-math.inf, ordered[0] + reach) if low_is_good else (ordered[0] - reach, math.inf)
    return [
        {**row, "at": min(max(row["metric"], low), high), "off": not low <= row["metric"] <= high}
        for row in rows
        if row["metric"] is not None
    ]


def _history(axes: Any, rows: Sequence[Mapping[str, Any]], shown: Sequence[Any], chosen: Any, better: Any) -> None:
    steps, level = [], None
    done = {row["number"]: row["at"] for row in shown if row["state"] == "done"}
    for row in rows:
        if row["number"] in done:
            level = done[row["number"]] if level is None else better(level, done[row["number"]])
        steps.append(math.nan if level is None else level)
    axes.step([row["number"] for row in rows], steps, where="post", color=BEST, lw=1.6, label="best so far", zorder=2)
    _points(axes, [row["number"] for row in shown], shown, chosen)
    if any(row["off"] for row in shown):
        axes.plot([], [], "^", color=PRUNED, mfc="none", mew=1.4, label="off the scale")
    lost = [row["number"] for row in rows if row["state"] == "failed"]
    if lost:  # no value to draw them at: on the edge of the bad ones
        axes.plot(
            lost,
            [0.96 if better is min else 0.04] * len(lost),
            "x",
            color="#cf2f3b",
            ms=7,
            transform=axes.get_xaxis_transform(),
            label="failed",
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(-0.6, max(row["number"] for row in rows) + 0.6)


def _points(axes: Any, places: Sequence[Any], shown: Sequence[Any], chosen: Any) -> None:
    """Filled: done; hollow: pruned, with its last value; a triangle: worse than the scale; the star: the best."""
    done = {"color": DONE, "alpha": 0.85, "edgecolors": "white", "linewidths": 0.6}
    pruned = {"facecolors": "none", "edgecolors": PRUNED, "linewidths": 1.4}
    for state, style in (("done", done), ("pruned", pruned)):
        for off in (False, True):
            found = [
                (place, row["at"])
                for place, row in zip(places, shown, strict=True)
                if row["state"] == state and row["off"] is off
            ]
            if found:
                label = None if off else state
                axes.scatter(
                    *zip(*found, strict=True), label=label, marker="^" if off else "o", s=42, zorder=3, **style
                )
    place = places[[row["number"] for row in shown].index(chosen["number"])]
    axes.scatter(
        [place], [chosen["metric"]], marker="*", s=210, color=BEST, edgecolors="white", linewidths=0.8, zorder=4
    )


def _against(axes: Any, key: str, shown: Sequence[Any], chosen: Any, logarithmic: bool) -> None:
    values = [row["values"].get(key) for row in shown]
    if all(isinstance(value, int | float) for value in values):
        if logarithmic:
            axes.set_xscale("log")
        _points(axes, values, shown, chosen)
        return
    names = sorted({str(value) for value in values}, key=_numbers_first)
    aside = [0.3 * (row["number"] * 0.618 % 1 - 0.5) for row in shown]  # or equal trials would hide each other
    _points(axes, [names.index(str(v)) + off for v, off in zip(values, aside, strict=True)], shown, chosen)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _numbers_first(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _dressed(axes: Any, below: str, beside: str) -> None:
    axes.set_xlabel(below, color=INK)
    axes.set_ylabel(beside, color=INK)
    axes.grid(color="#e3e6eb", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#c6ccd5")
