"""Samples of S tokens out of shards. Reading one costs microseconds, and nothing is kept in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.order import Order, WindowedOrder
from bigtrain.data.packing import Concat, Layout, Range, Single, best_fit
from bigtrain.data.shards import Shards

IGNORE = -100
"""A label that is no target (the `ignore_index` of torch's cross-entropy)."""

Sample = dict[str, NDArray[np.int64]]


class Piece(NamedTuple):
    """Neighbouring tokens of one document: [start, stop) of the split."""

    document: int
    start: int
    stop: int


def open_set(
    shards: Shards,
    *,
    sequence_length: int,
    packing: Literal["concat", "best_fit", "none"],
    document_masks: bool,
    pad_id: int,
    remainder: bool,
    cache: Path,
    without: NDArray[np.int64] | None = None,
    shuffle_shards: int | None = None,
    fetch: Callable[[Sequence[str]], None] | None = None,
) -> PackedSet:
    """The samples of a split.

    Args:
        shards: its tokens and documents.
        sequence_length: S, tokens a sample.
        packing: "concat": documents end to end, cut every S tokens; "best_fit": whole documents together, none that
            fits is cut (`bigtrain.data.packing.BestFit`); "none": a document a sample, its first S+1 tokens.
        document_masks: samples carry `document_ids`, and no label is a token of another document than its input.
        pad_id: what fills up samples that are too short.
        remainder: concat: what is left after the last whole sample is one too. The other ways leave nothing over.
        cache: a folder for the index of best_fit, which is made once.
        without: documents (numbers in the split) whose tokens are taken out of their samples. These are shorter then;
            every other token stays in its sample, in order.
        shuffle_shards: the order of training mixes samples within groups of so many shards; None: over the whole set.
        fetch: is told the shards that will be read next, those needed first in front.

    Raises:
        UserError: the index cannot be written.
    """
    layout: Layout
    if packing == "best_fit":
        layout = best_fit(shards, sequence_length, cache)
    elif packing == "none":
        layout = Single(shards, sequence_length)
    else:
        layout = Concat(shards, sequence_length, remainder=remainder)
    return PackedSet(
        shards,
        layout,
        sequence_length=sequence_length,
        pad_id=pad_id,
        document_masks=document_masks,
        without=without,
        shuffle_shards=shuffle_shards,
        fetch=fetch,
    )


class PackedSet:
    """Samples in a layout. A sample's tokens t, S+1 at most, become `input_ids` = t[:-1] and `labels` = t[1:], padded
    up to S; -100 is no target.

    Of best_fit and with `document_masks` a document's last token has no target, as the next document's first does not
    follow from it. With `document_masks` samples carry `document_ids` too, from 0 on in each sample; padding has one of
    its own.
    """

    def __init__(
        self,
        shards: Shards,
        layout: Layout,
        *,
        sequence_length: int,
        pad_id: int,
        document_masks: bool,
        without: NDArray[np.int64] | None = None,
        shuffle_shards: int | None = None,
        fetch: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        self.shards, self.layout, self.sequence_length, self.pad_id = shards, layout, sequence_length, pad_id
        self.document_masks, self.shuffle_shards = document_masks, shuffle_shards
        self._fetch, self._fetched = fetch, -1  # the window whose shards, and the next one's, were asked for
        self._mixed = isinstance(layout, Concat)  # a range holds several documents
        self._apart = document_masks or not self._mixed
        bounds = np.array(
            [shards.bounds(int(document)) for document in np.unique(without)] if without is not None else []
        )
        self._without = bounds.reshape(-1, 2).astype(np.int64)
        self._plain = self._mixed and not document_masks and not len(bounds)
        self._whole = (shards.tokens - 1) // sequence_length
        """Of concat: samples that are not padded."""

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: int) -> Sample:
        """`input_ids` and `labels`, and `document_ids` where they are wanted: int64 of shape (S,)."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Sample:
        """The samples `indices`, stacked: int64 of shape (B, S)."""
        count, length = len(indices), self.sequence_length
        numbers: list[int] = np.asarray(indices).tolist()  # for a few, Python's own are faster
        if self._plain and numbers and min(numbers) >= 0 and max(numbers) < self._whole:
            stored = self.shards.read_many([number * length for number in numbers], length + 1)
            return {"input_ids": stored[:, :-1].astype(np.int64), "labels": stored[:, 1:].astype(np.int64)}
        tokens = np.empty((count, length + 1), np.int64)
        begins = np.zeros((count, length + 1), np.bool_)  # where another document does
        held = np.empty((count, 1), np.int64)
        for row, number in enumerate(numbers):
            at = 0
            for start, stop in self._ranges(number):
                begins[row, at] = True
                tokens[row, at : at + stop - start] = self.shards.read(start, stop)
                at += stop - start
            held[row] = at
        inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()  # neither changes with the other
        if self._apart:
            labels[begins[:, 1:]] = IGNORE
        padded = np.arange(length) >= held - 1
        if padded.any():
            inputs[padded], labels[padded] = self.pad_id, IGNORE
        batch = {"input_ids": inputs, "labels": labels}
        if self.document_masks:
            begins[:, :-1] |= np.arange(length) == held - 1
            begins[:, 0] = False
            batch["document_ids"] = begins[:, :-1].cumsum(axis=1, dtype=np.int64)
        return batch

    def order(self, seed: int) -> Order | WindowedOrder:
        """The order of training under this seed."""
        if self.shuffle_shards is None:
            return Order(len(self), seed)
        block = -(-len(self) // max(1, len(self.shards.names)))  # a shard's worth
        return WindowedOrder(len(self), seed, max(1, block), self.shuffle_shards)

    def prefetch(self, order: Order | WindowedOrder, position: int) -> None:
        """Reading in this order is at `position`: shards of this window and the next are fetched in the background."""
        if self._fetch is None or not isinstance(order, WindowedOrder):
            return
        window = order.window_of(position)
        if window != self._fetched:
            self._fetched = window
            ranges = [*order.ranges(window), *order.ranges(window + 1)]
            self._fetch(list(dict.fromkeys(name for start, stop in ranges for name in self._shards_of(start, stop))))

    def _shards_of(self, start: int, stop: int) -> list[str]:
        """The shards that hold the samples [start, stop), or most of them where packing moves documents about."""
        last = self.layout[stop - 1][-1][1] - 1
        first, last = (bisect_right(self.shards.starts, token) - 1 for token in (self.layout[start][0][0], last))
        return self.shards.names[first : last + 1]

    def pieces(self, index: int) -> list[Piece]:
        """The tokens of a sample, in order: read one after the other, they are its inputs and its last label."""
        return [piece for start, stop in self._kept(index) for piece in _documents(self.shards, start, stop)]

    def _ranges(self, index: int) -> Iterator[Range]:
        """What is read; each from one document only, where documents are told apart."""
        if not (self._mixed and self.document_masks):
            return self._kept(index)
        return ((piece.start, piece.stop) for piece in self.pieces(index))

    def _kept(self, index: int) -> Iterator[Range]:
        """The sample's ranges but for the documents that are taken out."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if not len(self._without):
            yield from self.layout[index]
            return
        for start, stop in self.layout[index]:
            first = int(np.searchsorted(self._without[:, 1], start, side="right"))
            last = int(np.searchsorted(self._without[:, 0], stop, side="left"))
            at = start
            for out, back in self._without[first:last].tolist():
                if at < out:
                    yield at, out
                at = back
            if at < stop:
                yield at, stop


def _documents(shards: Shards, start: int, stop: int) -> Iterator[Piece]:
    """The range, cut where a document ends."""
    first = int(shards.documents_of(start, start + 1)[0])
    ends = shards.ends(first, min(first + stop - start, shards.documents))  # no document is empty
    inside = ends[: int(np.searchsorted(ends, stop, side="left"))].tolist()
    for number, (left, right) in enumerate(pairwise([start, *inside, stop])):
        yield Piece(first + number, left, right)
