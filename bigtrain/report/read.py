"""Run folders as data. Any file of one may be missing, cut short or hostile; only what is no run folder is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.telemetry.metrics import FILE_NAME as METRICS
from bigtrain.telemetry.metrics import Number, numbers, read_lines

LARGEST_TEXT = 200_000
"""Characters of a configuration or sample that go into a page."""


@dataclass(frozen=True, slots=True)
class Line:
    """One log point: the step, and its metrics with NaN and infinity as such."""

    step: int
    metrics: dict[str, Number]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder holds, as far as a report shows it."""

    path: Path
    label: str
    train: list[Line]
    eval: list[Line]
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    sample: str
    confusion: dict[str, Any]
    """`matrix` and `names` of a classifier's last evaluation; empty without."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over the steps: known and finite values, and where it was not finite."""

    steps: list[int]
    tokens: list[int] | None
    values: list[float]
    not_finite: list[tuple[int, int | None, str]]
    """(step, tokens, `nan` | `inf` | `-inf`)"""


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Every run folder, labelled so that no two labels are equal.

    Raises:
        UserError: one of them is no run folder.
    """
    folders = [_run_folder(path) for path in paths]
    siblings = len(folders) > 1 and len({folder.resolve().parent for folder in folders}) == 1
    labels = ["/".join(folder.resolve().parts[-1 if siblings else -2 :]) for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]
    return [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _run_folder(path: Path) -> Path:
    if (path / METRICS).is_file() or (path / "config.yaml").is_file():
        return path
    if not path.exists():
        raise UserError(f"there is no {path}.")
    if not path.is_dir():
        raise UserError(f"{path} is a file; a run folder is wanted, such as runs/quickstart/<id>.")
    inside = sorted(file.parent for file in path.glob(f"*/{METRICS}")) or sorted(
        file.parent for file in path.glob(f"*/*/{METRICS}")
    )
    hint = f" There are run folders in it: {', '.join(map(str, inside[:5]))}." if inside else ""
    raise UserError(f"{path} is no run folder: it has neither {METRICS} nor config.yaml.{hint}")


def _read(folder: Path, label: str) -> Run:
    lines = read_lines(folder / METRICS)
    config_text = _text(folder / "config.yaml")
    return Run(
        path=folder,
        label=label,
        train=[Line(line["step"], numbers(line)) for line in lines if line["split"] == "train"],
        eval=[Line(line["step"], numbers(line)) for line in lines if line["split"] == "eval"],
        config_text=config_text,
        config=_yaml(config_text),
        environment=_json(_text(folder / "environment.json")),
        sample=_text(folder / "sample.txt"),
        confusion=_json(_text(folder / "confusion.json")),
    )


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(LARGEST_TEXT)
    except OSError:
        return ""


def _yaml(text: str) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        depth = 0  # bigtrain writes no alias and nothing deep; a hostile file makes lists without end of them
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 50 or isinstance(event, yaml.AliasEvent):
                return {}
        value = yaml.load(text, loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def metric_names(lines: Sequence[Line]) -> list[str]:
    """The names of all metrics, in the order in which they first come."""
    return list(dict.fromkeys(name for line in lines for name in line.metrics))


def curve(lines: Sequence[Line], name: str, *, limit: int = 2000) -> Curve:
    """A metric's curve in at most `limit` points, its peaks and dips included."""
    points: list[tuple[int, int | None, float]] = []
    not_finite: list[tuple[int, int | None, str]] = []
    for line in lines:
        value, tokens = line.metrics.get(name), line.metrics.get("tokens")
        whole = int(tokens) if tokens is not None and math.isfinite(tokens) else None
        if value is None:
            continue
        if math.isfinite(value):
            points.append((line.step, whole, float(value)))
        else:
            not_finite.append((line.step, whole, str(float(value))))
    points = thin(points, limit)
    tokens_known = all(point[1] is not None for point in points)
    return Curve(
        steps=[point[0] for point in points],
        tokens=[point[1] or 0 for point in points] if tokens_known else None,
        values=[point[2] for point in points],
        not_finite=not_finite[: limit // 10],
    )


def thin(points: Sequence[tuple[int, int | None, float]], limit: int) -> list[tuple[int, int | None, float]]:
    """At most `limit` points (4 or more): the first, the last, the lowest and highest of equal stretches between."""
    if len(points) <= limit:
        return list(points)
    middle, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for index in range(stretches):
        stretch = range(index * len(middle) // stretches, (index + 1) * len(middle) // stretches)
        low = min(stretch, key=lambda i: middle[i][2])
        high = max(stretch, key=lambda i: middle[i][2])
        kept.extend(middle[i] for i in sorted({low, high}))
    return [*kept, points[-1]]


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `{"optimizer.lr": 0.001, …}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
