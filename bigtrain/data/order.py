"""The order of the samples: a pseudo-random permutation that is computed, not stored. One integer of state."""

from __future__ import annotations

import hashlib
from typing import overload

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
"""Luby & Rackoff (1988) prove 4 rounds of ideal functions; small domains, as here, are given more."""

Integers = NDArray[np.int64]


class Permutation:
    """A bijection of [0, n) chosen by (seed, epoch).

    A keyed Feistel network permutes [0, 4^h), the smallest such power that holds n; an image outside [0, n) is sent
    through again until it falls inside, which keeps it a bijection ("cycle walking": Black & Rogaway, *Ciphers with
    Arbitrary Finite Domains*, CT-RSA 2002). At most 4 passes on average, O(1) memory.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        if not 0 < n < 2**62:
            raise ValueError(f"a permutation needs 0 < n < 2**62, not {n}")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.blake2b(f"bigtrain order {seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, index: Integers) -> Integers:
        """Images of `index` (any shape, each in [0, n)), as int64 of the same shape."""
        image = np.asarray(index).astype(np.uint64)
        flat = image.reshape(-1)
        outside = np.arange(flat.size)
        while outside.size:
            flat[outside] = self._encrypt(flat[outside])
            outside = outside[flat[outside] >= self.n]
        return image.astype(np.int64)

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


class Order:
    """Position in training (0, 1, 2, …, over all epochs) -> index of the sample in a set of n samples.

    `order(p)` = the p mod n-th element of epoch p div n's permutation. Takes an int or an array of ints.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: Integers) -> Integers: ...
    def __call__(self, position: int | Integers) -> int | Integers:
        """Indices in [0, n) of the samples at `position`, in its shape."""
        epochs, within = np.divmod(np.asarray(position, dtype=np.int64), self.n)
        index = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            index[here] = Permutation(self.n, self.seed, int(epoch))(within[here])
        return index if isinstance(position, np.ndarray) else int(index)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit moves every output bit."""
    x = np.multiply(x ^ (x >> np.uint64(30)), np.uint64(0xBF58476D1CE4E5B9))
    x = np.multiply(x ^ (x >> np.uint64(27)), np.uint64(0x94D049BB133111EB))
    return x ^ (x >> np.uint64(31))
