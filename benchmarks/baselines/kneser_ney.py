"""What a model of language must beat: interpolated modified Kneser-Ney n-grams over token ids, in NumPy alone.

    python benchmarks/baselines/kneser_ney.py PREPARED_FOLDER [--order 5]

Trains on the train split of a folder that `bigtrain prepare` made, and prints one line of JSON with the perplexity per
token of its eval split. As for a causal model with `data.packing=concat`, every token of the split but the first is a
target; n-grams do not reach over the end of a document, so its first token is predicted from its beginning alone.

Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1999), sections 3 and 4.4. (KenLM's
Python package only queries models; its trainer takes a C++ build with Boost and wants words. nltk's takes hours here.)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.shards import Shards, read_manifest

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where there are too few n-grams to estimate them, as KenLM has them."""

TUNED_ON = 20
"""One document of so many is what discounts are tuned on."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class KneserNey:
    """p(w | h) = max(c(hw) - D(c), 0) / c(h·) + γ(h) p(w | h without its first token), at last 1 / vocabulary.

    c counts occurrences for the longest n-grams; for shorter ones it counts the different tokens that stand before.
    γ(h) is what the discounts took from h. D is D1, D2, D3 for counts of 1, 2, and 3 or more, for each length.
    """

    def __init__(self, documents: Sequence[NDArray[Any]], order: int, vocabulary: int) -> None:
        """Counts `documents`, arrays (length,) of ids below `vocabulary`; `order` is the longest n-gram's length."""
        self.order, self.vocabulary, self.base = order, vocabulary, vocabulary + 1
        tokens, targets = self._stream(documents)
        # An n-gram is named by a number: its place among the sorted keys (number of its context, last token).
        self.keys: list[Ints] = []
        ids, before = [], np.zeros_like(tokens)
        for _ in range(order):
            keys, numbers = np.unique(before * self.base + tokens, return_inverse=True)
            self.keys.append(keys)
            ids.append(numbers)
            before = np.concatenate([[0], numbers[:-1]])
        counts = np.bincount(ids[-1][targets], minlength=len(self.keys[-1]))
        self.counts: list[Ints] = [counts]
        for longer in range(order - 1, 0, -1):
            shorter = np.empty(len(self.keys[longer]), np.int64)
            shorter[ids[longer]] = ids[longer - 1]  # the n-gram without its first token
            counts = np.bincount(shorter[counts > 0], minlength=len(self.keys[longer - 1]))
            self.counts.insert(0, counts)
        self.contexts = [self._sums(level) for level in range(order)]
        self.discounts = np.array([_estimated(counts) for counts in self.counts])
        """(order, 3), from the numbers of n-grams that were counted once to four times."""

    def log_probabilities(self, documents: Sequence[NDArray[Any]]) -> Floats:
        """ln p of every token given those before it in its document: (sum of the lengths,)."""
        return np.log(_probabilities(self._looked_up(documents), self.discounts, self.vocabulary))

    def _stream(self, documents: Sequence[NDArray[Any]]) -> tuple[Ints, NDArray[np.bool_]]:
        """All tokens, with order - 1 marks (the id `vocabulary`) before each document; and which are tokens."""
        mark = np.full(self.order - 1, self.vocabulary, np.int64)
        tokens = np.concatenate([part for document in documents for part in (mark, document.astype(np.int64))])
        return tokens, tokens != self.vocabulary

    def _sums(self, level: int) -> Ints:
        """Of each context (and one row of zeros for those never seen): the sum of counts, and how many tokens were
        counted once, twice, and more often after it: (contexts + 1, 4)."""
        counts, context = self.counts[level], self.keys[level] // self.base
        size = (len(self.keys[level - 1]) if level else 1) + 1
        total = np.bincount(context, counts, size).astype(np.int64)
        seen = [np.bincount(context[here], minlength=size) for here in (counts == 1, counts == 2, counts > 2)]
        return np.stack([total, *seen], axis=1)

    def _looked_up(self, documents: Sequence[NDArray[Any]]) -> Ints:
        """Of each length and token: the n-gram's count and its context's sums, (order, tokens, 5)."""
        tokens, targets = self._stream(documents)
        found = np.empty((self.order, int(targets.sum()), 5), np.int64)
        before = np.zeros_like(tokens)
        for level, (keys, counts) in enumerate(zip(self.keys, self.counts, strict=True)):
            wanted = before * self.base + tokens
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = (before >= 0) & (keys[at] == wanted)
            found[level, :, 0] = np.where(known, counts[at], 0)[targets]
            found[level, :, 1:] = self.contexts[level][before[targets]]  # -1: the row of zeros
            before = np.concatenate([[0], np.where(known, at, -1)[:-1]])
        return found


def tuned(documents: Sequence[NDArray[Any]], order: int, vocabulary: int) -> KneserNey:
    """A model of all `documents`, with the discounts that fit a part of them best after training on the others: one
    discount after the other is moved as long as that helps, in ever smaller steps."""
    model = KneserNey(documents, order, vocabulary)
    others = [document for number, document in enumerate(documents) if number % TUNED_ON]
    if not others:
        return model
    part = KneserNey(others, order, vocabulary)
    found = part._looked_up(documents[::TUNED_ON])

    def loss(discounts: Floats) -> float:
        return -float(np.log(_probabilities(found, discounts, vocabulary)).mean())

    best, least = part.discounts, loss(part.discounts)
    for step in (0.2, 0.05, 0.0125):
        moved = True
        while moved:
            moved = False
            for level, count in np.ndindex(best.shape):
                for way in (-step, step):
                    tried = best.copy()
                    tried[level, count] = np.clip(tried[level, count] + way, 0.01, count + 0.99)
                    if (now := loss(tried)) < least - 1e-6:
                        best, least, moved = tried, now, True
    model.discounts = best
    return model


def _probabilities(found: Ints, discounts: Floats, vocabulary: int) -> Floats:
    result = np.full(found.shape[1], 1 / vocabulary)
    for (count, total, *seen), discount in zip(found.transpose(0, 2, 1), discounts, strict=True):
        taken = np.array([0.0, *discount])[np.minimum(count, 3)]
        kept = sum(of * part for of, part in zip(seen, discount, strict=True))
        known = total > 0
        result[known] = ((count - taken + kept * result) / np.maximum(total, 1))[known]
    return result


def _estimated(counts: Ints) -> tuple[float, ...]:
    """D1, D2, D3 (Chen & Goodman's equation 26), each at most the count that it is taken from."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= d <= n for n, d in enumerate(found, 1)) else FALLBACK


def documents(folder: Path, split: str) -> list[NDArray[np.int64]]:
    """The documents of a split of a prepared folder, as they lie there: each ends with the end-of-text token."""
    manifest = read_manifest(folder)
    shards = Shards(folder, manifest["token_type"], manifest["splits"][split])
    return [shards.read(*shards.bounds(number)) for number in range(shards.documents)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what bigtrain prepare printed")
    parser.add_argument("--order", type=int, default=5, help="length of the longest n-grams (5)")
    given = parser.parse_args()
    if given.order < 1:
        parser.error("--order is 1 or more")
    vocabulary = read_manifest(given.folder)["vocab_size"]
    train, held_out = documents(given.folder, "train"), documents(given.folder, "eval")
    model = tuned(train, given.order, vocabulary)
    log_p = model.log_probabilities(held_out)[1:]
    line = {"order": given.order, "perplexity": float(np.exp(-log_p.mean())), "targets": len(log_p)}
    print(json.dumps(line | {"discounts": model.discounts.round(3).tolist()}))


if __name__ == "__main__":
    main()
