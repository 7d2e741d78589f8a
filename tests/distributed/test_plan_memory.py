"""The plan's peak of memory against every byte that torch hands out in a real training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plan_memory import cases, measured, planned

KINDS = [
    {"family": "GPT-2", "engine": "torch", "checkpointing": "none", "precision": "fp32"},
    {"family": "Llama, grouped", "engine": "torch", "checkpointing": "full", "precision": "bf16"},
    {"family": "Llama", "engine": "zero1", "checkpointing": "none", "precision": "bf16"},
    {"family": "GPT-2", "engine": "zero2", "checkpointing": "full", "precision": "fp32"},
    {"family": "Llama", "engine": "zero3", "checkpointing": "none", "precision": "fp32"},
    {"family": "Llama, grouped", "engine": "zero3", "checkpointing": "full", "precision": "bf16"},
]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_peak_is_the_planned_one(ranks: int) -> None:
    grid = [(told, words) for told, words in cases(64, 8, ranks, "cpu") if told in KINDS]
    assert len(grid) == len(KINDS)
    for (_, words), peak in zip(grid, measured([words for _, words in grid], ranks), strict=True):
        assert 0.98 * peak <= planned(words, ranks) <= 1.01 * peak, words
