"""Components of a user's own that write down which samples each rank trained on in each step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bigtrain.objectives.causal import CausalLM

VOCAB = 64


class Samples:
    """Sequences that can be learned, each with its own index, and of uneven lengths."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng(index)
        tokens = (generator.integers(VOCAB) + generator.integers(1, 5) * np.arange(self.length + 1)) % VOCAB
        labels = tokens[1:].copy()
        labels[generator.integers(1, self.length + 1) :] = -100
        return {"input_ids": tokens[:-1], "labels": labels, "index": np.int64(index)}


class Data:
    """No text, no tokenizer, nothing held out."""

    def __init__(self, count: int, length: int) -> None:
        self.train, self.eval, self.vocab_size = Samples(count, length), None, VOCAB


def data(count: int = 100, sequence_length: int = 12) -> Data:
    return Data(count, sequence_length)


def write(folder: str, line: dict[str, Any]) -> None:
    with Path(folder, f"rank_{os.environ['RANK']}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


class Counting(CausalLM):
    """The loop counts the targets of each micro-batch it trains on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def count(self, batch: Mapping[str, Tensor]) -> int:
        write(self.folder, {"samples": batch["index"].tolist()})
        return super().count(batch)


def objective(folder: str) -> Counting:
    return Counting(folder)


def schedule(folder: str) -> Callable[[int, int], float]:
    """The loop asks for the learning rate of a step once it has counted."""

    def factor(step: int, total: int) -> float:
        write(folder, {"step": step})
        return 1 - step / total / 2

    return factor


def read(folder: Path) -> list[dict[int, list[int]]]:
    """Of each rank: the samples of each step that it began."""
    ranks = []
    for file in sorted(folder.glob("rank_*.jsonl")):
        steps: dict[int, list[int]] = {}
        samples: list[int] = []
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "step" in entry:
                steps[entry["step"]], samples = samples, []
            else:
                samples += entry["samples"]
        ranks.append(steps)
    return ranks
