"""Objectives: a model and a batch in, the sum of the loss over the batch's targets out. Importing imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigtrain.objectives.causal import CausalLM
    from bigtrain.objectives.labelled import Classification, Regression
    from bigtrain.objectives.taught import DPO, Distillation
    from bigtrain.objectives.tokens import MaskedLM, Seq2Seq

__all__ = ["causal_lm", "classification", "distillation", "dpo", "masked_lm", "regression", "seq2seq"]


def causal_lm() -> CausalLM:
    """The next token: cross-entropy in nats, summed over the targets. It has no settings."""
    from bigtrain.objectives.causal import CausalLM

    return CausalLM()


def masked_lm() -> MaskedLM:
    """The tokens under the masks. It has no settings: what is masked is the data's choice (`data.masking`)."""
    from bigtrain.objectives.tokens import MaskedLM

    return MaskedLM()


def classification(*, label_smoothing: float = 0.0) -> Classification:
    """The right class of a text, of each token or of an image.

    Args:
        label_smoothing: this share of a label is spread over all classes (Szegedy et al. 2016), while training.
    """
    from bigtrain.objectives.labelled import Classification

    return Classification(label_smoothing)


def regression() -> Regression:
    """A number: the squared error. It has no settings."""
    from bigtrain.objectives.labelled import Regression

    return Regression()


def seq2seq(*, label_smoothing: float = 0.0) -> Seq2Seq:
    """A sequence made from another: translation, summaries, answers.

    Args:
        label_smoothing: this share of a label is spread over the vocabulary (Szegedy et al. 2016), while training.
    """
    from bigtrain.objectives.tokens import Seq2Seq

    return Seq2Seq(label_smoothing)


def dpo(*, beta: float = 0.1) -> DPO:
    """Direct preference optimisation, against a frozen reference (`model.teacher`).

    Args:
        beta: how dear it is to leave the reference.
    """
    from bigtrain.objectives.taught import DPO

    return DPO(beta)


def distillation(*, weight: float = 0.5, temperature: float = 2.0) -> Distillation:
    """Causal language modelling with a frozen teacher's answers beside the right ones (`model.teacher`).

    Args:
        weight: of the teacher's answers, from 0 to 1; the right ones have the rest.
        temperature: both models' logits are divided by it.
    """
    from bigtrain.objectives.taught import Distillation

    return Distillation(weight, temperature)
