"""The support matrix of the README, made from what the tests ran.

A test that held says so: `ran("zero2", "bf16")`; one that saw a clear refusal: `ran("zero3", "tensor parallel", "–")`.
`make support` after `make test` and `make test-cluster` writes `tests/support.json` and the README's tables from it;
`python -m tests.support --check` fails where the README claims what the last tests did not run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / ".pytest_cache" / "support.jsonl"
KEPT = ROOT / "tests" / "support.json"
BEGIN, END = "<!-- support: written by `make support` from what the tests ran -->", "<!-- support ends -->"

Mark = Literal["✔", "–", "GPU"]

ENGINES = {
    "rows": ["local", "ddp", "fsdp", "horovod", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload",
             "zero3_nvme", "zeropp"],
    "columns": ["1 rank", "2 ranks", "3 ranks", "4 ranks", "bf16", "fp16", "fp8", "selective", "full",
                "activations on host", "sequence parallel", "tensor parallel", "second partition", "quantised messages",
                "Hugging Face", "resumed to the bit", "killed, resumed", "elastic"],
}  # fmt: skip
LAUNCHERS = {
    "rows": ["local", "torchrun", "deepspeed", "ssh", "slurm", "horovod", "kubernetes", "sweep (-m)"],
    "columns": ["builder", "real run", "2 hosts", "stopped, goes on", "lost host"],
}


def ran(row: str, column: str, mark: Mark = "✔") -> None:
    """A test held for this cell; `row` and `column` are those of the tables above."""
    assert any(row in table["rows"] and column in table["columns"] for table in (ENGINES, LAUNCHERS)), (row, column)
    RECORDS.parent.mkdir(exist_ok=True)
    line = json.dumps([row, column, mark], ensure_ascii=False) + "\n"
    file = os.open(RECORDS, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # several workers write: a line at a time
    os.write(file, line.encode())
    os.close(file)


def recorded() -> dict[str, str]:
    """The marks of the last runs, as "row | column"."""
    lines = RECORDS.read_text(encoding="utf-8").splitlines() if RECORDS.exists() else []
    return dict(sorted((f"{row} | {column}", mark) for row, column, mark in map(json.loads, lines)))


def table(of: dict[str, list[str]], marks: dict[str, str], corner: str) -> str:
    """One Markdown table; columns and rows without any mark are left out."""
    rows = [row for row in of["rows"] if any(f"{row} | {column}" in marks for column in of["columns"])]
    columns = [column for column in of["columns"] if any(f"{row} | {column}" in marks for row in rows)]

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    head = [line([corner, *columns]), line(["---"] * (len(columns) + 1))]
    body = [line([f"`{row}`", *(marks.get(f"{row} | {column}", "") for column in columns)]) for row in rows]
    return "\n".join([*head, *body])


def render(marks: dict[str, str]) -> str:
    """The README's section."""
    return "\n".join([BEGIN, "", table(ENGINES, marks, "engine"), "", table(LAUNCHERS, marks, "launcher"), "", END])


def main(words: list[str]) -> int:
    """Write the tables, or with `--check` compare."""
    marks = recorded()
    if "--check" in words:
        there = {key.split(" | ")[0] for key in marks}
        claimed = json.loads(KEPT.read_text(encoding="utf-8"))
        missing = [key for key, mark in claimed.items() if marks.get(key) != mark and key.split(" | ")[0] in there]
        print("\n".join(f"the README claims what no test ran: {key}" for key in missing))
        return 1 if missing else 0
    KEPT.write_text(json.dumps(marks, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(before + render(marks) + rest.partition(END)[2], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
