"""Packing: samples of S tokens cut out of shards. Reading one costs microseconds; nothing is kept in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.shards import Shards

IGNORE = -100
"""A label that is no target (the `ignore_index` of torch's cross-entropy)."""

Sample = dict[str, NDArray[np.int64]]


class ConcatSet:
    """Documents laid end to end and cut every S tokens (concatenate-and-split).

    Sample k: `input_ids` = t[kS : kS+S], `labels` = t[kS+1 : kS+S+1], so that every token but the first is a target
    once. What is left after the last whole sample is dropped, or with `remainder` becomes a last, padded sample.

    With `document_masks` samples carry `document_ids` too, from 0 on in each sample (padding has one of its own), and
    a document's last token has no target: the first token of the next document does not follow from it.
    """

    def __init__(
        self, shards: Shards, sequence_length: int, pad_id: int, *, remainder: bool, document_masks: bool = False
    ) -> None:
        self.shards, self.sequence_length, self.pad_id = shards, sequence_length, pad_id
        self.document_masks = document_masks
        targets = max(0, shards.tokens - 1)
        self._len = -(-targets // sequence_length) if remainder else targets // sequence_length

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Sample:
        """`input_ids` and `labels`, and `document_ids` where they are wanted: int64 of shape (S,)."""
        if not 0 <= index < self._len:
            raise IndexError(f"sample {index} of {self._len}")
        start = index * self.sequence_length
        stop = min(start + self.sequence_length + 1, self.shards.tokens)
        sample = _sample(self.shards.read(start, stop), self.sequence_length, self.pad_id)
        if self.document_masks:
            documents = self.shards.documents_of(start, stop)
            documents -= documents[0]
            ids = np.full(self.sequence_length, documents[-1] + 1, np.int64)
            ids[: len(documents) - 1] = documents[:-1]
            last = np.flatnonzero(documents[1:] != documents[:-1])
            labels = sample["labels"].copy()
            labels[last] = IGNORE
            sample |= {"labels": labels, "document_ids": ids}
        return sample


class DocumentSet:
    """One document a sample: cut at S tokens, or padded up to S with labels of -100."""

    def __init__(self, shards: Shards, sequence_length: int, pad_id: int) -> None:
        self.shards, self.sequence_length, self.pad_id = shards, sequence_length, pad_id

    def __len__(self) -> int:
        return self.shards.documents

    def __getitem__(self, index: int) -> Sample:
        """`input_ids` and `labels`, int64 of shape (S,)."""
        if not 0 <= index < self.shards.documents:
            raise IndexError(f"document {index} of {self.shards.documents}")
        start, stop = self.shards.bounds(index)
        tokens = self.shards.read(start, min(stop, start + self.sequence_length + 1))
        return _sample(tokens, self.sequence_length, self.pad_id)


def _sample(tokens: NDArray[np.int64], length: int, pad_id: int) -> Sample:
    """At most length + 1 tokens as inputs and the tokens after them, padded to `length`."""
    if len(tokens) == length + 1:
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}
    inputs, labels = np.full(length, pad_id, np.int64), np.full(length, IGNORE, np.int64)
    inputs[: len(tokens) - 1] = tokens[:-1]
    labels[: len(tokens) - 1] = tokens[1:]
    return {"input_ids": inputs, "labels": labels}
