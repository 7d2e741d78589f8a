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
from bigtrain.engines.base import (
    DTYPES,
    Batch,
    Objective,
    Scalar,
    Step,
    StepResult,
    enable_activation_checkpointing,
    make_contiguous,
    remember_base_lr,
    set_lr,
    to_device,
)
from bigtrain.errors import UserError


class PlainEngine:
    """One process (`local`), or the same model on every rank with the gradients averaged by DDP (`ddp`)."""

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
        self._clip = config.trainer.grad_clip
        self._micro_batch_size = config.trainer.micro_batch_size
        self._dtype = DTYPES[config.precision.name]
        fp16 = self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(
            self.device.type,
            enabled=fp16,
            init_scale=config.precision.initial_loss_scale,
            growth_interval=config.precision.loss_scale_window,
        )

        self.model = build_model().to(self.device)
        make_contiguous(self.model)
        if config.trainer.activation_checkpointing == "full":
            enable_activation_checkpointing(self.model)
        self._step = Step(self.model, objective, self.device, self._dtype)
        if config.trainer.compile:
            self._step.compile()
        self._forward: nn.Module = self._step
        if self.name == "ddp":
            gpus = [self.device] if self.device.type == "cuda" else None
            forward = DistributedDataParallel(self._step, device_ids=gpus, gradient_as_bucket_view=True)
            # Alike from the start: to send them before each forward pass would only cost time. (Not an argument, since
            # torch 2.13 has another name for it.)
            forward.broadcast_buffers = False
            self._forward = forward
        self.optimizer = build_optimizer(self.model)
        self.base_lr = remember_base_lr(self.optimizer)
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._states: dict[str, dict[str, Any]] = {}
        self._handed: list[Fragment] = []

    def train_step(self, micro_batches: Sequence[Batch], targets: int, lr_factor: float) -> StepResult:
        """See `Engine.train_step`."""
        self.model.train()
        set_lr(self.optimizer, lr_factor)
        loss = torch.zeros((), device=self.device)
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self._no_sync():
                part = self._forward(to_device(batch, self.device)) / max(targets, 1)
                # DDP takes the mean of the ranks' gradients: times their number is the sum.
                self._scaler.scale(part * self.ranks.world_size).backward()
            loss += part.detach()

        self._scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        if self._clip is not None:
            clip_grads_with_norm_(self._parameters, self._clip, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, norm, may_overflow=self._scaler.is_enabled())

    def _no_sync(self) -> AbstractContextManager[None]:
        forward = self._forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    @torch.no_grad()
    def eval_loss(self, batch: Batch) -> Tensor:
        """See `Engine.eval_loss`."""
        self.model.eval()
        loss: Tensor = self._step(to_device(batch, self.device))
        return loss

    def fragments(self, stateful: Collection[str] = ()) -> list[Fragment]:
        """Whole parameters; under DDP the ranks take turns in writing them."""
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
        return {
            "engine": self.name,
            "world_size": self.ranks.world_size,
            "device": str(self.device),
            "precision": str(self._dtype).removeprefix("torch."),
            "micro_batch_size": self._micro_batch_size,
            "grad_clip": self._clip,
            "loss_scale": self.scalars().get("loss_scale"),
            "optimizer": type(self.optimizer).__name__,
            "lr": [group["initial_lr"] for group in self.optimizer.param_groups],
        }

    def close(self) -> None:
        """See `Engine.close`."""
        self._forward = self._step
