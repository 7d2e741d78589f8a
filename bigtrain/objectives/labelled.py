"""Classification of texts, tokens and images, and regression."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigtrain.errors import UserError
from bigtrain.objectives.losses import IGNORE


class Classification:
    """The right one of C classes: cross-entropy in nats, summed over the labels.

    Batches have `labels`, (B,) or (B, S), int64 with -100 for none, and what the model takes: its logits are (B, C) or
    (B, S, C). An evaluation adds up the confusion matrix, of which all that it says is made.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UserError(f"objective.label_smoothing={label_smoothing}: at least 0 and below 1.")
        self.label_smoothing = label_smoothing
        self.confusion: list[list[int]] | None = None
        """Of the last evaluation, (C, C): rows are the true classes."""

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Labels in a batch."""
        return int((batch["labels"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the labels, an fp32 scalar."""
        return _cross_entropy(logits_of(model, batch), batch["labels"], self.label_smoothing)

    def tally(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(1 + C·C,): the loss without smoothing; the confusion matrix, rows are the true classes."""
        logits, labels = logits_of(model, batch), batch["labels"].flatten()
        classes = logits.shape[-1]
        there = labels != IGNORE
        pairs = labels[there] * classes + logits.flatten(0, -2).argmax(-1)[there]
        counts = torch.bincount(pairs, minlength=classes * classes)
        return torch.cat([_cross_entropy(logits, batch["labels"], 0.0).reshape(1), counts.float()])

    def summary(self, sums: Tensor, targets: int) -> dict[str, float]:
        """Accuracy; precision, recall and F1, each the mean over the classes that are true or guessed somewhere."""
        classes = round((len(sums) - 1) ** 0.5)
        matrix = sums[1:].reshape(classes, classes)
        self.confusion = matrix.long().tolist()
        right = matrix.diagonal()
        true, guessed = matrix.sum(1), matrix.sum(0)
        precision, recall = right / guessed.clamp(min=1), right / true.clamp(min=1)
        f1 = 2 * right / (true + guessed).clamp(min=1)
        seen = (true + guessed) > 0
        mean = {"precision": precision, "recall": recall, "f1": f1}
        found = {"accuracy": float(right.sum() / matrix.sum().clamp(min=1))}
        return found | {name: float(of[seen].mean()) if seen.any() else 0.0 for name, of in mean.items()}

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Nothing follows from the loss alone."""
        return {}


class Regression:
    """A number: the squared error, summed.

    Batches have `labels` (B,), floats with NaN for none; the model's logits are (B, 1) or (B,).
    """

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Labels in a batch."""
        return int((~batch["labels"].isnan()).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the squared errors, an fp32 scalar."""
        return self._pairs(model, batch)[0].sum()

    def tally(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(7,): squared error, absolute error, and the sums of x, y, xy, x², y² of guesses x and labels y."""
        squared, guesses, labels = self._pairs(model, batch)
        x, y = guesses.double(), labels.double()
        sums = [squared.double(), (x - y).abs(), x, y, x * y, x * x, y * y]
        return torch.stack([each.sum() for each in sums])

    def summary(self, sums: Tensor, targets: int) -> dict[str, float]:
        """Root mean squared error, mean absolute error, and Pearson's correlation (0 where nothing varies)."""
        squared, absolute, x, y, xy, xx, yy = sums.double() / targets
        spread = ((xx - x * x) * (yy - y * y)).clamp(min=0).sqrt()
        correlation = float((xy - x * y) / spread) if spread > 0 else 0.0
        return {"rmse": float(squared.sqrt()), "mae": float(absolute), "pearson": correlation}

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """The root mean squared error."""
        return {"rmse": mean_loss**0.5}

    def _pairs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        guesses = logits_of(model, batch).float()
        guesses = guesses.squeeze(-1) if guesses.dim() > 1 else guesses
        there = ~batch["labels"].isnan()
        labels = batch["labels"].float()
        squared = (guesses - labels.where(there, guesses.detach())) ** 2  # 0, and so is its gradient, where none is
        return squared, guesses[there], labels[there]


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's answer to all of the batch but the labels."""
    logits: Tensor = model(**{name: values for name, values in batch.items() if name != "labels"})
    return logits


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    flat = logits.flatten(0, -2).float()
    return functional.cross_entropy(flat, labels.flatten(), reduction="sum", label_smoothing=smoothing)
