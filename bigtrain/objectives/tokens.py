"""Tokens that stand where their logits do: masked language models, and sequences made from sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigtrain.errors import UserError
from bigtrain.objectives.labelled import logits_of
from bigtrain.objectives.losses import IGNORE, cross_entropy


class MaskedLM:
    """The tokens under the masks (Devlin et al. 2019, arXiv:1810.04805): cross-entropy in nats, summed.

    Batches have `input_ids` and `labels` (B, S), not shifted, -100 where nothing was masked.
    """

    label_smoothing = 0.0

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Targets in a batch."""
        return int((batch["labels"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the targets, an fp32 scalar."""
        logits, labels = self._logits(model, batch).flatten(0, -2), batch["labels"].flatten()
        if self.label_smoothing == 0:
            plain: Tensor = cross_entropy(logits, labels)
            return plain
        return functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=self.label_smoothing)

    def tally(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(2,): the loss without smoothing, and the targets that are the likeliest token."""
        logits, labels = self._logits(model, batch).flatten(0, -2), batch["labels"].flatten()
        right = (logits.argmax(-1) == labels).sum()
        return torch.stack([cross_entropy(logits, labels), right.float()])

    def summary(self, sums: Tensor, targets: int) -> dict[str, float]:
        """Perplexity, and accuracy of the likeliest token (for sequences: after the right beginning)."""
        return {**self.metrics(float(sums[0]) / targets), "accuracy": float(sums[1]) / targets}

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Perplexity from the loss of a target, in nats."""
        return {"perplexity": math.exp(mean_loss) if mean_loss < 700 else math.inf}

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return logits_of(model, batch)


class Seq2Seq(MaskedLM):
    """A sequence made from another, the right beginning given (teacher forcing).

    Batches have `input_ids` and `attention_mask` (B, S) and `labels` (B, T), -100 behind their end. The model takes all
    three, and shifts the labels itself into what its decoder sees.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"objective.label_smoothing={label_smoothing}: at least 0 and below 1.")
        self.label_smoothing = label_smoothing

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**batch)
        return logits
