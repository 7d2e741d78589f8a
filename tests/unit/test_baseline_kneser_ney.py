"""The n-gram baseline: nltk's where that has the same model, its own definition spelt out, and sums of one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated
from numpy.typing import NDArray

from benchmarks.baselines.kneser_ney import FALLBACK, KneserNey, _estimated, tuned

VOCABULARY = 7
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
CORPUS = st.lists(IDS, min_size=1, max_size=6)
CONTEXT = st.lists(st.integers(0, VOCABULARY - 1), max_size=7)


def arrays(corpus: list[list[int]]) -> list[NDArray[np.int64]]:
    return [np.array(document, np.int64) for document in corpus]


def distribution(model: KneserNey, context: list[int]) -> NDArray[np.float64]:
    """p(. | the document so far)."""
    documents = arrays([[*context, token] for token in range(VOCABULARY)])
    return np.exp(model.log_probabilities(documents).reshape(VOCABULARY, -1)[:, -1])


def ngrams(document: list[int], order: int, length: int) -> list[tuple[int, ...]]:
    """Those that end in the document's tokens, with -1 before it."""
    padded = [-1] * (order - 1) + document
    return [tuple(padded[at - length + 1 : at + 1]) for at in range(order - 1, len(padded))]


@settings(max_examples=40, deadline=None)
@given(CORPUS, CONTEXT, st.integers(2, 4), st.sampled_from([0.1, 0.5, 0.75]))
def test_with_one_discount_it_is_nltk_s(
    corpus: list[list[int]], context: list[int], order: int, discount: float
) -> None:
    model = KneserNey(arrays(corpus), order, VOCABULARY)
    model.discounts[:] = discount
    model.discounts[0] = 0  # nltk's single tokens are not smoothed further
    peer = KneserNeyInterpolated(order, discount)
    texts = [[tuple(map(str, gram)) for n in range(1, order + 1) for gram in ngrams(doc, order, n)] for doc in corpus]
    peer.fit(texts, [str(number) for number in range(-1, VOCABULARY)])
    history = [str(token) for token in ([-1] * (order - 1) + context)[-(order - 1) :]]
    expected = [peer.score(str(token), history) for token in range(VOCABULARY)]
    with np.errstate(divide="ignore"):
        assert distribution(model, context) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(CORPUS, CONTEXT, st.integers(1, 5))
def test_it_is_what_its_definition_says(corpus: list[list[int]], context: list[int], order: int) -> None:
    """Three discounts a length, and counts of different tokens before, written out with dictionaries."""
    model = KneserNey(arrays(corpus), order, VOCABULARY)
    counts = {order: Counter(gram for doc in corpus for gram in ngrams(doc, order, order))}
    for length in range(order - 1, 0, -1):
        counts[length] = Counter(gram[1:] for gram in counts[length + 1])

    def p(token: int, history: tuple[int, ...]) -> float:
        length = len(history) + 1
        shorter = p(token, history[1:]) if history else 1 / VOCABULARY
        after = {gram[-1]: count for gram, count in counts[length].items() if gram[:-1] == history}
        if not after:
            return shorter
        cut = {word: model.discounts[length - 1][min(count, 3) - 1] for word, count in after.items()}
        own = after.get(token, 0) - cut.get(token, 0.0)
        return float((own + sum(cut.values()) * shorter) / sum(after.values()))

    history = tuple(([-1] * (order - 1) + context)[len(context) :])
    assert distribution(model, context) == pytest.approx([p(token, history) for token in range(VOCABULARY)])


@settings(max_examples=60, deadline=None)
@given(CORPUS, CONTEXT, st.integers(1, 5), st.booleans())
def test_probabilities_sum_to_one(corpus: list[list[int]], context: list[int], order: int, tune: bool) -> None:
    model = (tuned if tune else KneserNey)(arrays(corpus), order, VOCABULARY)
    found = distribution(model, context)
    assert found.sum() == pytest.approx(1, rel=1e-12)
    assert (found > 0).all()


def test_discounts_by_hand() -> None:
    """n1..n4 = 8, 4, 2, 1: Y = 8 / 16, so D1 = 1 - 2 Y 4/8, D2 = 2 - 3 Y 2/4, D3 = 3 - 4 Y 1/2."""
    counts = np.repeat([1, 2, 3, 4, 9], [8, 4, 2, 1, 5])
    assert _estimated(counts) == pytest.approx((0.5, 1.25, 2.0))
    assert _estimated(np.array([1, 1, 2])) == FALLBACK


def test_an_unseen_context_leaves_it_to_shorter_ones() -> None:
    model = KneserNey(arrays([[0, 1, 2, 0, 1, 3, 0, 1, 2]]), 3, VOCABULARY)
    seen, unseen = distribution(model, [0, 1]), distribution(model, [6, 1])
    assert seen[2] > unseen[2] > seen[4]
    assert unseen == pytest.approx(distribution(model, [5, 1]))


def test_structure_is_learnt_and_tuning_helps() -> None:
    """Documents of a Markov chain: trigrams come near its entropy, single tokens stay at that of their shares."""
    draw = np.random.default_rng(0)
    chain = draw.dirichlet(np.full(50, 0.1), size=50)
    shares = chain.cumsum(1)
    texts = []
    for _ in range(60):
        document = [0]
        for value in draw.random(400):
            document.append(min(int(np.searchsorted(shares[document[-1]], value)), 49))
        texts.append(np.array(document))
    train, held_out = texts[:40], texts[40:]
    pairs = [chain[text[:-1], text[1:]] for text in held_out]
    entropy = -np.log(np.concatenate(pairs)).mean()
    loss = {order: -tuned(train, order, 50).log_probabilities(held_out).mean() for order in (1, 2, 3)}
    assert entropy - 0.02 < loss[2] < entropy + 0.05
    assert loss[1] > entropy + 1
    assert loss[3] < entropy + 0.15
    plain = -KneserNey(train, 3, 50).log_probabilities(held_out).mean()
    assert loss[3] < plain
