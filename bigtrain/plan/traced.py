"""Any other model: what its forward pass keeps and computes, from a pass on tensors without memory.

A model that cannot be run on such (a packed LSTM reads the lengths of its sequences) is run for real where it is small.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bigtrain.config.components import build
from bigtrain.config.schema import Hardware, RunConfig
from bigtrain.engines.activations import enable_activation_checkpointing
from bigtrain.engines.base import DTYPES
from bigtrain.errors import UserError
from bigtrain.plan.memory import Memory, Setup, moved, states
from bigtrain.plan.pace import REACHED, Pace, messages, optimizer_seconds
from bigtrain.plan.subject import vocabulary

REAL = 100_000_000
"""Parameters up to which a model may be run for real."""
CLASSES = 2
"""Of a classifier whose data are not prepared."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Of one micro-batch."""

    parameters: int
    trained: int
    kept: float
    """Bytes that the forward pass keeps, loss and all."""
    largest: float
    """Bytes of the largest piece of it: as large a gradient stands beside it in the backward pass."""
    flops: float
    """Of the forward pass."""


def memory(found: Traced, setup: Setup) -> Memory:
    """The peak of one rank: what is kept and what stands beside it, or the optimizer's step."""
    held = states(found.trained, setup)
    frozen = (found.parameters - found.trained) * (setup.size if setup.deepspeed else 4)
    host = moved(held, setup)
    weights, optimizer = held["parameters"] + frozen, held["optimizer"]
    before = held["gradients"] if setup.accumulation > 1 or setup.engine == "ddp" else 0.0
    gathered = float(setup.size * found.parameters) if setup.stage == 3 else 0.0
    points = [
        Memory(weights, before, optimizer, found.kept + 2 * found.largest, 0.0, gathered, host, "the loss"),
        Memory(weights, held["gradients"], optimizer, 2 * found.largest, 0.0, gathered, host, "the optimizer"),
    ]
    return max(points, key=lambda point: point.total)


def pace(found: Traced, setup: Setup, hardware: Hardware, peak: float, nodes: int) -> Pace:
    """What a step takes: its products, what it keeps written and read, the optimizer, messages."""
    assert hardware.bandwidth is not None
    bandwidth = hardware.bandwidth * 1e9 * REACHED
    passes = 3 + (setup.activation_checkpointing == "full")
    products = setup.accumulation * passes * found.flops / (peak * hardware.products)
    tokens = setup.micro_batch_size * (setup.sequence_length or 1)
    return Pace(
        products=products,
        attention=0.0,
        traffic=setup.accumulation * passes * 2 * found.kept / bandwidth,
        optimizer=optimizer_seconds(found.trained, setup, hardware, bandwidth),
        messages=messages(found.trained, setup, hardware, nodes, products / setup.accumulation),
        tokens=tokens * setup.accumulation * setup.ranks,
        flops_per_token=3 * found.flops / tokens,
        peak=peak * setup.ranks,
    )


def traced(config: RunConfig) -> Traced:
    """Build the model, run its objective on one micro-batch, count.

    Raises:
        UserError: it can be run neither without memory nor, as it is too large, for real.
    """
    component = _without_weights(config.model)
    fresh = replace(config, model=component)
    try:
        with FakeTensorMode():
            return _counted(fresh)
    except UserError:
        raise
    except Exception as fault:  # of any kind: the model is anyone's
        with FakeTensorMode():
            parameters = sum(p.numel() for p in _model(fresh).parameters())
        if parameters > REAL:
            raise UserError(
                f"{component['_target_']} cannot be run without memory ({type(fault).__name__}), and is too large to "
                "be run here: train a few steps of it and look at memory_peak_bytes."
            ) from fault
        return _counted(fresh)


def _counted(config: RunConfig) -> Traced:
    model, objective = _model(config), build(config.objective, "objective")
    enable_activation_checkpointing(model, config.trainer.activation_checkpointing)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    pieces: dict[int, int] = {}
    held = []  # else a piece that is freed may have its place taken by another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            pieces[storage._cdata] = storage.nbytes()
            held.append(storage)
        return tensor

    dtype = DTYPES[config.precision.name]
    low = torch.autocast("cpu", dtype) if dtype is not torch.float32 else nullcontext()
    counter = FlopCounterMode(display=False)
    with low, counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective.loss(model, batch(config, model))
    return Traced(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        kept=float(sum(pieces.values())),
        largest=float(max(pieces.values(), default=0)),
        flops=float(counter.get_total_flops()),
    )


def _model(config: RunConfig) -> nn.Module:
    known = {"vocab_size": vocabulary(config) or 32_000, "classes": CLASSES}
    model: nn.Module = build(config.model, "model", **known).train()
    return model


def _without_weights(component: dict[str, Any]) -> dict[str, Any]:
    """A pretrained model of transformers as one of its configuration."""
    if not component.get("path"):
        return component
    from bigtrain.models.source import locate, read_config

    path = str(component["path"])
    config = read_config(locate(path, files=["*.json"]), path).to_dict()
    return component | {"path": None, "config": config, "teacher": None}


def batch(config: RunConfig, model: nn.Module) -> dict[str, Tensor]:
    """A micro-batch as the recipe's data make it."""
    samples = config.trainer.micro_batch_size
    kind = str(config.objective["_target_"]).rpartition(".")[2]
    if "image_size" in config.model:
        size = [config.model[name] for name in ("channels", "image_size", "image_size")]
        return {"images": torch.zeros(samples, *size), "labels": torch.zeros(samples, dtype=torch.long)}
    length = int(config.data.get("sequence_length") or 0)
    if not length:
        raise UserError("bigtrain plan needs data.sequence_length.")
    ids = torch.ones(samples, length, dtype=torch.long)
    found = {"input_ids": ids}
    if kind == "causal_lm":
        return found | {"labels": ids.clone()}
    found["attention_mask"] = ids.clone()
    if kind == "masked_lm":
        return found | {"labels": ids.clone()}
    if kind == "seq2seq":
        target = int(config.data.get("target_length") or length)
        return found | {"labels": torch.ones(samples, target, dtype=torch.long)}
    if kind in ("classification", "regression"):
        labels = torch.zeros(samples, dtype=torch.long if kind == "classification" else torch.float)
        return found | {"labels": labels}
    raise UserError(f"bigtrain plan does not know the batches of objective={kind} yet.")
