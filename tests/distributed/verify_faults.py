"""Faults to be planted in the ranks of `bigtrain verify`, each as it would be in an engine, a model or a resume."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _resuming(case: Any) -> bool:
    return case.resume_from is not None


def average_of_averages(case: Any, ranks: Any) -> None:
    """ddp divides each micro-batch by its own targets, and the sum by their number."""
    from bigtrain.engines import plain

    real = plain.PlainEngine.train_step

    def train_step(self: Any, micro_batches: Any, targets: int, lr_factor: float) -> Any:
        objective, parts = self._step.objective, len(micro_batches) * self.ranks.world_size

        class Mean:
            def loss(self, model: nn.Module, batch: Any) -> Any:
                return objective.loss(model, batch) / int((batch["labels"] != -100).sum()) * targets / parts

        self._step.objective = Mean()
        try:
            return real(self, micro_batches, targets, lr_factor)
        finally:
            self._step.objective = objective

    if case.config.engine.name == "ddp":
        plain.PlainEngine.train_step = train_step  # type: ignore[method-assign]


def objective_of_means(case: Any, ranks: Any) -> None:
    """The objective gives a mean where a sum is wanted: the same fault everywhere, the reference included."""
    from bigtrain.objectives.causal import CausalLM

    real = CausalLM.loss
    CausalLM.loss = lambda self, model, batch: (  # type: ignore[method-assign]
        real(self, model, batch) / max(self.count(batch), 1) * batch["labels"].numel()
    )


def missing_clip(case: Any, ranks: Any) -> None:
    """ddp does not clip, though it says so."""
    from bigtrain.engines import plain

    if case.config.engine.name == "ddp":
        plain.clip_grads_with_norm_ = lambda *arguments: None  # type: ignore[attr-defined]


def missing_clip_in_the_reference(case: Any, ranks: Any) -> None:
    from bigtrain.engines import plain

    plain.clip_grads_with_norm_ = lambda *arguments: None  # type: ignore[attr-defined]


def all_ones_mask(case: Any, ranks: Any) -> None:
    """Attention sees what follows."""
    from bigtrain.models import native

    real = nn.functional.scaled_dot_product_attention

    class Functional:
        def __getattr__(self, name: str) -> Any:
            return getattr(nn.functional, name)

        def scaled_dot_product_attention(self, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> Any:
            return real(q, k, v)

    native.F = Functional()  # type: ignore[attr-defined]


def documents_in_one(case: Any, ranks: Any) -> None:
    """The mask of documents lets all see all that came before."""
    from bigtrain.models import native

    real = native.within_documents
    native.within_documents = lambda ids: (real(ids)[0], real(torch.zeros_like(ids))[1])


def untied(case: Any, ranks: Any) -> None:
    """ddp's copy of the model has a head of its own."""
    from bigtrain import assembly

    real = assembly.build_model

    def build_model(config: Any, data: Any) -> nn.Module:
        model: Any = real(config, data)
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        return model

    if case.config.engine.name == "ddp":
        assembly.build_model = build_model


def dropout_reused(case: Any, ranks: Any) -> None:
    """Every rank begins with the same random numbers."""
    from bigtrain import distributed

    real = distributed.seed_all
    distributed.seed_all = lambda seed, rank=None: real(seed, None if rank is None else 0)


def dropout_reused_in_every_step(case: Any, ranks: Any) -> None:
    from bigtrain.engines import plain

    real = plain.PlainEngine.train_step

    def train_step(self: Any, *arguments: Any) -> Any:
        torch.manual_seed(ranks.rank)
        return real(self, *arguments)

    plain.PlainEngine.train_step = train_step  # type: ignore[method-assign]


def lost_optimizer_state(case: Any, ranks: Any) -> None:
    """A resume finds the weights only."""
    from bigtrain.engines import plain

    real = plain.PlainEngine.loaded

    def loaded(self: Any) -> None:
        real(self)
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
            state["step"].zero_()

    if _resuming(case):
        plain.PlainEngine.loaded = loaded  # type: ignore[method-assign]


def skipped_batch(case: Any, ranks: Any) -> None:
    """A resume begins a batch too late."""
    from bigtrain import assembly

    real = assembly.resume

    def resume(config: Any, *arguments: Any) -> Any:
        state, found, rng = real(config, *arguments)
        state.position += config.trainer.global_batch_size
        return state, found, rng

    if _resuming(case):
        assembly.resume = resume


def stale_lr(case: Any, ranks: Any) -> None:
    """A resumed run keeps the rate that it began with."""
    from bigtrain.engines import plain

    real, first = plain.set_lr, []

    def set_lr(optimizer: Any, factor: float) -> None:
        first.append(factor)
        real(optimizer, first[0])

    if _resuming(case):
        plain.set_lr = set_lr  # type: ignore[attr-defined]


def wrong_loss_scale(case: Any, ranks: Any) -> None:
    """fp16: the gradients are divided by half of the scale."""
    real = torch.amp.GradScaler.unscale_

    def unscale_(self: Any, optimizer: Any) -> None:
        real(self, optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(2)

    if case.config.precision.name == "fp16":
        torch.amp.GradScaler.unscale_ = unscale_  # type: ignore[method-assign]


def sharded_init_left_out(case: Any, ranks: Any) -> None:
    """ZeRO-3 cuts up weights that nobody has initialised: transformers#43847."""
    from bigtrain.engines import deepspeed

    real = deepspeed.shard

    def shard(module: Any, settings: Any, model: nn.Module, *rest: Any) -> None:
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape)
        real(module, settings, model, *rest)

    if case.config.engine.name == "zero3":
        deepspeed.shard = shard  # type: ignore[attr-defined]


def dies(case: Any, ranks: Any) -> None:
    """A rank ends without a word."""
    import os

    if ranks.rank == 1:
        os._exit(7)
