"""Near-deduplication with MinHash and locality-sensitive hashing.

Two documents are near-duplicates where the Jaccard similarity of their sets of shingles (runs of 5 words) is at least
the threshold: J(A, B) = |A ∩ B| / |A ∪ B|. Broder (1997), "On the resemblance and containment of documents"; the LSH of
Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3; for language models Lee et al. (2021),
arXiv:2107.06499, appendix A (5-grams of words), GPT-3 (arXiv:2005.14165, appendix A) and SlimPajama (J >= 0.8).

The hash values of `permutations` random permutations are cut into bands of `rows`. Two documents become candidates
where all rows of a band agree, which happens with

    P(J) = 1 - (1 - J^rows)^bands

`rows` is the largest number for which P(threshold) is at least `recall`, so that few others become candidates. With the
defaults (threshold 0.8, 128 permutations) these are 21 bands of 6 rows:

    J         0.33   0.43   0.52   0.58   0.63   0.68   0.72   0.77   0.82   0.88
    P(J)      0.025  0.119  0.348  0.538  0.724  0.876  0.960  0.993  0.999  1.000
    measured  0.024  0.128  0.335  0.540  0.735  0.861  0.974  0.993  1.000  1.000

measured by `benchmarks/data_dedup.py` (which draws the curve, too) on 200 to 670 pairs a point of real documents. Of
10,000 of these with 2,500 planted copies, 99.9 % of what should go goes, and nothing else.

Each candidate is then verified: its Jaccard similarity is computed from the texts, exactly, so that what is dropped is
a near-duplicate (up to collisions of 64-bit hashes). What this step misses is 1 - P(J).

The permutations are datasketch's "affine64": named, documented and kept over its versions, so that the same recipe
keeps the same documents, and independent, as P(J) needs ("affine32" finds 62.6 % of pairs with J = 0.6 instead of
63.3 %). rensa's hash values come five times as fast, which would save half of a sketch's time, but they changed between
its versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.clean.ngrams import character_hashes, ngrams, word_hashes
from bigtrain.errors import UserError

STAYING = 16
"""Within a group of equal bands, a document is compared with this many that are not near to each other. Where
boilerplate brings thousands of unlike documents into a group, this bounds the work; they have another chance a band."""


def bands_and_rows(threshold: float, permutations: int, recall: float) -> tuple[int, int]:
    """The most rows, and bands for them, with which a pair at the threshold is found with probability `recall`.

    Raises:
        UserError: not even one row does it.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if found(threshold, bands, rows) >= recall:
            return bands, rows
    raise UserError(
        f"near_dedup cannot find pairs at threshold={threshold} with recall={recall} from permutations={permutations}: "
        f"more permutations, or a higher threshold."
    )


def found(jaccard: float, bands: int, rows: int) -> float:
    """The probability that two documents of this similarity become candidates: 1 - (1 - J^rows)^bands."""
    return float(1 - (1 - jaccard**rows) ** bands)


