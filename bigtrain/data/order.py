"""The order of the samples: a pseudo-random permutation that is computed, not stored. One integer of state."""

from __future__ import annotations

import hashlib
from typing import Any, overload

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


class WindowedOrder:
    """As `Order`, but neighbouring positions have neighbouring samples: at any time a few shards hold all that is read.

    The samples are cut into blocks, which are permuted in each epoch; a shorter block at the end stays the last. Of
    each `window` blocks that so come together the samples are permuted among each other.
    """

    def __init__(self, n: int, seed: int, block: int, window: int) -> None:
        if block < 1 or window < 1:
            raise ValueError(f"a windowed order needs {block=} and {window=} of 1 at least")
        self.n, self.seed, self.block, self.window = n, seed, block, window
        self._whole = n // block  # blocks but for the shorter one
        self.windows = -(-n // (block * window))
        """Of an epoch."""

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: Integers) -> Integers: ...
    def __call__(self, position: int | Integers) -> int | Integers:
        """Indices in [0, n) of the samples at `position`, in its shape."""
        epochs, within = np.divmod(np.asarray(position, dtype=np.int64), self.n)
        size = self.block * self.window
        windows, index = epochs * self.windows + within // size, np.empty_like(within)
        for number in np.unique(windows).tolist():
            here = windows == number
            epoch, window = divmod(number, self.windows)
            first = window * size
            samples = Permutation(min(size, self.n - first), _derived(self.seed, f"window {epoch}"), window)
            slots, offsets = np.divmod(first + samples(within[here] - first), self.block)
            index[here] = self._blocks(slots, epoch) * self.block + offsets
        return index if isinstance(position, np.ndarray) else int(index)

    def window_of(self, position: int) -> int:
        """The number of the window that a position lies in, over all epochs."""
        epoch, within = divmod(position, self.n)
        return epoch * self.windows + within // (self.block * self.window)

    def ranges(self, number: int) -> list[tuple[int, int]]:
        """The blocks of a window (numbered over all epochs): the samples [start, stop) of each."""
        epoch, window = divmod(number, self.windows)
        slots = np.arange(window * self.window, min((window + 1) * self.window, -(-self.n // self.block)))
        starts = (self._blocks(slots, epoch) * self.block).tolist()
        return [(start, min(start + self.block, self.n)) for start in starts]

    def _blocks(self, slots: Integers, epoch: int) -> Integers:
        blocks = slots.copy()
        whole = slots < self._whole
        if whole.any():
            blocks[whole] = Permutation(self._whole, _derived(self.seed, "blocks"), epoch)(slots[whole])
        return blocks


def _derived(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest(), "big")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit moves every output bit."""
    x = np.multiply(x ^ (x >> np.uint64(30)), np.uint64(0xBF58476D1CE4E5B9))
    x = np.multiply(x ^ (x >> np.uint64(27)), np.uint64(0x94D049BB133111EB))
    return x ^ (x >> np.uint64(31))


class LengthGroups:
    """As `Order`, but rows of about one length come together, so that little of a batch is padding.

    In each epoch the rows are shuffled; of every `WINDOW` groups that so come together the rows are sorted by length,
    cut into groups again, and the groups shuffled. For sets whose lengths are known and lie in memory.
    """

    WINDOW = 64

    def __init__(self, lengths: NDArray[np.int32], seed: int, group: int) -> None:
        self.n, self.seed, self.group, self._lengths = len(lengths), seed, group, lengths
        self._epochs: dict[int, Integers] = {}

    @overload
    def __call__(self, position: int) -> int: ...
    @overload
    def __call__(self, position: Integers) -> Integers: ...
    def __call__(self, position: int | Integers) -> int | Integers:
        """Indices in [0, n) of the rows at `position`, in its shape."""
        epochs, within = np.divmod(np.asarray(position, dtype=np.int64), self.n)
        index = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            index[here] = self._epoch(epoch)[within[here]]
        return index if isinstance(position, np.ndarray) else int(index)

    def _epoch(self, epoch: int) -> Integers:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._shuffled(epoch)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int) -> Integers:
        order = Permutation(self.n, self.seed, epoch)(np.arange(self.n))
        if self.group == 1:
            return order
        windows = np.arange(self.n) // (self.group * self.WINDOW)
        order = order[np.lexsort((np.arange(self.n), self._lengths[order], windows))]
        whole = self.n // self.group  # the rows that fill no group stay at the end
        groups = order[: whole * self.group].reshape(whole, self.group)
        if whole:
            groups = groups[Permutation(whole, _derived(self.seed, "groups"), epoch)(np.arange(whole))]
        return np.concatenate([groups.reshape(-1), order[whole * self.group :]])


class EpochOrder:
    """An order of n samples that tells the epoch too: position -> epoch · n + index."""

    def __init__(self, order: Any, n: int) -> None:
        self.order, self.n = order, n

    def __call__(self, position: Integers) -> Integers:
        """Epoch · n + index of the samples at `position`, in its shape."""
        epochs = np.asarray(position, np.int64) // self.n
        found: Integers = epochs * self.n + self.order(position)
        return found
