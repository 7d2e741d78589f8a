"""Objectives: a model and a batch in, the sum of the loss over the batch's targets out. Importing imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigtrain.objectives.causal import CausalLM

__all__ = ["causal_lm"]


def causal_lm() -> CausalLM:
    """The next token: cross-entropy in nats, summed over the targets. It has no settings."""
    from bigtrain.objectives.causal import CausalLM

    return CausalLM()
