"""Mixtures: counts, pieces, stages, dry domains, and edits in the middle of a run, as properties."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.mixing import PARTS, Mix, Mixing, Part, Piece, shares
from bigtrain.data.settings import check_weights
from bigtrain.errors import UserError

FAST = settings(max_examples=60, deadline=None)


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    raw = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any))
    even = tuple(Part(1, 1) for _ in raw)
    parts = shares([value / sum(raw) for value in raw], even)
    return Piece(draw(st.integers(0, 10**9)), parts, tuple(draw(st.integers(0, 10**6)) for _ in raw))


@given(pieces(), st.integers(0, 10**12))
@FAST
def test_counts_sum_to_the_position_never_fall_and_keep_to_the_shares(piece: Piece, offset: int) -> None:
    at = piece.start + offset
    counts, after = piece.counts(at), piece.counts(at + 1)
    assert sum(piece.parts) == PARTS
    assert sum(counts) - sum(piece.before) == offset
    assert sorted(b - a for a, b in zip(counts, after, strict=True)) == [0] * (len(counts) - 1) + [1]
    for share, count, before in zip(piece.parts, counts, piece.before, strict=True):
        assert abs(Fraction(offset * share, PARTS) - (count - before)) < 2
        assert share or count == before


@given(pieces(), st.integers(0, 10**12))
@FAST
def test_a_position_finds_the_domain_and_draw_that_the_counts_say(piece: Piece, offset: int) -> None:
    positions = piece.start + offset + np.arange(200)
    domains, draws = piece.find(positions)
    for position, domain, draw in zip(positions.tolist(), domains.tolist(), draws.tolist(), strict=True):
        before, after = piece.counts(position), piece.counts(position + 1)
        assert draw == before[domain] and after[domain] == draw + 1


def test_shares_of_two_domains_are_never_more_than_half_a_sample_away() -> None:
    piece = Piece(0, (700_000, 300_000), (0, 0))
    for position in range(2000):
        assert abs(10 * piece.counts(position)[0] - 7 * position) <= 5


def test_weights_are_of_tokens_so_that_short_samples_come_more_often() -> None:
    assert shares([0.5, 0.5], [Part(10, 1000), Part(10, 250)]) == (200_000, 800_000)


def _mixing(weights: tuple[float, ...], policy: str = "repeat", sizes: tuple[int, ...] = (40, 70, 1000)) -> Mixing:
    return Mixing(tuple(Part(n, 10 * n) for n in sizes), ((0, weights),), policy)  # type: ignore[arg-type]


def _gapless(mix: Mix, count: int) -> None:
    """Every domain's draws are 0, 1, 2, …"""
    domains, draws = mix.find(np.arange(count))
    for domain in range(3):
        mine = draws[domains == domain]
        assert mine.tolist() == list(range(len(mine))), domain
    assert mix.counts(count) == tuple(int((domains == d).sum()) for d in range(3))


weight_triples = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


@given(
    st.lists(st.tuples(st.integers(1, 400), weight_triples), min_size=1, max_size=5),
    st.sampled_from(["repeat", "rebalance"]),
)
@FAST
def test_edits_at_any_position_lose_and_repeat_no_draw(edits: list[tuple[int, list[int]]], policy: str) -> None:
    mix, at = _mixing((0.5, 0.25, 0.25), policy).plan(), 0
    for gap, raw in edits:
        past = mix.find(np.arange(at + gap))
        at += gap
        if mix.end is not None and mix.end <= at:
            return
        mix = _mixing(tuple(value / sum(raw) for value in raw), policy).plan(mix.pieces, at)
        for was, still in zip(past, mix.find(np.arange(at)), strict=True):
            assert (was == still).all()  # what was trained stays as it was
    _gapless(mix, at + 500 if mix.end is None else min(mix.end, at + 500))


@given(
    st.integers(1, 3000), weight_triples, weight_triples, st.integers(1, 20_000),
    st.sampled_from(["repeat", "stop", "rebalance"]),
)  # fmt: skip
@FAST
def test_going_on_without_an_edit_is_the_same_mixture(
    at: int, first: list[int], second: list[int], tokens: int, policy: str
) -> None:
    parts = (Part(40, 400), Part(70, 350, Fraction(5, 2)), Part(1000, 9000))
    stages = tuple((t, tuple(v / sum(raw) for v in raw)) for t, raw in ((0, first), (tokens, second)))
    mixing = Mixing(parts, stages, policy)  # type: ignore[arg-type]
    whole = mixing.plan()
    if whole.end is not None and at > whole.end:
        at = whole.end
    again = mixing.plan(whole.pieces, at)
    assert (again.pieces, again.end) == (whole.pieces, whole.end)
    assert again.dry == [dry for dry in whole.dry if dry.position > at or dry in again.dry]


def test_a_stage_begins_once_its_tokens_are_trained() -> None:
    mix = Mixing((Part(10, 100), Part(10, 50)), ((0, (1.0, 0.0)), (95, (0.0, 1.0))), "repeat").plan()
    assert [piece.start for piece in mix.pieces] == [0, 10]
    assert mix.find(np.array([9, 10]))[0].tolist() == [0, 1]


def test_a_dry_domain_is_repeated_or_ends_the_run_or_leaves_its_share_to_the_others() -> None:
    weights = (0.5, 0.25, 0.25)
    again = _mixing(weights).plan()
    assert again.end is None and len(again.pieces) == 1 and again.dry[0].domain == 0
    assert 78 <= again.dry[0].position <= 80

    stop = _mixing(weights, "stop").plan()
    assert stop.end == again.dry[0].position and stop.counts(stop.end)[0] == 40

    shared = _mixing(weights, "rebalance").plan()
    assert [dry.domain for dry in shared.dry] == [0, 1, 2]
    assert shared.pieces[1].parts == (0, 500_000, 500_000)
    assert shared.end == 1110 and shared.counts(1110) == (40, 70, 1000)


def test_weights_that_do_not_sum_show_those_that_would() -> None:
    with pytest.raises(UserError, match=r"sum to 1.5, not to 1.*\{a: 0.666667, b: 0.333333\}"):
        check_weights({"a": 1.0, "b": 0.5}, "data.domains")
