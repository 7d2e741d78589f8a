"""Any other model: what its forward pass keeps and computes, from a pass on tensors without memory.

A model that cannot be run on such (a packed LSTM reads the lengths of its sequences) is run for real where it is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bigtrain.config.components import build
from bigtrain.config.schema import Hardware, RunConfig
from bigtrain.engines.activations import enable_activation_checkpointing
from bigtrain.engines.base import DTYPES
from bigtrain.errors import UserError
from bigtrain.plan.memory import Memory, Setup, moved, states
from bigtrain.plan.pace import REACHED, Pace, messages, optimizer_seconds, sent
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
    kernels: int
    """That the forward pass starts."""


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
    tokens, frozen = setup.micro_batch_size * (setup.sequence_length or 1), found.parameters - found.trained
    return Pace(
        products=products,
        attention=0.0,
        traffic=setup.accumulation * passes * 2 * found.kept / bandwidth,
        optimizer=optimizer_seconds(found.trained, setup, hardware, bandwidth),
        messages=messages(found.trained, setup, hardware, nodes, products / setup.accumulation, frozen),
        tokens=tokens * setup.accumulation * setup.ranks,
        flops_per_token=3 * found.flops / tokens,
        peak=peak * setup.ranks,
        sent=sent(found.trained, setup, frozen),
    )


def traced(config: RunConfig) -> Traced:
    """Build the model, run its objective on one micro-batch, count.

    Raises:
        UserError: it can be run neither without memory nor, as it is too large, for real.
    """
    try:
        with _without_memory():
            return _counted(config)
    except UserError:
        raise
    except Exception as fault:  # of any kind: the model is anyone's
        with _without_memory():
            parameters = sum(p.numel() for p in model(config).parameters())
        if parameters > REAL:
            raise UserError(
                f"{config.model['_target_']} cannot be run without memory ({type(fault).__name__}), and is too large "
                "to be run here: train a few steps of it and look at memory_peak_bytes."
            ) from fault
        return _counted(config)


@contextmanager
def _without_memory() -> Iterator[None]:
    """No tensor has any, and no module is moved: peft moves its adapters, and these cannot be moved in place."""
    moved = nn.Module.to
    nn.Module.to = lambda module, *given, **named: module  # type: ignore[method-assign,assignment]
    try:
        with FakeTensorMode():
            yield
    finally:
        nn.Module.to = moved  # type: ignore[method-assign]


def _counted(config: RunConfig) -> Traced:
    made, objective = model(config), build(config.objective, "objective")
    enable_activation_checkpointing(made, config.trainer.activation_checkpointing)
    weights = {p.untyped_storage()._cdata for p in made.parameters()}
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
    counter, started = FlopCounterMode(display=False), _Started()
    with low, counter, started, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective.loss(made, batch(config))
    return Traced(
        parameters=sum(p.numel() for p in made.parameters()),
        trained=sum(p.numel() for p in made.parameters() if p.requires_grad),
        kept=float(sum(pieces.values())),
        largest=float(max(pieces.values(), default=0)),
        flops=float(counter.get_total_flops()),
        kernels=started.kernels,
    )


class _Started(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations on tensors; a view starts no kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kernels += func.namespace == "aten" and not func.is_view
        return func(*args, **(kwargs or {}))


def model(config: RunConfig) -> nn.Module:
    """The model that the configuration asks for, with as many tokens as are known, and classes."""
    component = config.model
    made: nn.Module = _built(config, component)
    if component.get("teacher"):
        path = str(component["teacher"])
        teacher: Any = _built(config, component | {"path": path, "config": None, "lora": None})
        made.stand_beside(teacher, path)  # type: ignore[operator]
    return made


def _built(config: RunConfig, component: dict[str, Any]) -> Any:
    tokens = vocabulary(config) or (None if component.get("path") else 32_000)  # a pretrained model has its own
    known = {"vocab_size": tokens, "classes": CLASSES}
    return build(_without_weights(component), "model", **known).train()


def _without_weights(component: dict[str, Any]) -> dict[str, Any]:
    """A pretrained model of transformers as one of its configuration."""
    if not component.get("path"):
        return component
    from bigtrain.models.pretrained import known_settings
    from bigtrain.models.source import locate, read_config

    path = str(component["path"])
    config = read_config(locate(path, files=["*.json"]), path).to_dict()
    known = known_settings(config["model_type"])  # files carry more, such as what older versions read
    return component | {"path": None, "config": {key: config[key] for key in config if key in known}, "teacher": None}


def batch(config: RunConfig) -> dict[str, Tensor]:
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
    if kind in ("causal_lm", "distillation"):
        return found | {"labels": ids.clone()}
    if kind == "dpo":  # the better answer and the worse one
        both = ids[:, None].expand(-1, 2, -1)
        return {"input_ids": both, "labels": both.clone()}
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
