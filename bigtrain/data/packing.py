"""Packing: which tokens of a split make up which sample. What is computed here is indices; no token is read.

A layout is a sequence: sample -> its ranges [start, stop) of the split's tokens, in order, at most S+1 tokens together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.shards import Shards
from bigtrain.errors import UserError

Range = tuple[int, int]
Integers = NDArray[np.int64]

BLOCK_DOCUMENTS, BLOCK_SEQUENCES = 1 << 18, 1 << 22
"""So many documents (or, if they are long, sequences) are packed among themselves: memory stays bounded, and a sample's
documents lie near to each other on the disk. What a block wastes is the room in its last sequences."""


class Layout(Protocol):
    """Where each sample's tokens lie."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> list[Range]: ...


class Concat:
    """Documents laid end to end and cut every S tokens: sample k has tokens [kS, kS+S+1)."""

    def __init__(self, shards: Shards, sequence_length: int, *, remainder: bool) -> None:
        self.tokens, self.step = shards.tokens, sequence_length
        targets = max(0, self.tokens - 1)
        self._len = -(-targets // self.step) if remainder else targets // self.step

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> list[Range]:
        start = index * self.step
        return [(start, min(start + self.step + 1, self.tokens))]


class Single:
    """A document a sample: its first S+1 tokens."""

    def __init__(self, shards: Shards, sequence_length: int) -> None:
        self.shards, self.most = shards, sequence_length + 1

    def __len__(self) -> int:
        return self.shards.documents

    def __getitem__(self, index: int) -> list[Range]:
        start, stop = self.shards.bounds(index)
        return [(start, min(stop, start + self.most))]


class BestFit:
    """Whole documents packed together, read from an index on the disk.

    A document of more than S+1 tokens is cut every S, so that neighbouring parts share a token: the last target of one
    is the first input of the next. All parts are full but the last, which is packed like a document. A document of one
    token has no target, and is left out.
    """

    def __init__(self, folder: Path) -> None:
        self._first = _mapped(folder / "samples.bin")
        """Of each sample its first range, and at the end their number."""
        self._ranges = _mapped(folder / "ranges.bin").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: int) -> list[Range]:
        first, last = self._first[index : index + 2].tolist()
        return [(start, stop) for start, stop in self._ranges[first:last].tolist()]


def best_fit(shards: Shards, sequence_length: int, cache: Path) -> BestFit:
    """The layout of whole documents in sequences; its index is made under `cache` the first time.

    Raises:
        UserError: the index cannot be written.
    """
    name = hashlib.sha256(f"{shards.index_sha256} {sequence_length}".encode()).hexdigest()[:16]
    folder = cache / f"best_fit-{name}"
    if not folder.is_dir():
        if shards.documents > BLOCK_DOCUMENTS:  # about a second for a million
            print(f"data: packing {shards.documents:,} documents, once", file=sys.stderr)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=cache, prefix=f".{folder.name}.", suffix=".tmp"))
            try:
                temporary.chmod(0o755)
                _write(shards, sequence_length, temporary)
                if not folder.is_dir():  # else another process was quicker: it made the same
                    temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise UserError(f"The index of data.packing=best_fit cannot be written into {cache}: {error}.") from error
    return BestFit(folder)


def best_fit_decreasing(lengths: Integers, room: int) -> Integers:
    """The bin of each item, numbered by the first item in it; a bin holds `room` tokens, no item (N,) is longer.

    Best-fit decreasing: from the longest item to the shortest, each goes into the bin with the least room that it fits
    into (Ding et al., "Fewer Truncations Improve Language Modeling", 2024, arXiv:2404.10830). Items of one length, and
    bins with the same room left, are all handled at once (Krell et al. 2021, arXiv:2107.02027): the work goes with
    `room`, not with the number of items.
    """
    counts = np.bincount(lengths, minlength=room + 1)
    bins = 0
    rooms: list[int] = []  # that some bins have left, ascending
    runs: dict[int, list[Range]] = {}  # room -> runs of bins [first, last) with so much left
    filled: list[Integers] = []  # the bins of the items, from the longest to the shortest

    def put(first: int, last: int, left: int) -> None:
        if left and first < last:
            if not runs.setdefault(left, []):
                insort(rooms, left)
            runs[left].append((first, last))

    for length in np.flatnonzero(counts)[::-1].tolist():
        items = int(counts[length])
        while items:
            at = bisect_left(rooms, length)
            here = rooms[at] if at < len(rooms) else room
            each = min(here // length, items)  # until a bin holds no more of them, it is the tightest
            if at < len(rooms):
                first, last = runs[here].pop()
                if not runs[here]:
                    del rooms[at]
            else:
                first, last = bins, bins + items // each
                bins = last
            upto = first + min(last - first, items // each)
            filled.append(np.repeat(np.arange(first, upto, dtype=np.int64), each))
            items -= (upto - first) * each
            put(first, upto, here - each * length)
            put(upto, last, here)
    found = np.empty(len(lengths), np.int64)
    found[np.argsort(-lengths, kind="stable")] = np.concatenate(filled) if filled else 0
    _, appears, number = np.unique(found, return_index=True, return_inverse=True)
    renamed = np.empty(len(appears), np.int64)
    renamed[np.argsort(appears)] = np.arange(len(appears))
    return renamed[number]


def _write(shards: Shards, sequence_length: int, folder: Path) -> None:
    """samples.bin and ranges.bin: samples in the order of their first tokens, and so are the ranges of each."""
    at = 0
    with (folder / "samples.bin").open("wb") as samples, (folder / "ranges.bin").open("wb") as ranges:
        for starts, stops in _blocks(shards, sequence_length):
            number = best_fit_decreasing(stops - starts, sequence_length + 1)
            order = np.argsort(number, kind="stable")
            np.stack([starts[order], stops[order]], axis=1).astype("<u8").tofile(ranges)
            counts = np.bincount(number)
            (at + np.cumsum(counts) - counts).astype("<u8").tofile(samples)
            at += len(starts)
        np.array([at], "<u8").tofile(samples)
        for file in (samples, ranges):
            file.flush()
            os.fsync(file.fileno())


def _blocks(shards: Shards, sequence_length: int) -> Iterator[tuple[Integers, Integers]]:
    """(starts, stops) of the documents' parts, a block of documents at a time."""
    first = begin = 0
    while first < shards.documents:
        ends = shards.ends(first, min(first + BLOCK_DOCUMENTS, shards.documents))
        most = begin + BLOCK_SEQUENCES * sequence_length
        ends = ends[: max(1, int(np.searchsorted(ends, most, side="right")))]
        starts = np.concatenate([[begin], ends[:-1]])
        parts = -(-(ends - starts - 1) // sequence_length)
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        part_starts = np.repeat(starts, parts) + part * sequence_length
        yield part_starts, np.minimum(part_starts + sequence_length + 1, np.repeat(ends, parts))
        first, begin = first + len(ends), int(ends[-1])


def _mapped(path: Path) -> NDArray[Any]:
    return np.memmap(path, "<u8", mode="r").view(np.ndarray) if path.stat().st_size else np.empty(0, "<u8")
