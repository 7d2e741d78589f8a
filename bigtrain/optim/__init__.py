"""Optimizers and learning-rate schedules. Importing this imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bigtrain.optim.schedules import RANGE_TEST, constant, inverse_sqrt, linear, lr_range, warmup_cosine, wsd

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = [
    "RANGE_TEST",
    "adafactor",
    "adamw",
    "constant",
    "inverse_sqrt",
    "linear",
    "lion",
    "lr_range",
    "muon",
    "sgd",
    "warmup_cosine",
    "wsd",
]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay_all: bool = False,
) -> Optimizer:
    """AdamW (arXiv:1711.05101), torch's, in its fused kernel.

    Args:
        model: whose parameters that require a gradient are optimised.
        lr: base learning rate; the schedule multiplies it.
        weight_decay: decoupled; not on norms, biases and embeddings.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        decay_all: weight decay on norms, biases and embeddings too.
    """
    from bigtrain.optim import optimizers

    return optimizers.adamw(model, lr, weight_decay, betas, eps, decay_all)


def lion(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.99),
    decay_all: bool = False,
) -> Optimizer:
    """Lion (arXiv:2302.06675): the sign of a momentum. Half of AdamW's state.

    Args:
        model: whose parameters that require a gradient are optimised.
        lr: base learning rate, 3 to 10 times smaller than AdamW's.
        weight_decay: decoupled, 3 to 10 times larger than AdamW's; not on norms, biases and embeddings.
        betas: weight of the momentum in the step, and its decay.
        decay_all: weight decay on norms, biases and embeddings too.
    """
    from bigtrain.optim import optimizers

    return optimizers.lion(model, lr, weight_decay, betas, decay_all)


def adafactor(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    clip_threshold: float = 1.0,
    decay_all: bool = False,
) -> Optimizer:
    """Adafactor (arXiv:1804.04235), torch's: second moments of rows and columns only. Not for ZeRO's slices.

    Args:
        model: whose parameters that require a gradient are optimised.
        lr: base learning rate, relative to each weight's own scale.
        weight_decay: decoupled; not on norms, biases and embeddings.
        beta2_decay: the second moment's decay at step t is 1 - t^beta2_decay.
        eps: added to the squared gradient (null: the dtype's own); smallest scale of a weight.
        clip_threshold: largest root mean square of an update.
        decay_all: weight decay on norms, biases and embeddings too.
    """
    from bigtrain.optim import optimizers

    return optimizers.adafactor(model, lr, weight_decay, beta2_decay, eps, clip_threshold, decay_all)


def sgd(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    decay_all: bool = False,
) -> Optimizer:
    """Stochastic gradient descent, torch's.

    Args:
        model: whose parameters that require a gradient are optimised.
        lr: base learning rate.
        weight_decay: coupled (added to the gradient); not on norms, biases and embeddings.
        momentum: decay of the running gradient; 0 keeps no state.
        nesterov: look ahead by one step of the momentum.
        decay_all: weight decay on norms, biases and embeddings too.
    """
    from bigtrain.optim import optimizers

    return optimizers.sgd(model, lr, weight_decay, momentum, nesterov, decay_all)


def muon(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay_all: bool = False,
) -> Optimizer:
    """Muon (Jordan et al. 2024), torch's, for the hidden matrices, and AdamW for the rest. Not for ZeRO's slices.

    Args:
        model: whose parameters that require a gradient are optimised.
        lr: base learning rate of both.
        weight_decay: decoupled; not on norms, biases and embeddings.
        momentum: Muon's.
        nesterov: Muon looks ahead by one step of the momentum.
        ns_steps: Newton-Schulz iterations.
        adjust_lr: how a matrix's shape scales its step: as large as AdamW's would be, so that its rate can be kept
            (arXiv:2502.16982), or as in the original.
        betas: AdamW's.
        eps: AdamW's.
        decay_all: weight decay on norms, biases and embeddings too.
    """
    from bigtrain.optim import optimizers

    return optimizers.muon(
        model, lr, weight_decay, momentum, nesterov, ns_steps, adjust_lr, betas, eps, decay_all=decay_all
    )