class NearDedup:
    """A corpus step: it sees sketches of all documents at once, 8 bytes a band and document."""

    corpus = True
    reason = "a near-copy of an earlier document"

    def __init__(
        self, *, threshold: float, unit: Literal["words", "characters"], ngram: int, permutations: int, recall: float
    ) -> None:
        """What the settings mean is told in `bigtrain.data.clean.near_dedup`."""
        if not 0 < threshold <= 1:
            raise UserError(f"near_dedup: threshold={threshold} is a Jaccard similarity, above 0 and at most 1.")
        if ngram < 1 or permutations < 1:
            raise UserError(f"near_dedup: ngram={ngram} and permutations={permutations} are at least 1.")
        if not 0 < recall < 1:
            raise UserError(f"near_dedup: recall={recall} is a probability between 0 and 1.")
        self.threshold, self.ngram = threshold, ngram
        self.bands, self.rows = bands_and_rows(threshold, permutations, recall)
        self._hashes = word_hashes if unit == "words" else character_hashes
        self._empty = _minhash(self.bands * self.rows)

    def sketch(self, texts: Sequence[str]) -> NDArray[np.uint64]:
        """The sketches of `texts`: (n, bands) uint64, a hash of each band. They depend on texts and settings only."""
        values = np.empty((len(texts), self.bands * self.rows), np.uint64)
        for row, text in zip(values, texts, strict=True):
            minhash = self._empty.copy()
            minhash.update_batch(ngrams(self._hashes(text), self.ngram).tolist())
            row[:] = minhash.hashvalues
        by_row = values.reshape(len(texts), self.bands, self.rows).transpose(2, 0, 1)
        bands: NDArray[np.uint64] = ngrams(by_row, self.rows)[0]
        return bands

    def shingles(self, text: str) -> NDArray[np.uint64]:
        """The set of a text's shingles as hashes, (k,) uint64, sorted; k is at least 1."""
        return np.unique(ngrams(self._hashes(text), self.ngram))

    def duplicates(
        self, sketches: NDArray[Any], alive: NDArray[np.bool_], text_of: Callable[[int], str]
    ) -> NDArray[np.int64]:
        """For each of N documents -1, or the index of the first document of its cluster: (N,) int64.

        A cluster is what near-duplicates connect, directly or over others. Only documents that are `alive`, (N,) bool,
        count. `text_of(i)` is asked for the texts of candidates, groups in the order of their first documents.
        Memory: about 50 bytes a document beside the sketches.
        """
        clusters = _Clusters(len(sketches))
        apart: set[tuple[int, int]] = set()
        living = np.flatnonzero(alive)
        for band in range(self.bands):
            for group in _groups(living, sketches[living, band]):
                self._join(group, clusters, apart, text_of)
        return clusters.kept()

    def _join(
        self, group: list[int], clusters: _Clusters, apart: set[tuple[int, int]], text_of: Callable[[int], str]
    ) -> None:
        """Joins those documents of a group that are near to one of its members that stay."""
        for _ in range(STAYING):
            if len(group) < 2:
                return
            first, *others = group
            group, mine = [], None
            for other in others:
                if clusters.root(first) == clusters.root(other):
                    continue
                if (first, other) not in apart:
                    mine = self.shingles(text_of(first)) if mine is None else mine
                    if jaccard(mine, self.shingles(text_of(other))) >= self.threshold:
                        clusters.join(first, other)
                        continue
                    apart.add((first, other))
                group.append(other)


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


class _Clusters:
    """Union-find; a cluster's root is its first document."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)

    def root(self, index: int) -> int:
        parent = self.parent
        while (above := int(parent[index])) != index:
            parent[index] = parent[above]  # path halving
            index = above
        return index

    def join(self, a: int, b: int) -> None:
        first, other = sorted((self.root(a), self.root(b)))
        self.parent[other] = first

    def kept(self) -> NDArray[np.int64]:
        """(N,): -1 for the first of each cluster, for the others that one."""
        roots = self.parent
        while not np.array_equal(above := roots[roots], roots):
            roots = above
        return np.where(roots == np.arange(len(roots)), -1, roots)


def _groups(indices: NDArray[np.int64], values: NDArray[np.uint64]) -> Iterator[list[int]]:
    """The indices that share a value, in groups of two or more, ascending; groups in the order of their first."""
    if not len(indices):
        return
    order = np.argsort(values, kind="stable")
    values = values[order]
    same = values[1:] == values[:-1]
    shared = np.append(same, False) | np.append(False, same)
    members = indices[order[shared]]
    if not len(members):
        return
    starts = np.flatnonzero(np.append(True, values[shared][1:] != values[shared][:-1]))
    ends = np.append(starts[1:], len(members))
    for group in np.argsort(members[starts]):
        yield members[starts[group] : ends[group]].tolist()


def _minhash(permutations: int) -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UserError("near_dedup needs datasketch: pip install 'bigtrain[data]'.") from error
    return MinHash(permutations, seed=1, hashfunc=int, scheme="affine64")
