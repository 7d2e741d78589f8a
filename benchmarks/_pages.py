"""Markdown and a picture of a suite's result, made from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _common import table
from _figures import Result, cells, rounds_of, same_machine, targets

BUSY = 0.5
"""A load of so many processes a core, before the suite began, is told beside its numbers."""
MOST_BARS = 16


def machine(result: Result) -> str:
    """Where and when, in one line."""
    hardware, versions = result["hardware"], result["versions"]
    gpus = f", {len(hardware['gpus'])} x {hardware['gpus'][0]}" if hardware["gpus"] else ""
    told = ", ".join(f"{name} {versions[name]}" for name in versions if versions[name])
    text = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB{gpus}. {told}. "
    text += f"Commit {(result['commit'] or 'unknown')[:10]}{' with changes' if result['uncommitted_changes'] else ''}, "
    return text + f"{result['date'][:10]}. {load(result)}"


def load(result: Result) -> str:
    """How busy the machine was before the suite and after it, and what that does to the numbers."""
    before, after = (figures[0] for figures in result["load_average"])
    text = f"Load average before {before:.1f}, after {after:.1f}."
    if before > BUSY * result["hardware"]["cores"]:
        text += " **The machine was busy with other work: times are long, and their ratios rough.**"
    return text


def markdown(result: Result) -> str:
    """A table for each group, then the targets and the notes."""
    parts = [f"## {result['suite']}", result["about"], machine(result)]
    for group, cases in result["groups"].items():
        found = {(cell.case, cell.metric): cell for cell in cells(result) if cell.group == group}
        shown = [name for name in result["metrics"] if any(metric == name for _, metric in found)]
        header = [group, "rounds", *(f"{name}, {result['metrics'][name]['unit']}" for name in shown)]
        rows = []
        for case, rounds in cases.items():
            row = [case, str(len(rounds))]
            for metric in shown:
                cell = found.get((case, metric))
                text = "" if cell is None else cell.value.text(result["metrics"][metric]["scale"])
                over = "" if cell is None or cell.over_first is None else f" ({cell.over_first.median:.2f}×)"
                row.append(text + over)
            rows.append(row)
        parts.append(table(header, rows))
    if result["targets"]:
        said = {True: "✔", False: "✘", None: "not measured"}
        rows = [[held.text, held.found.text() if held.found else "", said[held.reached]] for held in targets(result)]
        parts.append(table(["target", "found", ""], rows))
    parts += [f"- {note}" for note in result["notes"]]
    return "\n\n".join(parts) + "\n"


def picture(result: Result, file: Path) -> None:
    """Bars of the suite's `pictured` metrics, a row a group: every round a dot, the median a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (group, metric, shown)
        for group, cases in result["groups"].items()
        for metric in result["pictured"]
        if (shown := {case: values for case in cases if (values := rounds_of(result, group, case, metric))})
    ]
    if not panels:
        return
    columns = len(result["pictured"])
    rows = -(-len(panels) // columns)
    tallest = min(MOST_BARS, max(len(shown) for _, _, shown in panels))
    size = (5.6 * columns, rows * (1.2 + 0.32 * tallest))
    canvas, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (group, metric, shown) in zip(axes.flat, panels, strict=False):
        _bars(axis, group, metric, dict(list(shown.items())[:MOST_BARS]), result["metrics"][metric])
    canvas.suptitle(f"{result['suite']}: {result['hardware']['cpu']}, {load(result).split(' **')[0]}", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=110)
    plt.close(canvas)


def _bars(axis: Any, group: str, metric: str, shown: dict[str, list[float]], told: dict[str, Any]) -> None:
    from statistics import median

    for row, (name, values) in enumerate(shown.items()):
        scaled = [value * told["scale"] for value in values]
        axis.barh(row, median(scaled), color="#2a6f97" if name.startswith("bigtrain") else "#a9b8c4", height=0.7)
        axis.plot(scaled, [row] * len(scaled), ".", color="#1b1b1b", markersize=4)
    axis.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.tick_params(axis="x", labelsize=8)
    arrow = {"higher": "higher is better", "lower": "lower is better", None: ""}[told["better"]]
    axis.set_title(f"{group}: {metric}", fontsize=9, loc="left")
    axis.set_xlabel(", ".join(filter(None, (told["unit"], arrow))), fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def comparison(now: Result, before: Result) -> str:
    """What two results allow to be said of each other."""
    where = f"{before['hardware']['cpu']}, {before['date'][:10]}, commit {(before['commit'] or 'unknown')[:10]}"
    if same_machine(now, before):
        return f"{now['suite']}: compared with {where}, figures and ratios"
    return f"{now['suite']}: the baseline is another machine's ({where}): times are not compared, only ratios"
