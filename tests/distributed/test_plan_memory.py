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
]


def test_the_peak_is_the_planned_one() -> None:
    grid = [words for told, words in cases(64, 8, 1, "cpu") if told in KINDS]
    assert len(grid) == len(KINDS)
    for words, peak in zip(grid, measured(grid, 1), strict=True):
        assert planned(words, 1) == pytest.approx(peak, rel=0.04), words
