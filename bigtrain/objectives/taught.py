"""Objectives with a second, frozen model beside the one that is trained: preferences, and a teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from bigtrain.errors import UserError
from bigtrain.objectives.losses import IGNORE, cross_entropy


class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): summed over pairs of answers.

    Batches have `input_ids` and `labels` (B, 2, S), the chosen answer first, labels shifted already and -100 but for
    the answers' tokens. The loss of a pair is -log σ(β · (log-ratio of the chosen - log-ratio of the rejected)), where
    a log-ratio is of the answer's chance in the model to that in the frozen reference (`model.teacher`).
    """

    def __init__(self, beta: float = 0.1) -> None:
        if not beta > 0:
            raise UserError(f"objective.beta={beta}: above 0.")
        self.beta = beta

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Pairs in a batch."""
        return int(_pairs(batch).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the pairs, an fp32 scalar."""
        rewards = self._rewards(model, batch)
        losses = -functional.logsigmoid(rewards[:, 0] - rewards[:, 1])
        return torch.where(_pairs(batch), losses, 0.0).sum()

    def tally(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(4,): the loss, the pairs whose chosen answer has the higher reward, and the rewards of both kinds."""
        rewards = self._rewards(model, batch)[_pairs(batch)]
        chosen, rejected = rewards[:, 0], rewards[:, 1]
        losses = -functional.logsigmoid(chosen - rejected)
        return torch.stack([losses.sum(), (chosen > rejected).sum().float(), chosen.sum(), rejected.sum()])

    def summary(self, sums: Tensor, targets: int) -> dict[str, float]:
        """Accuracy of the rewards' order, and the mean rewards."""
        right, chosen, rejected = (float(each) / targets for each in sums[1:])
        return {"accuracy": right, "chosen_reward": chosen, "rejected_reward": rejected}

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Nothing follows from the loss alone."""
        return {}

    def _rewards(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """β times the log-ratio of every answer, (B, 2)."""
        ids, labels = batch["input_ids"].flatten(0, 1), batch["labels"].flatten(0, 1)
        own = _log_chance(model(ids), labels)
        with torch.no_grad():
            theirs = _log_chance(teacher_of(model, "dpo")(ids), labels)
        rewards: Tensor = self.beta * (own - theirs).reshape(-1, 2)
        return rewards


class Distillation:
    """A teacher's answers beside the right ones (Hinton et al. 2015, arXiv:1503.02531), summed over the targets:

    (1 - weight) · cross-entropy + weight · T² · KL(teacher at temperature T ‖ student at temperature T).

    Batches are those of causal language modelling, `input_ids` and `labels` (B, S), shifted already.
    """

    def __init__(self, weight: float = 0.5, temperature: float = 2.0) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"objective.weight={weight}: from 0 (the right answers alone) to 1 (the teacher's alone).")
        if not temperature > 0:
            raise UserError(f"objective.temperature={temperature}: above 0.")
        self.weight, self.temperature = weight, temperature

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Targets in a batch."""
        return int((batch["labels"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the targets, an fp32 scalar."""
        right, teacher = self._parts(model, batch)
        return (1 - self.weight) * right + self.weight * teacher

    def tally(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(3,): the loss, and its two parts without their weights."""
        right, teacher = self._parts(model, batch)
        return torch.stack([(1 - self.weight) * right + self.weight * teacher, right, teacher])

    def summary(self, sums: Tensor, targets: int) -> dict[str, float]:
        """Perplexity of the right tokens, and the two parts of the loss."""
        right, teacher = (each / targets for each in sums[1:])
        return {"perplexity": float(right.exp()), "cross_entropy": float(right), "teacher_divergence": float(teacher)}

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Nothing follows from the loss alone."""
        return {}

    def _parts(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        labels = batch["labels"].flatten()
        logits = model(batch["input_ids"]).flatten(0, -2)
        with torch.no_grad():
            teacher = teacher_of(model, "distillation")(batch["input_ids"]).flatten(0, -2)
        there = labels != IGNORE
        own, theirs = (each[there].float() / self.temperature for each in (logits, teacher))
        divergence = functional.kl_div(own.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True)
        right: Tensor = cross_entropy(logits, labels)
        return right, divergence * self.temperature**2


def teacher_of(model: nn.Module, objective: str) -> nn.Module:
    """The frozen model that stands beside the one that is trained."""
    teacher = getattr(model, "teacher", None)
    if teacher is None:
        raise UserError(
            f"objective={objective} needs a second, frozen model beside the one that is trained: model=hugging_face "
            "with model.teacher=PATH."
        )
    return teacher  # type: ignore[no-any-return]


def _pairs(batch: Mapping[str, Tensor]) -> Tensor:
    """Which rows (B,) are pairs, and not copies that fill a batch up."""
    return (batch["labels"] != IGNORE).flatten(1).any(1)


def _log_chance(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the targets of a row of their log-probabilities, (N,) in fp32; logits (N, S, V), labels (N, S)."""
    there = labels != IGNORE
    chances = logits.float().log_softmax(-1).gather(-1, labels.where(there, 0)[..., None])[..., 0]
    return chances.where(there, 0.0).sum(-1)
