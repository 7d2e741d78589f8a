"""Several sets as one: the samples of the domains laid end to end, and the order in which training draws from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.mixing import Integers, Mix, Mixing, Part, Piece
from bigtrain.data.sets import PackedSet, Sample


class MixedOrder:
    """Position in training -> index of the sample, over domains laid end to end.

    The mixture says domain and draw. Draw n of a domain is the n-th element of its own order, which goes through all of
    its samples before it takes one again.
    """

    def __init__(self, mix: Mix, sets: Mapping[str, PackedSet], seed: int) -> None:
        self.mix = mix
        self.orders = [samples.order(_seed(seed, name)) for name, samples in sets.items()]
        self._starts = np.cumsum([0, *map(len, sets.values())], dtype=np.int64)

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: Integers) -> Integers: ...
    def __call__(self, position: int | Integers) -> int | Integers:
        """Indices of the samples at `position`, in its shape."""
        domains, draws = self.mix.find(np.asarray(position, dtype=np.int64))
        index = np.empty_like(draws)
        for domain in np.unique(domains).tolist():
            here = domains == domain
            index[here] = self._starts[domain] + self.orders[domain](draws[here])
        return index if isinstance(position, np.ndarray) else int(index)


def _seed(seed: int, name: str) -> int:
    """Each domain is shuffled in its own way, whichever others there are."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class MixedSet:
    """The training samples of a mixture: index i is sample i - start of the domain in whose range it lies."""

    sets: Mapping[str, PackedSet]
    mix: Mix

    def __len__(self) -> int:
        return sum(map(len, self.sets.values()))

    def __getitem__(self, index: int) -> Sample:
        """See `PackedSet`."""
        name, number = self.locate(index)
        return self.sets[name][number]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Sample:
        """The samples `indices`, stacked: int64 of shape (B, S)."""
        samples = [self[int(index)] for index in indices]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def locate(self, index: int) -> tuple[str, int]:
        """(domain, index in its set)."""
        rest = index
        for name, samples in self.sets.items():
            if 0 <= rest < len(samples):
                return name, rest
            rest -= len(samples)
        raise IndexError(f"sample {index} of {len(self)}")

    def order(self, seed: int) -> MixedOrder:
        """The order of training under this seed."""
        return MixedOrder(self.mix, self.sets, seed)

    def prefetch(self, order: MixedOrder, position: int) -> None:
        """See `PackedSet`."""
        for samples, of, draw in zip(self.sets.values(), order.orders, self.mix.counts(position), strict=True):
            samples.prefetch(of, draw)

    @property
    def end(self) -> int | None:
        """The position at which the run ends, as a domain has run dry."""
        return self.mix.end


class HeldOut:
    """The held-out samples of all domains, each once, spread evenly: the first so many of them are of all domains."""

    def __init__(self, sets: Mapping[str, PackedSet]) -> None:
        self.sets = {name: samples for name, samples in sets.items() if len(samples)}
        parts = tuple(Part(len(samples), len(samples)) for samples in self.sets.values())
        self._len = sum(part.samples for part in parts)
        sizes = tuple(part.samples / self._len for part in parts)
        self._mix = Mixing(parts, ((0, sizes),), "rebalance").plan() if parts else Mix([])
        self._of = list(self.sets.values())

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Sample:
        """See `PackedSet`."""
        if not 0 <= index < self._len:
            raise IndexError(f"sample {index} of {self._len}")
        domains, draws = self._mix.find(np.array([index]))
        return self._of[int(domains[0])][int(draws[0])]

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Sample:
        """The samples `indices`, stacked: int64 of shape (B, S)."""
        samples = [self[int(index)] for index in indices]
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def part_of(samples: PackedSet, packing: str, epochs: float | None) -> Part:
    """What a domain brings to a mixture, with all documents of its shards."""
    if packing == "concat":
        tokens = len(samples) * samples.sequence_length
    elif packing == "best_fit":
        tokens = samples.shards.tokens - samples.shards.documents
    else:
        tokens = _targets(samples)
    return Part(len(samples), max(1, tokens), None if epochs is None else Fraction(epochs).limit_denominator(10**6))


def _targets(samples: PackedSet) -> int:
    """Of a document a sample."""
    total, before, step = 0, 0, 1 << 20
    for first in range(0, samples.shards.documents, step):
        ends = samples.shards.ends(first, min(first + step, samples.shards.documents))
        total += int(np.minimum(np.diff(ends, prepend=before) - 1, samples.sequence_length).sum())
        before = int(ends[-1])
    return total


def describe(mix: Mix, mixing: Mixing, sets: Mapping[str, PackedSet], position: int) -> str:
    """Samples, documents and share of each domain at a position, what changes later, and what runs dry when."""

    def shares(piece: Piece) -> list[str]:
        """Of the tokens of a piece of the mixture, each domain's."""
        tokens = [share * part.tokens / part.samples for share, part in zip(piece.parts, mixing.parts, strict=True)]
        return [f"{100 * of / sum(tokens):.3g} %" for of in tokens]

    now = max(number for number, piece in enumerate(mix.pieces) if piece.start <= position)
    lines = [
        f"data: {name}: {share} of tokens; {len(samples):,} samples, {samples.shards.documents:,} documents, "
        f"{samples.shards.tokens:,} tokens an epoch"
        for (name, samples), share in zip(sets.items(), shares(mix.pieces[now]), strict=True)
    ]
    lines += [
        f"data: from sample {piece.start:,} on: "
        + ", ".join(f"{name} {share}" for name, share in zip(sets, shares(piece), strict=True))
        for piece in mix.pieces[now + 1 :]
    ]
    names = list(sets)
    does = {"repeat": "is repeated", "stop": "ends the run", "rebalance": "leaves its share to the others"}
    dry = [f"data: {names[one.domain]} is dry at sample {one.position:,}: it {does[mixing.when_dry]}"
           for one in mix.dry]  # fmt: skip
    return "\n".join([*lines, *dry])
