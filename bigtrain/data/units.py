"""Cuts the sources into units of work: the same ones, whoever works on them and however many work at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from bigtrain.data.settings import Reading
from bigtrain.data.sources import HUB, JSONL, PARQUET, Source

SMALLEST, LARGEST, ABOUT = 1 << 20, 256 << 20, 256
"""Bytes of a unit, and how many units there are in between."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of one source."""

    source: int
    """Its number in the list of sources."""
    start: int = 0
    stop: int | None = None
    """[start, stop): of JSON lines the lines that begin in these bytes, of Parquet these row groups, of a hub set these
    files; None: to the end."""
    size: int = 0
    """Bytes as stored, about; 0 for the hub, which does not say."""
    commit: str | None = None
    """Of a hub set: the commit that was found when the units were planned."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one process reads at a time."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def size(self) -> int:
        """Bytes as stored, about; 0 for the hub."""
        return sum(piece.size for piece in self.slices)


def plan_units(sources: Sequence[Source], reading: Reading) -> list[Unit]:
    """The units, about min(256 MB, max(1 MB, total / 256)) each; read in their order they give every document once.

    Small files are put together; JSON lines are cut between lines and Parquet between row groups; text, compressed
    files and Arrow stay whole, and each file of a hub set is a unit. With `max_documents` there is one unit.

    Raises:
        UserError: a Parquet file or a hub set cannot be opened.
        RunError: an object store or server does not answer, after several tries.
    """
    if reading.max_documents is not None:
        return [Unit(0, whole(sources))]
    target = min(LARGEST, max(SMALLEST, sum(source.size for source in sources) // ABOUT))
    units: list[list[Slice]] = []
    room = -1  # bytes that the last unit still takes
    for number, source in enumerate(sources):
        for piece in _pieces(number, source, reading, target):
            if source.kind == HUB or piece.size > room:
                units.append([piece])
                room = -1 if source.kind == HUB else target - piece.size
                continue
            room -= piece.size
            last = units[-1]
            if last[-1].source == number:  # two that touch are one
                last[-1] = replace(last[-1], stop=piece.stop, size=last[-1].size + piece.size)
            else:
                last.append(piece)
    return [Unit(number, tuple(pieces)) for number, pieces in enumerate(units)]


def whole(sources: Sequence[Source]) -> tuple[Slice, ...]:
    """Each source from its beginning to its end."""
    return tuple(Slice(number, size=source.size) for number, source in enumerate(sources))


def _pieces(number: int, source: Source, reading: Reading, target: int) -> Iterator[Slice]:
    """The smallest pieces that a source is cut into."""
    if source.kind == HUB:
        from bigtrain.data import hub

        commit = hub.commit_of(source.name, reading.revision)
        for file in range(hub.count_files(source.name, reading.name, reading.split, commit)):
            yield Slice(number, file, file + 1, commit=commit)
    elif source.size > target and source.kind == JSONL and source.name.lower().endswith((".jsonl", ".json")):
        count = -(-source.size // target)
        cuts = [source.size * part // count for part in range(count)]
        for start, stop in zip(cuts, [*cuts[1:], None], strict=True):
            yield Slice(number, start, stop, (source.size if stop is None else stop) - start)
    elif source.size > target and source.kind == PARQUET:
        from bigtrain.data.readers import opened_parquet

        with opened_parquet(source) as file:
            rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = [source.size * end // max(1, sum(rows)) for end in accumulate(rows, initial=0)]
        for group, (start, stop) in enumerate(pairwise(ends)):
            yield Slice(number, group, group + 1, stop - start)
    else:
        yield Slice(number, size=source.size)
