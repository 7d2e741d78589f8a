"""Runs of n words (or characters) of a text as 64-bit hashes, the same in every process and on every machine."""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+")
REMEMBERED = 1 << 18
"""Words whose hashes a process remembers (about 40 MB); natural language comes back to the same ones."""

_MULTIPLIER, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= REMEMBERED:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_hash_of = _WordHashes()


def word_hashes(text: str) -> NDArray[np.uint64]:
    """(words,): a hash of each word, in order. Words are runs of letters and digits, in lower case."""
    words = WORD.findall(text.lower())
    return np.fromiter(map(_hash_of.__getitem__, words), np.uint64, len(words))


def character_hashes(text: str) -> NDArray[np.uint64]:
    """(characters,): each character of the words, in lower case; what stands between them does not count."""
    joined = "".join(WORD.findall(text.lower()))
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


def ngrams(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """(max(1, len - n + 1), …): a hash of each run of n along the first axis; of all together where there are fewer."""
    runs = max(1, len(hashes) - n + 1)
    result = np.zeros((runs, *hashes.shape[1:]), np.uint64)
    for place in range(min(n, len(hashes))):
        result += hashes[place : place + runs]
        result ^= result >> _SHIFT
        result *= _MULTIPLIER
        result ^= result >> _SHIFT
    return result
