"""Probes of one process, each independent of the engines: a plain PyTorch loop, and what each logit depends on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.assembly import DataBatches, build_model, build_optimizer
from bigtrain.data.loader import collate
from bigtrain.data.sets import IGNORE
from bigtrain.distributed import Ranks, seed_all
from bigtrain.engines.base import Batch, Objective, to_device
from bigtrain.errors import UserError
from bigtrain.verify.cases import Case

SEARCHED = 500
"""Samples looked through for one that holds several documents."""


def plain_loop(
    case: Case,
    ranks: Ranks,
    data: Any,
    schedule: Callable[[int, int], float],
    objective: Objective,
    outcome: Any,
) -> None:
    """The recipe in PyTorch alone: the loss of each sample by itself, summed, and divided once by all targets; the norm
    of the whole gradient; a cut to `trainer.grad_clip`; the optimizer's step. It shares no code with the engines."""
    from bigtrain.verify.rank import set_dropout

    config = case.config
    config.trainer.micro_batch_size = 1
    seed_all(config.seed)
    model = build_model(config, data).to(ranks.device).train()
    set_dropout(model, on=False)
    optimizer = build_optimizer(config, model)
    rates = [group["lr"] for group in optimizer.param_groups]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = config.trainer.max_steps or 1
    batches = iter(DataBatches(data, config, ranks).train(0))
    for step in range(steps):
        samples, _ = next(batches)
        targets = sum(int((sample["labels"] != -100).sum()) for sample in samples if "labels" in sample)
        targets = targets or sum(objective.count(sample) for sample in samples)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, steps)
        loss = 0.0
        for sample in samples:
            part = objective.loss(model, to_device(sample, ranks.device)) / targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        norm = float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())
        clip = config.trainer.grad_clip
        if clip is not None and norm > clip:
            for gradient in gradients:
                gradient.mul_(clip / (norm + 1e-6))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        outcome.steps.append(step + 1)
        outcome.losses.append(loss)
        outcome.norms.append(norm)
        outcome.lrs.append(optimizer.param_groups[0]["lr"])
    outcome.parameters = sum(parameter.numel() for parameter in trained)


@torch.no_grad()
def leak(
    case: Case,
    ranks: Ranks,
    data: Any,
    schedule: Callable[[int, int], float],
    objective: Objective,
    outcome: Any,
) -> None:
    """Change a token, a sample, a document: the logits of what came before it, of the other samples, and of the other
    documents must not move.

    Raises:
        UserError: the model is no causal language model.
    """
    seed_all(case.config.seed)
    model = build_model(case.config, data).to(ranks.device).eval()
    batch = to_device(collate(_two_samples(data)), ranks.device)
    if "input_ids" not in batch:
        raise UserError("the samples have no input_ids")
    ids = batch["input_ids"]
    logits = _logits(model, batch, ids)
    if logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise UserError("the model gives no logits a token")
    outcome.vocabulary = int(logits.shape[-1])
    largest = float(logits.abs().max())

    def moved(changed: Tensor, still: Tensor) -> tuple[float, float]:
        """How far logits moved where they must stay, and where they must move."""
        distance = (_logits(model, batch, changed) - logits).abs().amax(dim=-1)
        there = distance[still].max() if still.any() else torch.zeros(())
        return float(there) / largest, float(distance[changed != ids].max()) / largest

    other = (ids + 1) % outcome.vocabulary
    every = torch.zeros_like(ids, dtype=torch.bool)
    middle = ids.shape[1] // 2
    token, sample = every.clone(), every.clone()
    token[:, middle] = True
    sample[1] = True
    before = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) < middle
    probes = {"an earlier token": (token, before), "another sample": (sample, ~sample)}
    if "document_ids" in batch:
        documents = batch["document_ids"]
        one = documents == documents[:, :1]  # those after it could see it
        probes["another document"] = (one, ~one)
    for name, (change, still) in probes.items():
        stayed, felt = moved(torch.where(change, other, ids), still)
        outcome.moved[name] = stayed
        outcome.moved["felt"] = min(outcome.moved.get("felt", felt), felt)


def _logits(model: nn.Module, batch: Batch, ids: Tensor) -> Tensor:
    documents = {"document_ids": batch["document_ids"]} if "document_ids" in batch else {}
    try:
        logits: Tensor = model(ids, **documents)
    except TypeError as error:
        raise UserError(
            f"{type(model).__name__} cannot be called with {', '.join(['input_ids', *documents])}"
        ) from error
    return logits.float()


def _two_samples(data: Any) -> list[Any]:
    """The first two, or two that hold several documents where samples say so."""
    found = [data.train[index % len(data.train)] for index in range(2)]
    if "document_ids" in found[0]:
        some = (data.train[index] for index in range(min(SEARCHED, len(data.train))))
        found = [*islice((sample for sample in some if _documents(sample) > 1), 2), *found]
    return found[:2]


def _documents(sample: Any) -> int:
    """Documents in a sample; padding is none."""
    return len(set(sample["document_ids"][sample["labels"] != IGNORE].tolist()))
