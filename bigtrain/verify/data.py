"""The recipe's own samples, arranged so that faults show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigtrain.data.loader import Dataset
from bigtrain.data.sets import IGNORE

HELD_OUT = 8
"""Held-out samples that are looked at before the first and after the last step."""


class Uneven:
    """The labels of each sample end early, at a place that depends on its index only: between a tenth and the whole of
    it. Where an average is taken of averages, over samples, micro-batches or ranks, it shows."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        sample = dict(self.dataset[index])
        labels = sample.get("labels")
        if labels is not None and getattr(labels, "ndim", 0) > 0:
            share = 0.1 + 0.9 * ((index * 2654435761) % 2**32 / 2**32)  # Knuth's multiplicative hash
            labels = labels.clone() if hasattr(labels, "clone") else labels.copy()
            labels[max(1, round(share * len(labels))) :] = IGNORE
            sample["labels"] = labels
        return sample


class Head:
    """The first samples of a set."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.dataset, self._len = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.dataset[index]


class Same:
    """One sample again and again: what differs between two draws of it is the model's own randomness."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.dataset[0]


class Arranged:
    """A data component with other sets in place of its own."""

    def __init__(self, data: Any, kind: str) -> None:
        self.vocab_size = getattr(data, "vocab_size", None)
        self.fingerprint = getattr(data, "fingerprint", None)
        self.train: Dataset = data.train
        if kind == "uneven":
            self.train = Uneven(data.train)
        elif kind == "same":
            self.train = Same(data.train)
        self.eval = Head(data.eval, HELD_OUT) if getattr(data, "eval", None) is not None else None
