"""What the ledger prints and writes: documents' texts, a table for people, JSON lines for `data.exclude`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.ledger.opened import OpenedRun, Part
from bigtrain.telemetry.progress import console

FIRST_WORDS = 60
"""Characters of a text in a table."""


class Texts:
    """Tokens back to text, with the run's own tokenizer."""

    def __init__(self, run: OpenedRun) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(run.data.tokenizer_path / "tokenizer.json"))
        self._shards = {name: packed.shards for name, packed in run.sets.items()}

    def part(self, part: Part) -> str:
        """The text of a part of a document, without its end of text. A character that was cut in two is `\\ufffd`."""
        begin, _ = self._shards[part.sample.domain].bounds(part.document)
        return self._decode(part.sample.domain, begin + part.start, begin + part.stop - part.ends)

    def document(self, domain: str, number: int) -> str:
        """The text of a whole document, as it was tokenised."""
        begin, end = self._shards[domain].bounds(number)
        return self._decode(domain, begin, end - 1)

    def _decode(self, domain: str, start: int, stop: int) -> str:
        ids = self._shards[domain].read(start, stop).tolist() if stop > start else []
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


def place(file: str, offset: int) -> str:
    """`file:offset`."""
    return f"{file}:{offset}"


def words_of(text: str) -> str:
    """The beginning of a text, on one line; of control characters nothing reaches the terminal."""
    line = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * FIRST_WORDS].split()))
    return line[:FIRST_WORDS]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Plain columns with nothing cut, so that file names can be copied; all but the last two are numbers."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    for row in cells:
        numbers = [cell.rjust(width) for cell, width in zip(row[:-2], widths, strict=False)]
        tell("  ".join([*numbers, row[-2].ljust(widths[-2]), row[-1]]).rstrip())


def tell(message: str) -> None:
    """One line for people, on standard output."""
    console().print(message, markup=False, soft_wrap=True, highlight=False)


def write_lines(entries: Iterable[Mapping[str, Any]], out: Path | None = None) -> None:
    """JSON lines, on standard output or into a file, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    if out is None:
        sys.stdout.writelines(lines)
        return
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{out} cannot be written: {error.strerror or error}.") from error
