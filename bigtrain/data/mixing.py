"""A mixture of domains: which domain's sample stands at a position, computed in integers, never stored.

A `Mix` is a list of pieces. In a piece that begins at position s, domain d has had `before[d]` draws, and gets its
share of the positions from s on as evenly as may be. The next piece goes on where each domain stands: over stages, dry
domains and edits in the middle of a run, the draws of every domain are 0, 1, 2, … without a gap.

In a piece the positions are dealt out along Huffman's tree of the shares (Huffman 1952): a node with children a and b
gives the first floor(p·a/(a+b) + 1/2) of its first p positions to a. Counts so never fall, sum to p, and stay within
1/2 of the node's due: at a leaf, within 2 of p times its share, and mostly within 1.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PARTS = 1_000_000
"""The shares of a piece are whole parts and sum to this: positions up to 4·10^12 do not overflow 64 bits."""

Integers = NDArray[np.int64]
Policy = Literal["repeat", "stop", "rebalance"]


@dataclass(frozen=True)
class Piece:
    """From position `start` on, domain d gets `parts[d]` of PARTS positions, after `before[d]` draws."""

    start: int
    parts: tuple[int, ...]
    before: tuple[int, ...]

    def find(self, positions: Integers) -> tuple[Integers, Integers]:
        """(domain, draw) of positions at or behind `start`."""
        domain, draw = np.full_like(positions, self._root), positions - self.start
        for node, (a, b, share, whole) in self._nodes:
            here = np.flatnonzero(domain == node)
            given, after = _given(draw[here], share, whole), _given(draw[here] + 1, share, whole)
            domain[here] = np.where(after > given, a, b)
            draw[here] = np.where(after > given, given, draw[here] - given)
        domain = -1 - domain
        return domain, draw + np.array(self.before, np.int64)[domain]

    def counts(self, position: int) -> tuple[int, ...]:
        """Draws of each domain before `position`, which lies at or behind `start`."""
        due = {self._root: position - self.start}
        for node, (a, b, share, whole) in self._nodes:
            due[a] = (2 * due[node] * share + whole) // (2 * whole)
            due[b] = due[node] - due[a]
        return tuple(before + due.get(-1 - d, 0) for d, before in enumerate(self.before))

    @cached_property
    def _root(self) -> int:
        return 0 if self._nodes else -1 - next(d for d, part in enumerate(self.parts) if part)

    @cached_property
    def _nodes(self) -> list[tuple[int, tuple[int, int, int, int]]]:
        """Parents first: number of a node, (children, the first one's parts, both parts). Leaf d is -1 - d, root 0."""
        heap = [(part, d, -1 - d) for d, part in enumerate(self.parts) if part]
        heapq.heapify(heap)
        nodes: list[tuple[int, tuple[int, int, int, int]]] = []
        while len(heap) > 1:
            (small, _, b), (large, _, a) = heapq.heappop(heap), heapq.heappop(heap)
            name = len(heap)  # unique: one is gone at each turn; the last one made is 0, the root
            nodes.append((name, (a, b, large, small + large)))
            heapq.heappush(heap, (small + large, len(self.parts) + name, name))
        return nodes[::-1]


def _given(positions: Integers, share: int, whole: int) -> Integers:
    return (2 * positions * share + whole) // (2 * whole)


@dataclass(frozen=True, slots=True)
class Part:
    """What a mixture knows of a domain."""

    samples: int
    tokens: int
    """Targets of all its samples."""
    epochs: Fraction | None = None
    """Passes after which it is dry; None: 1."""

    @property
    def draws(self) -> int:
        """After which it is dry."""
        return int((self.epochs or 1) * self.samples)


@dataclass(frozen=True, slots=True)
class Dry:
    """A domain has been read as often as it may."""

    domain: int
    position: int


@dataclass
class Mix:
    """Position in training -> (domain, draw), in O(domains) of each piece."""

    pieces: list[Piece]
    end: int | None = None
    """The position at which the run ends, as there is nothing to draw (any more)."""
    dry: list[Dry] = field(default_factory=list)

    def find(self, positions: Integers) -> tuple[Integers, Integers]:
        """(domain, draw) at `positions`, in their shape. The n-th time that a domain is drawn from is its draw n."""
        flat = np.asarray(positions, np.int64).reshape(-1)
        domains, draws = np.empty_like(flat), np.empty_like(flat)
        which = np.searchsorted([piece.start for piece in self.pieces], flat, side="right") - 1
        for number in np.unique(which):
            here = which == number
            domains[here], draws[here] = self.pieces[number].find(flat[here])
        return domains.reshape(np.shape(positions)), draws.reshape(np.shape(positions))

    def counts(self, position: int) -> tuple[int, ...]:
        """Draws of each domain before `position`."""
        return self.pieces[bisect_right(self.pieces, position, key=lambda piece: piece.start) - 1].counts(position)


@dataclass(frozen=True, slots=True)
class Mixing:
    """The settings of a mixture: weights are shares of the tokens, in the domains' order."""

    parts: tuple[Part, ...]
    stages: tuple[tuple[int, tuple[float, ...]], ...]
    """(trained tokens from which on, weights), the first from 0."""
    when_dry: Policy

    def plan(self, then: Sequence[Piece] = (), position: int = 0) -> Mix:
        """The mixture from `position` on by these settings, before it as it was by the pieces `then`.

        Without an edit of the settings this is the mixture that `then` came from.
        """
        pieces = [piece for piece in then if piece.start < position]
        dry: list[Dry] = []
        tokens = Fraction(0)  # trained before the last piece
        for piece, behind in pairwise(pieces):
            tokens += (behind.start - piece.start) * self._tokens_a_position(piece.parts)
        while True:
            last = pieces[-1] if pieces else None
            had = last.counts(position) if last else (0,) * len(self.parts)
            now = tokens + (position - last.start) * self._tokens_a_position(last.parts) if last else Fraction(0)
            empty = {d for d, part in enumerate(self.parts) if had[d] >= part.draws}
            parts = self._shares(now, empty)
            if parts is None:
                return Mix(pieces, position, dry)
            if last is None or parts != last.parts:
                tokens, last = now, Piece(position, parts, had)
                pieces.append(last)
            stage, due = self._next_stage(last, tokens, now), self._next_dry(last, position, had)
            if due is not None and (stage is None or due.position <= stage):
                dry.append(due)
                position = due.position
            elif stage is not None:
                position = stage
            else:
                return Mix(pieces, None, dry)

    def _shares(self, tokens: Fraction, empty: set[int]) -> tuple[int, ...] | None:
        """Parts of the positions, after so many trained tokens; None: the run ends."""
        weights = [weights for start, weights in self.stages if start <= tokens][-1]
        if self.when_dry != "repeat":
            if self.when_dry == "stop" and any(weights[d] for d in empty):
                return None
            weights = tuple(0.0 if d in empty else weight for d, weight in enumerate(weights))
        return shares(weights, self.parts) if any(weights) else None

    def _tokens_a_position(self, parts: Sequence[int]) -> Fraction:
        each = zip(parts, self.parts, strict=True)
        return sum((Fraction(share * part.tokens, PARTS * part.samples) for share, part in each), Fraction(0))

    def _next_stage(self, piece: Piece, before: Fraction, now: Fraction) -> int | None:
        """Position at which the next stage begins, as far as the mixture stays as it is."""
        later = [start for start, _ in self.stages if start > now]
        return piece.start + -int(-(later[0] - before) // self._tokens_a_position(piece.parts)) if later else None

    def _next_dry(self, piece: Piece, position: int, had: Sequence[int]) -> Dry | None:
        """The domain of the piece that runs dry first, behind `position`."""
        found = []
        for d, (part, share) in enumerate(zip(self.parts, piece.parts, strict=True)):
            if share and had[d] < part.draws:
                found.append(Dry(d, _first(piece, d, part.draws, position)))
        return min(found, key=lambda dry: dry.position, default=None)


def _first(piece: Piece, domain: int, draws: int, low: int) -> int:
    """The first position before which `domain` has had so many draws."""
    high = low + 1
    while piece.counts(high)[domain] < draws:
        low, high = high, piece.start + 2 * (high - piece.start)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if piece.counts(middle)[domain] >= draws else (middle, high)
    return high


def shares(weights: Sequence[float], parts: Sequence[Part]) -> tuple[int, ...]:
    """Parts of PARTS positions that give each domain its weight in tokens: a domain whose samples hold fewer tokens is
    drawn from more often. By largest remainders; a weight above 0 gets a part at least."""
    rates = [
        Fraction(weight).limit_denominator(10**9) * part.samples / max(1, part.tokens)
        for weight, part in zip(weights, parts, strict=True)
    ]
    whole = sum(rates, Fraction(0))
    exact = [rate * PARTS / whole for rate in rates]
    floors = [max(int(value), 1) if value else 0 for value in exact]
    order = sorted(range(len(exact)), key=lambda d: (floors[d] - exact[d], d))
    missing = PARTS - sum(floors)
    for d in order[:missing] if missing > 0 else ():
        floors[d] += 1
    if missing < 0:  # parts of tiny weights, taken from the largest
        floors[floors.index(max(floors))] += missing
    return tuple(floors)
