"""`local` and `ddp`: torch alone. fp32 weights and optimizer state; bf16 and fp16 through torch's autocast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.config.schema import RunConfig
from bigtrain.distributed import Ranks
from bigtrain.engines import state
from bigtrain.engines.activations import enable_activation_checkpointing
from bigtrain.engines.base import (
    DTYPES,
    Batch,
    Objective,
    Scalar,
    Step,
    StepResult,
    make_contiguous,
    remember_base_lr,
    set_lr,
    to_device,
)
from bigtrain.errors import UserError


class PlainEngine:
    """One process (`local`), or the same model on every rank with the gradients averaged by DDP (`ddp`).

    Where other engines of torch's differ, they have a method of their own: `_build`, `_spread`, `_micro_step`,
    `_reduced` and `_norm`.
    """

    multiplier: float
    """Of the loss before the backward pass: the inverse of what the reduction over ranks divides by."""

    def __init__(
        self,
        config: RunConfig,
        build_model: Callable[[], nn.Module],
        objective: Objective,
        build_optimizer: Callable[[nn.Module], Optimizer],
        ranks: Ranks,
    ) -> None:
        self.name: str = config.engine.name
        self.device, self.ranks = ranks.device, ranks
        if self.name == "local" and ranks.world_size > 1:
            raise UserError(
                f"engine=local trains in one process, and there are {ranks.world_size}. "
                "Use engine=ddp or engine=zero2, or launcher.processes=1."
            )
        if config.engine.extra:
            raise UserError(
                f"engine.extra is for DeepSpeed, and engine={self.name} is without: use engine=zero0 to zero3."
            )
        self._config = config
        self._clip = config.trainer.grad_clip
        self._dtype = DTYPES[config.precision.name]
        self._scaler = self._make_scaler()

        self.model = self._build(build_model)
        enable_activation_checkpointing(self.model, config.trainer.activation_checkpointing)
        self._step = Step(self.model, objective, self.device, self._dtype, config.trainer.activation_offload)
        self._forward: nn.Module = self._spread()
        self.optimizer = build_optimizer(self.model)
        self.base_lr = remember_base_lr(self.optimizer)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._states: dict[str, dict[str, Any]] = {}
        self._handed: list[Fragment] = []

    def _make_scaler(self) -> torch.amp.GradScaler:
        precision = self._config.precision
        return torch.amp.GradScaler(
            self.device.type,
            enabled=self._dtype is torch.float16,
            init_scale=precision.initial_loss_scale,
            growth_interval=precision.loss_scale_window,
        )

    def _build(self, build_model: Callable[[], nn.Module]) -> nn.Module:
        """The model on its device."""
        model = build_model().to(self.device)
        make_contiguous(model)
        return model

    def _spread(self) -> nn.Module:
        """The step, spread over the ranks: what the training forward pass calls."""
        if self._config.trainer.compile:
            self._step.compile()
        self.multiplier = 1.0
        if self.name != "ddp":
            return self._step
        self.multiplier = self.ranks.world_size  # DDP takes the mean of the ranks' gradients
        gpus = [self.device] if self.device.type == "cuda" else None
        forward = DistributedDataParallel(self._step, device_ids=gpus, gradient_as_bucket_view=True)
        # Alike from the start: to send them before each forward pass would only cost time. (Not an argument, since
        # torch 2.13 has another name for it.)
        forward.broadcast_buffers = False
        return forward

    def train_step(self, micro_batches: Sequence[Batch], targets: int, lr_factor: float) -> StepResult:
        """See `Engine.train_step`."""
        self.model.train()
        set_lr(self.optimizer, lr_factor)
        loss = torch.zeros((), device=self.device)
        for index, batch in enumerate(micro_batches):
            with self._micro_step(last=index == len(micro_batches) - 1):
                part = self._forward(to_device(batch, self.device)) / max(targets, 1)
                self._scaler.scale(part * self.multiplier).backward()
            loss += part.detach()

        self._reduced()
        self._scaler.unscale_(self.optimizer)
        norm = self._norm([p.grad for p in self._parameters if p.grad is not None])
        if self._clip is not None:
            clip_grads_with_norm_(self._parameters, self._clip, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, norm, may_overflow=self._scaler.is_enabled())

    def _micro_step(self, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch: gradients are reduced in the last one."""
        forward = self._forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) and not last else nullcontext()

    def _reduced(self) -> None:
        """From here on the gradients are the sum over the ranks."""

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The L2 norm of the whole gradient."""
        return get_total_norm(gradients)

    @torch.no_grad()
    def tally(self, batch: Batch) -> Tensor:
        """See `Engine.tally`."""
        self.model.eval()
        sums: Tensor = self._step(to_device(batch, self.device))
        return sums

    def fragments(self, stateful: Collection[str] = ()) -> list[Fragment]:
        """Whole parameters; the ranks take turns in writing them."""
        named = dict(self.model.named_parameters())
        state.make_state(self.optimizer, [named[name] for name in stateful if name in named])
        self._states = {name: self.optimizer.state.get(p, {}) for name, p in named.items()}
        self._handed = [
            *state.whole_parameters(
                self.model,
                self.ranks.rank,
                self.ranks.world_size,
                master=lambda parameter: parameter,
                state=lambda parameter: self.optimizer.state.get(parameter, {}),
            ),
            *state.persistent_buffers(self.model, self.ranks.rank),
        ]
        return self._handed

    def loaded(self) -> None:
        """See `Engine.loaded`: the fragments are the weights themselves."""
        state.write_back(self._handed, self._states)

    def scalars(self) -> dict[str, Scalar]:
        """The loss scale, and the good steps since it changed (fp16)."""
        if not self._scaler.is_enabled():
            return {}
        now = self._scaler.state_dict()
        return {"loss_scale": now["scale"], "good_steps": now["_growth_tracker"]}

    def load_scalars(self, values: dict[str, Scalar]) -> None:
        """See `Engine.load_scalars`."""
        if self._scaler.is_enabled() and "loss_scale" in values:
            now = self._scaler.state_dict()
            good_steps = values.get("good_steps", 0)
            self._scaler.load_state_dict({**now, "scale": values["loss_scale"], "_growth_tracker": good_steps})

    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`."""
        step = self._step
        found: dict[str, Any] = {
            "engine.name": self._kind(),
            "trainer.grad_clip": self._clip,
            "precision.name": next(name for name, dtype in DTYPES.items() if dtype is step.dtype),
            "world_size": self.ranks.world_size,
            "device": str(self._parameters[0].device),
            "optimizer": type(self.optimizer).__name__,
            "lr": [group["initial_lr"] for group in self.optimizer.param_groups],
        }
        if self._scaler.is_enabled():
            found["precision.initial_loss_scale"] = self._scaler._init_scale
            found["precision.loss_scale_window"] = self._scaler.get_growth_interval()
            found["loss_scale"] = self._scaler.get_scale()
        return found | step.settings()

    def _kind(self) -> str:
        return "ddp" if isinstance(self._forward, DistributedDataParallel) else "local"

    def close(self) -> None:
        """See `Engine.close`."""
        self._forward = self._step
