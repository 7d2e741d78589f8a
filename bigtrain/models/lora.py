"""The settings of low-rank adapters. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True)
class Lora:
    """Adapters beside frozen weights."""

    rank: int = 16
    alpha: float = 32.0
    """Their product is scaled by alpha / rank."""
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"
    """Names of the linear layers (the last part, or a regular expression of the whole); all-linear: all but heads."""
    dora: bool = False
    """Weight-decomposed: direction and length are learnt apart."""
    train: list[str] | None = None
    """Modules that are trained whole beside them; null: those with fresh weights, such as a classifier's head."""
    quantize: Literal["nf4", "fp4"] | None = None
    """QLoRA: the adapted layers' frozen weights in 4 bits."""
