"""The order: a bijection for every size, computed from one integer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.order import Order, Permutation

SEEDS = st.integers(-(2**63), 2**63)


@settings(deadline=None)
@given(n=st.one_of(st.integers(1, 20), st.integers(1, 5000)), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_every_index_comes_exactly_once(n: int, seed: int, epoch: int) -> None:
    image = Permutation(n, seed, epoch)(np.arange(n))
    assert np.array_equal(np.sort(image), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(1, 2**61), seed=SEEDS, position=st.integers(0, 2**62))
def test_a_number_and_an_array_agree_at_any_size(n: int, seed: int, position: int) -> None:
    order = Order(n, seed)
    index = order(position)
    assert isinstance(index, int) and 0 <= index < n
    assert order(np.array([[position]], dtype=np.int64)).tolist() == [[index]]


@settings(deadline=None)
@given(n=st.integers(1, 60), start=st.integers(0, 1000), count=st.integers(1, 100), seed=SEEDS)
def test_an_epoch_is_a_permutation_wherever_reading_starts(n: int, start: int, count: int, seed: int) -> None:
    order = Order(n, seed)
    together = order(np.arange(start, start + count))
    assert together.tolist() == [order(position) for position in range(start, start + count)]
    for epoch in range(start // n, (start + count) // n + 1):
        inside = [int(i) for p, i in zip(range(start, start + count), together, strict=True) if p // n == epoch]
        assert len(set(inside)) == len(inside)


def test_epochs_and_seeds_differ_and_are_not_the_identity() -> None:
    n = 1000
    orders = [Order(n, seed)(np.arange(epoch * n, (epoch + 1) * n)) for seed in range(3) for epoch in range(3)]
    for i, one in enumerate(orders):
        for other in [np.arange(n), *orders[:i]]:
            assert (one == other).sum() < 10  # 1 expected by chance


@pytest.mark.parametrize("n", [3, 7, 64, 1000, 4097])
def test_positions_look_uniform(n: int) -> None:
    """Chi-square on a grid of cells (where it starts x where it lands), over 2,000 epochs or fewer."""
    cells, epochs = min(n, 16), 2000 if n < 1000 else 50
    counts = np.zeros((cells, cells))
    for epoch in range(epochs):
        image = Permutation(n, 7, epoch)(np.arange(n))
        np.add.at(counts, (np.arange(n) * cells // n, image * cells // n), 1)
    rows = np.bincount(np.arange(n) * cells // n)
    expected = np.outer(rows, rows) / n * epochs
    chi2, freedom = ((counts - expected) ** 2 / expected).sum(), (cells - 1) ** 2
    assert abs(chi2 - freedom) < 6 * np.sqrt(2 * freedom), (chi2, freedom)


def test_neighbours_are_torn_apart() -> None:
    n = 100_003
    step = np.diff(Permutation(n, 1, 0)(np.arange(n)))
    assert (np.abs(step) < n / 100).mean() < 0.03  # 2 % by chance


def test_a_trillion_samples_cost_no_memory() -> None:
    order = Order(10**12, 3)
    index = order(np.arange(10**11, 10**11 + 4096))
    assert len(np.unique(index)) == 4096 and 0.45 < index.mean() / 10**12 < 0.55


def test_a_set_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="0 < n"):
        Permutation(0, 1, 1)


def test_the_order_is_the_one_of_the_first_release() -> None:
    """Golden: a change of it would silently change every resumed run."""
    assert Order(10, 1)(np.arange(20)).tolist() == GOLDEN


GOLDEN = [0, 9, 3, 2, 5, 1, 4, 8, 7, 6, 3, 8, 5, 9, 4, 0, 6, 1, 2, 7]
