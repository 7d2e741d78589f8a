"""`zero0` … `zero3`: DeepSpeed's engine behind ours. Only what differs from torch alone is here.

ZeRO: https://arxiv.org/abs/1910.02054. DeepSpeed averages over ranks, so the loss is multiplied by their number; its
division by accumulation steps is off (`scale_wrt_gas=False`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment
from bigtrain.config.schema import RunConfig
from bigtrain.distributed import Ranks
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
from bigtrain.engines.deepspeed_config import check_extra, deepspeed_config
from bigtrain.engines.deepspeed_nvme import Folder, build_async_io, place, read_aligned, uses_disk
from bigtrain.engines.deepspeed_order import in_one_order
from bigtrain.engines.deepspeed_settings import effective
from bigtrain.engines.deepspeed_start import (
    Weights,
    build_once,
    forget_groups,
    import_deepspeed,
    refuse_on_cpu,
    refuse_unsupported,
    shard,
    silent,
    unrounded,
)
from bigtrain.engines.deepspeed_state import Layout, layout_of
from bigtrain.engines.sequence_parallel import SequenceParallel
from bigtrain.engines.tensor_parallel import TensorParallel
from bigtrain.errors import UserError


class DeepSpeedEngine:
    """DeepSpeed with ZeRO stage 0, 1, 2 or 3."""

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
        self._dtype = DTYPES[config.precision.name]
        deepspeed = import_deepspeed(ranks.device)
        check_extra(config.engine.extra)
        refuse_unsupported(deepspeed, self._dtype)
        refuse_on_cpu(config.engine, ranks.device)
        settings = deepspeed_config(config, ranks.world_size, ranks.device.type)
        stage = settings["zero_optimization"]["stage"]
        sharded = stage == 3 and config.engine.sharded_init
        self._linear = torch.nn.functional.linear  # ZeRO-3 puts its own in the place of this one, for the whole process

        self.model = build_once(build_model, ranks) if sharded else build_model()
        sequence, tensor = config.engine.sequence_parallel, config.engine.tensor_parallel
        self._sequence = SequenceParallel(self.model, ranks, sequence) if sequence > 1 else None
        self._tensor = TensorParallel(self.model, ranks, tensor) if tensor > 1 else None
        self._holders = tensor
        """Ranks that hold one model together: all of them compute the same loss."""
        weights: Weights = {}  # as the model's code made them: the fp32 masters start from them
        if not sharded:
            make_contiguous(self.model)
            weights = unrounded(self.model)
            self.model.to(ranks.device)
        enable_activation_checkpointing(self.model, config.trainer.activation_checkpointing)
        # Before the weights are cut: the groups of weight decay need to see the shapes.
        self.optimizer = build_optimizer(self.model)
        if stage > 0 and isinstance(self.optimizer, torch.optim.Adagrad):
            raise UserError("DeepSpeed drops the parameter groups of torch.optim.Adagrad: use engine=ddp or zero0.")
        self.base_lr = remember_base_lr(self.optimizer)
        self._folder: Folder | None = None
        if uses_disk(config.engine):
            self._folder = Folder(str(config.engine.nvme_path), ranks)  # before minutes of compiling
            build_async_io(ranks)
            place(settings, self._folder.path, self.model, ranks)
        if sharded:
            weights = shard(deepspeed, settings, self.model, self._dtype, ranks)
        self._step = Step(self.model, objective, ranks.device, self._dtype, config.trainer.activation_offload)
        if config.trainer.compile:
            self._step.compile()

        set_lr(self.optimizer, 0.0)  # stage 0 in low precision takes a step to make the optimizer's state
        with silent():
            mesh = self._tensor.mesh if self._tensor else None
            self._engine, *_ = deepspeed.initialize(
                model=self._step, optimizer=self.optimizer, config=settings, mpu=mesh
            )
        if stage in (1, 2):
            in_one_order(self._engine.optimizer)
        if self._folder:
            read_aligned(self._engine.optimizer)
        if self._tensor:
            self._tensor.note_whole_shapes()
            ranks = self._tensor.data_ranks(ranks)
        self._layout: Layout = layout_of(self._engine, self.optimizer, self.model, ranks)
        if self._dtype is not torch.float32:
            self._layout.start_from(weights)  # DeepSpeed made its masters from the rounded ones
        if self._dtype is torch.float16:
            self._layout.count_like_torch()

    def train_step(self, micro_batches: Sequence[Batch], targets: int, lr_factor: float) -> StepResult:
        """See `Engine.train_step`."""
        engine = self._engine
        self.model.train()
        set_lr(self.optimizer, lr_factor)
        stage_0 = engine.zero_optimization_stage() == 0
        # DeepSpeed 0.19.8 forgets to scale the loss at stage 0, though it divides the gradients by the scale.
        scale = float(engine.optimizer.loss_scale) if stage_0 and self._dtype is torch.float16 else 1.0
        averaged = self.ranks.world_size // self._holders
        if self._tensor:
            self._tensor.forget()
        loss = torch.zeros((), device=self.device)
        norm: Tensor | float | None = None
        for index, batch in enumerate(micro_batches):
            part = engine(self._here(batch)) / max(targets, 1)
            engine.backward(part * (averaged * scale), scale_wrt_gas=False)
            loss += part.detach() / self._holders
            if index == len(micro_batches) - 1 and stage_0 and self._dtype is torch.float32:  # it keeps no norm there
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                norm = self._tensor.grad_norm() if self._tensor else get_total_norm(gradients)
            engine.step()
        if self._dtype is torch.float16:
            self._layout.count_like_torch()
        if norm is None:
            norm = engine.get_global_grad_norm() / scale
        return StepResult(loss, norm, may_overflow=self._dtype is torch.float16)

    @torch.no_grad()
    def tally(self, batch: Batch) -> Tensor:
        """See `Engine.tally`."""
        self.model.eval()
        sums: Tensor = self._engine(self._here(batch)) / self._holders
        return sums

    def _here(self, batch: Batch) -> Batch:
        """What of the batch is this rank's, on the device."""
        return to_device(batch if self._sequence is None else self._sequence.cut(batch), self.device)

    def fragments(self, stateful: Collection[str] = ()) -> list[Fragment]:
        """zero0: whole parameters, written in turns; from zero1 on: this rank's part of the fp32 masters."""
        held = self._layout.fragments(make_state=bool(stateful))
        return self._tensor.fragments(held) if self._tensor else held

    def loaded(self) -> None:
        """See `Engine.loaded`."""
        if self._tensor:
            self._tensor.loaded()
        self._layout.loaded()

    def scalars(self) -> dict[str, Scalar]:
        """The loss scale and its counters (fp16)."""
        return self._layout.scalars() if self._dtype is torch.float16 else {}

    def load_scalars(self, values: dict[str, Scalar]) -> None:
        """See `Engine.load_scalars`."""
        if self._dtype is torch.float16 and "loss_scale" in values:
            self._layout.load_scalars(values)

    def settings(self) -> dict[str, Any]:
        """See `Engine.settings`: read from DeepSpeed's live objects, not from the dictionary that it was given."""
        cut = {
            "engine.sequence_parallel": self._sequence.size if self._sequence else 1,
            "engine.tensor_parallel": self._tensor.size if self._tensor else 1,
            "world_size": self._engine.dp_world_size * (self._tensor.size if self._tensor else 1),
        }
        return effective(self._engine, self.optimizer) | self._step.settings() | cut

    def close(self) -> None:
        """See `Engine.close`."""
        self._engine.destroy()
        if self._tensor:
            self._tensor.close()
        if self._folder:
            self._folder.close()
        forget_groups()
        torch.nn.functional.linear = self._linear
