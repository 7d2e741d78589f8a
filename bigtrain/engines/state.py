"""An engine's weights and optimizer state as fragments: flat, live views under the model's own names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigtrain.checkpoint.fragments import Fragment

Numbers = list[tuple[Fragment, dict[str, Any]]]


def fragment(
    name: str, shape: Iterable[int], start: int, weight: Tensor, offset: int, numel: int, state: dict[str, Any]
) -> Fragment:
    """`numel` elements from `offset` of the tensor `weight` (a whole one or a flat partition) and of its optimizer
    `state`: entries of the same shape are cut alike, any other (a counter, a row of variances) is kept whole."""
    tensors = {"weight": weight.detach().view(-1).narrow(0, offset, numel)}
    extra: dict[str, Tensor | float | int] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == weight.shape and value.dim() > 0:
            tensors[key] = value.detach().view(-1).narrow(0, offset, numel)
        elif isinstance(value, Tensor | float | int):
            extra[key] = value
    return Fragment(name, tuple(shape), start, numel, tensors, extra)


def whole_parameters(
    model: nn.Module,
    rank: int,
    world_size: int,
    master: Callable[[nn.Parameter], Tensor],
    state: Callable[[nn.Parameter], dict[str, Any]],
    cut: Collection[nn.Parameter] = (),
) -> Iterator[Fragment]:
    """Parameters that every rank holds whole, all but those `cut`; who writes goes round, so that all write as much."""
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameter in cut:
            continue
        weight = master(parameter)
        whole = fragment(name, parameter.shape, 0, weight, 0, weight.numel(), state(parameter))
        whole.owner = index % world_size == rank
        yield whole


def persistent_buffers(model: nn.Module, rank: int) -> Iterator[Fragment]:
    """Buffers that belong to the model's state dict; rank 0 writes them."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key in module._non_persistent_buffers_set or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            whole = fragment(f"{prefix}.{key}".lstrip("."), buffer.shape, 0, buffer, 0, buffer.numel(), {})
            whole.owner = rank == 0
            yield whole


def write_back(handed: Iterable[Fragment], states: Mapping[str, dict[str, Any]]) -> None:
    """Plain numbers of the optimizer's state cannot be loaded in place: take them from the fragments."""
    for one in handed:
        for key, value in one.extra.items():
            if not isinstance(value, Tensor):
                states[one.name][key] = value


def make_state(optimizer: Optimizer, tensors: Iterable[Tensor]) -> None:
    """Let the optimizer make the state of `tensors` that has none yet, with a step of zero gradients and lr 0.

    Works for any torch optimizer, without knowing its state; the values are there to be overwritten.
    """
    fresh = [tensor for tensor in tensors if not optimizer.state.get(tensor)]
    if not fresh:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for tensor in fresh:
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    for tensor in fresh:
        tensor.grad = None
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
