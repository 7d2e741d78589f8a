"""The engine protocol: what the rest of the program knows of how a model is spread over ranks, and the shared parts.

Every engine follows one normaliser: the loss of a step is the sum over all target tokens of all ranks and
micro-batches, divided by their number. Averages of averages are wrong as soon as padding is uneven.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.engines.activations import activation_checkpointing, offloaded
from bigtrain.engines.fp8 import scaling

Batch = dict[str, Tensor]
"""A micro-batch: the first dimension of every tensor is the samples."""

Scalar = float | int | bool
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(Protocol):
    """What is minimised.

    An evaluation measures more than the loss where the objective has two methods besides: `tally(model, batch)`, a
    vector (K,) of sums over the batch's targets, the loss first; and `summary(sums, targets)`, the metrics that the
    vector's sum over all batches and ranks gives. As they are sums, no batch is kept and no sample counted twice.
    """

    def count(self, batch: Batch) -> int:
        """Targets in a batch (on the CPU)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the losses over the targets of the batch: a scalar in fp32."""

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """What a mean loss means: perplexity."""


@dataclass(slots=True)
class StepResult:
    """Of one optimizer step; on the device, so that nobody waits for it before it is wanted."""

    loss: Tensor
    """Scalar fp32: this rank's sum of losses divided by the targets of all ranks. The sum over ranks is the loss."""
    grad_norm: Tensor | float
    """Global L2 norm of the gradient, unscaled and before clipping; inf or nan where an fp16 step overflowed."""
    may_overflow: bool = False
    """fp16 with a dynamic loss scale: a step that overflows is skipped and the scale lowered; no reason to worry."""


class Engine(Protocol):
    """A model, its objective and its optimizer, spread over the ranks in one way or another."""

    name: str
    device: torch.device
    model: nn.Module
    """The user's own, unwrapped."""
    base_lr: float
    """Of the first group of parameters."""

    def train_step(self, micro_batches: Sequence[Batch], targets: int, lr_factor: float) -> StepResult:
        """Forward and backward of each micro-batch (on the CPU, always `accumulation` of them), divide by `targets`
        (of the whole step, over all ranks), reduce, clip, and step with lr = each group's base lr × `lr_factor`."""

    def tally(self, batch: Batch) -> Tensor:
        """This rank's sums over a batch (K,), of the losses first, without a gradient or dropout: see `Objective`. Call
        it equally often on every rank (zero3)."""

    def fragments(self, stateful: Collection[str] = ()) -> list[Fragment]:
        """Live views of everything to be saved that this rank holds. `stateful` names the parameters whose optimizer
        state is about to be loaded: where there is none yet it is made, to be overwritten."""

    def loaded(self) -> None:
        """The fragments were overwritten in place: refresh low-precision copies and what other ranks hold. On all."""

    def scalars(self) -> dict[str, Scalar]:
        """What else must come back exactly: loss scale, counters."""

    def load_scalars(self, values: dict[str, Scalar]) -> None:
        """Put back what `scalars` returned; another engine's are taken as far as they are known."""

    def settings(self) -> dict[str, Any]:
        """The effective settings, read back from the live objects: what the engine does, not what it was told. A dotted
        key is a setting of the recipe and has the recipe's value (`effective.py` compares them); others are told."""

    def close(self) -> None:
        """Remove hooks and patches, so that another engine can be built in this process."""


def tally(objective: Objective, model: nn.Module, batch: Batch) -> Tensor:
    """What an evaluation adds up over a batch (K,): the objective's own sums, or its loss alone."""
    own = getattr(objective, "tally", None)
    sums: Tensor = objective.loss(model, batch).reshape(1) if own is None else own(model, batch)
    return sums


def summary(objective: Objective, sums: Tensor, targets: int) -> tuple[float, dict[str, float]]:
    """(mean loss, metrics) of the sums (K,) over all batches and ranks, and the targets in them."""
    loss, own = float(sums[0]) / max(targets, 1), getattr(objective, "summary", None)
    return loss, objective.metrics(loss) if own is None else own(sums.cpu(), max(targets, 1))


class Step(nn.Module):
    """Model and objective as one module, so that the loss is computed inside DDP's or DeepSpeed's forward."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        device: torch.device,
        dtype: torch.dtype,
        activation_offload: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.activation_offload = activation_offload
        self._device = device.type
        self._autocast = dtype is not torch.float32
        self.dtype = dtype

    def forward(self, batch: Batch) -> Tensor:
        """Sum of losses over the targets of the batch; where the model is in eval mode, all that is added up there."""
        # DeepSpeed's weights are in low precision already; with autocast as well, a model that works under one engine
        # works under all (fp32 buffers meet bf16 activations), and norms and softmax are computed alike.
        autocast = torch.autocast(self._device, self.dtype if self._autocast else None, enabled=self._autocast)
        with autocast, offloaded(self.activation_offload):
            if not self.model.training:
                return tally(self.objective, self.model, batch)
            return self.objective.loss(self.model, batch)

    def settings(self) -> dict[str, Any]:
        """What it does with activations and products; see `Engine.settings`."""
        kind = activation_checkpointing(self.model)
        known = {} if kind is None else {"trainer.activation_checkpointing": kind}
        return {"trainer.activation_offload": self.activation_offload, "precision.fp8": scaling(self.model)} | known


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on the device; asynchronous from pinned memory."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def make_contiguous(model: nn.Module) -> None:
    """Checkpoints slice tensors flat, in row-major order: lay them out so."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()


def remember_base_lr(optimizer: Optimizer) -> float:
    """Note each group's base lr as `initial_lr`, as torch's schedulers do; returns the first group's."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return float(optimizer.param_groups[0]["initial_lr"])


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """lr = base lr × factor, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
