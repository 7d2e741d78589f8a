"""Documents that are left out: the file of `data.exclude`, as `bigtrain data trace` and `blame` write it."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigtrain.data.documents import Document
from bigtrain.data.sources import Source
from bigtrain.errors import UserError, nearest

Exclusions = dict[int, set[int]]
"""Number of a source -> offsets at which its excluded documents begin (see `Document.offset`)."""


def read_exclusions(file: str | Path, sources: Sequence[Source]) -> Exclusions:
    """The excluded documents of `sources`, by the source's number; a source without any is not in it.

    A line of the file is a JSON object with `file`, the name of a source, and `offset`; other keys are notes. A name
    that is no absolute path is looked for from the working directory, and else among the ends of the sources' names
    (`part-3.jsonl`). A source that stands several times in `sources` (in several domains) is excluded from in each.

    Raises:
        UserError: the file cannot be read, a line is not as above, or names a source that there is not.
    """
    lines = list(_lines(Path(file).expanduser()))
    numbers = _resolve({name: where for where, name, _ in reversed(lines)}, [source.name for source in sources])
    exclusions: Exclusions = {}
    for _, name, offset in lines:
        for number in numbers[name]:
            exclusions.setdefault(number, set()).add(offset)
    return exclusions


def of_domains(file: str | Path, domains: Mapping[str, Sequence[Source]]) -> dict[str, Exclusions]:
    """The same for several domains at once, as a line may name a source of any of them.

    Raises:
        UserError: as `read_exclusions`.
    """
    together = read_exclusions(file, [source for sources in domains.values() for source in sources])
    found: dict[str, Exclusions] = {}
    first = 0
    for name, sources in domains.items():
        found[name] = {n - first: offsets for n, offsets in together.items() if first <= n < first + len(sources)}
        first += len(sources)
    return found


class Exclude:
    """Leaves the excluded documents out of a stream, and remembers what it met."""

    def __init__(self, exclusions: Mapping[int, set[int]]) -> None:
        self._due = {number: sorted(offsets) for number, offsets in exclusions.items()}
        self.nearest: dict[tuple[int, int], int] = {}
        """(source, excluded offset) -> the nearest offset at which a document began: itself, where it was found."""

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that stay, in their order; those of a source come together, with growing offsets."""
        source, passed = -1, 0
        due: list[int] = []  # the excluded offsets of this source, of which `passed` lie before the document
        for document in documents:
            if document.source != source:
                source, passed = document.source, 0
                due = self._due.get(source, [])
            if due:
                before, passed = passed, bisect_left(due, document.offset, passed)
                for offset in due[before : passed + 1]:
                    self._saw(source, offset, document.offset)
                if passed < len(due) and due[passed] == document.offset:
                    continue
            yield document

    def _saw(self, source: int, excluded: int, begun: int) -> None:
        known = self.nearest.get((source, excluded))
        if known is None or abs(begun - excluded) < abs(known - excluded):
            self.nearest[source, excluded] = begun


def merge_nearest(parts: Iterable[Mapping[tuple[int, int], int]]) -> dict[tuple[int, int], int]:
    """`Exclude.nearest` of streams that each had a part of the documents."""
    merged: dict[tuple[int, int], int] = {}
    for part in parts:
        for key, begun in part.items():
            if key not in merged or abs(begun - key[1]) < abs(merged[key] - key[1]):
                merged[key] = begun
    return merged


def check_found(
    file: str | Path,
    exclusions: Mapping[int, set[int]],
    near: Mapping[tuple[int, int], int],
    sources: Sequence[Source],
) -> None:
    """Refuses exclusions that were not met once all documents have gone by.

    Raises:
        UserError: at an excluded offset no document begins; the nearest one is named.
    """
    names = {number: sources[number].name for number in exclusions}
    met = {(names[number], offset) for (number, offset), begun in near.items() if begun == offset}
    for number, offsets in sorted(exclusions.items()):
        for offset in sorted(offsets):
            if (names[number], offset) not in met:
                raise not_met(file, names[number], offset, near.get((number, offset)))


def not_met(file: str | Path, source: str, offset: int, begun: int | None) -> UserError:
    """What is said of an excluded offset where no document begins; `begun`: where the nearest one does."""
    hint = ": it has no document" if begun is None else f"; the nearest begins at {begun}"
    return UserError(
        f"data.exclude={file}: no document begins at offset {offset} of {source}{hint}. "
        "Offsets count the bytes of the decompressed text, or the rows of a table from 0."
    )


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """(where it stands, name of the file, offset) of each line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, beside) if len(beside) <= 50 else ""
        raise UserError(f"data.exclude={path}: there is no such file.{hint}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.exclude={path} cannot be read: {error}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"data.exclude={path}, line {number}"
        try:
            entry: Any = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}). A line is {_FORM}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise UserError(f"{where}: no 'file'. A line is {_FORM}.")
        offset = entry.get("offset")
        if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < 1 << 63:
            raise UserError(f"{where}: 'offset' is a whole number from 0 on, not {offset!r}. A line is {_FORM}.")
        yield where, entry["file"], offset


_FORM = '{"file": "/data/part.jsonl", "offset": 0}, as `bigtrain data trace` writes it'


def _resolve(wanted: Mapping[str, str], names: Sequence[str]) -> dict[str, list[int]]:
    """name as given -> numbers of the sources that it means; `wanted` says where each name stands."""
    by_name: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        by_name.setdefault(name, []).append(number)
    found: dict[str, list[int]] = {}
    for given, where in wanted.items():
        absolute = str(Path(given).expanduser().absolute())
        ending = "/" + given.removeprefix("./")
        matches = [name for name in (given, absolute) if name in by_name] or [n for n in by_name if n.endswith(ending)]
        if not matches:
            raise UserError(f"{where}: {given} is none of the files of data.path.{_nearest_name(given, list(by_name))}")
        if len(set(matches)) > 1:
            raise UserError(f"{where}: {given} may be {' or '.join(matches[:3])}: write the whole name.")
        found[given] = by_name[matches[0]]
    return found


def _nearest_name(given: str, names: Sequence[str]) -> str:
    """The most alike by the whole name, else by the last part of it."""
    if len(names) > 2000:  # comparing letters takes its time
        return ""
    hint = nearest(given, names)
    if "Did you mean" in hint:
        return hint
    last = {Path(name).name: name for name in names}
    hint = nearest(Path(given).name, last)
    if "Did you mean" in hint:
        return f" Did you mean '{last[hint.split(chr(39))[1]]}'?"
    return f" There are: {', '.join(names)}." if len(names) <= 10 else ""
