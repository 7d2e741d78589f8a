"""Exact deduplication: of documents with the same text, the first stays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ExactDedup:
    """A corpus step: it sees sketches of all documents at once, 16 bytes a document.

    A sketch is BLAKE2b of the text, cut at 128 bits: in 1e12 documents, the chance that any two different ones share
    a sketch is about 1e-15 (birthday bound), so that no text is compared again.
    """

    corpus = True
    reason = "a copy of an earlier document"

    def sketch(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """The sketches of `texts`: (n, 2) uint64. They depend on nothing but the text."""
        digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
        return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)

    def duplicates(
        self, sketches: NDArray[Any], alive: NDArray[np.bool_], text_of: Callable[[int], str]
    ) -> NDArray[np.int64]:
        """For each of N documents -1, or the index of the earlier one that has the same text: (N,) int64.

        Only documents that are `alive`, (N,) bool, count. No text is asked of `text_of`. Memory: about 60 bytes a
        document at its peak.
        """
        instead = np.full(len(sketches), -1, np.int64)
        living = np.flatnonzero(alive)
        if not len(living):
            return instead
        keys = sketches[living]
        order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal sketches the first document comes first
        keys = keys[order]
        first = np.append(True, (keys[1:] != keys[:-1]).any(axis=1))
        order = living[order]
        kept = order[first]
        instead[order[~first]] = kept[np.cumsum(first)[~first] - 1]
        return instead
