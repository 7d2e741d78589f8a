"""The table on the terminal, a line for each set-up that is done, and `verify.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigtrain.telemetry.progress import console
from bigtrain.verify.judge import Row

STYLE = {"ok": "green", "FAIL": "bold red", "not here": "dim"}


def line(row: Row) -> str:
    """Of one set-up, said as soon as it is done."""
    difference = "" if row.difference is None else f"  difference {row.difference:.1e}"
    seconds = "" if row.seconds is None else f"  {row.seconds:.1f} s"
    note = f"  {row.note}" if row.note else ""
    return f"{row.verdict:<8}  {row.group}: {row.name}{difference}{seconds}{note}"


def show(rows: Sequence[Row]) -> None:
    """The whole table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (
        ("set-up", "left"),
        ("ranks", "right"),
        ("first loss", "right"),
        ("largest diff.", "right"),
        ("bound", "right"),
        ("verdict", "left"),
        ("s", "right"),
        ("MB a rank", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading != "set-up")  # type: ignore[arg-type]
    for row in rows:
        style = STYLE[row.verdict]
        table.add_row(
            f"{row.group}: {row.name}",
            str(row.ranks),
            "" if row.first_loss is None else f"{row.first_loss:.6f}",
            "" if row.difference is None else f"{row.difference:.1e}",
            "" if row.bound is None else f"{row.bound:.0e}" if row.bound else "0",
            f"[{style}]{row.verdict}[/]",
            "" if row.seconds is None else f"{row.seconds:.1f}",
            "" if row.memory is None else f"{row.memory / 1e6:.0f}",
        )
    out = console()
    out.print(table)
    for row in rows:
        if row.note:
            out.print(f"{row.group}: {row.name}: {row.note}", style=STYLE[row.verdict], markup=False, highlight=False)


def write(file: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """`verify.json`: the same, for programs."""
    plain = [
        {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        for row in map(asdict, rows)
    ]
    file.write_text(json.dumps(about | {"rows": plain}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
