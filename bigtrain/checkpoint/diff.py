"""How two checkpoints differ, tensor by tensor: whatever the ranks and engines that wrote them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bigtrain.checkpoint.find import Checkpoint
from bigtrain.checkpoint.load import Reader
from bigtrain.checkpoint.manifest import Entry


@dataclass(frozen=True, slots=True)
class Difference:
    """Of checkpoint `a` and checkpoint `b`; tensors by `kind|name`."""

    tensors: dict[str, float]
    """Those that are not the same bit for bit: their largest absolute difference (NaN where either has one)."""
    compared: int
    """Tensors that both have, in the same shape."""
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    only_a: list[str]
    only_b: list[str]
    state: dict[str, tuple[Any, Any]]
    """Differing entries of the run's state by dotted name; an entry that one lacks is None there."""

    def __bool__(self) -> bool:
        return bool(self.tensors or self.reshaped or self.only_a or self.only_b or self.state)


def diff(a: Checkpoint, b: Checkpoint) -> Difference:
    """Compare all tensors and the state; one tensor of each is in memory at a time."""
    readers = Reader(a), Reader(b)
    left, right = ({**c.manifest.tensors, **c.manifest.extra} for c in (a, b))
    tensors: dict[str, float] = {}
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    compared = 0
    for key in sorted(left.keys() & right.keys()):
        values = [
            reader.whole(value) if isinstance(value, Entry) else torch.tensor(value, dtype=torch.float64)
            for reader, value in zip(readers, (left[key], right[key]), strict=True)
        ]
        if values[0].shape != values[1].shape:
            reshaped[key] = tuple(values[0].shape), tuple(values[1].shape)
            continue
        compared += 1
        if not _same(*values):
            tensors[key] = float((values[0].double() - values[1].double()).abs().max())
    state = {}
    states = _flat(a.manifest.state), _flat(b.manifest.state)
    for name in sorted(states[0].keys() | states[1].keys()):
        pair = states[0].get(name), states[1].get(name)
        if repr(pair[0]) != repr(pair[1]):  # as text, NaN is like NaN and 1 is not like 1.0
            state[name] = pair
    return Difference(
        tensors, compared, reshaped, sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys()), state
    )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _flat(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in state.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def largest(differences: dict[str, float], count: int) -> list[tuple[str, float]]:
    """The `count` tensors that differ most, NaN first."""
    order = sorted(differences.items(), key=lambda item: (not math.isnan(item[1]), -item[1], item[0]))
    return order[:count]
