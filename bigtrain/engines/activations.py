"""What the forward pass keeps for the backward pass: everything, some of it, or block inputs only; and where.

Recomputation: https://arxiv.org/abs/1604.06174; the selective kind: https://arxiv.org/abs/2205.05198. None of it
changes a number: a block is computed again with the same random numbers, and what is moved comes back as it was.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, _CachedTorchDispatchMode, create_selective_checkpoint_contexts

from bigtrain.errors import UserError

SMALL = 1024
"""Bytes: what is smaller is not worth a transfer."""

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
ATTENTION = {
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
}


def _keep(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep products and attention outputs. Attention with dropout is computed again: were it left out, the dropouts
    after it would draw other random numbers than in the forward pass."""
    if operator in ATTENTION:
        names = [argument.name for argument in operator._schema.arguments]
        dropout = dict(zip(names, args, strict=False)).get("dropout_p", kwargs.get("dropout_p", 0.0))
        return CheckpointPolicy.PREFER_RECOMPUTE if dropout else CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.MUST_SAVE if operator in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


class _Recall(_CachedTorchDispatchMode):  # type: ignore[no-untyped-call]
    """torch's own insists that all which runs in the second pass ran in the first one. ZeRO-3 fetches a weight ahead,
    in another block, the first time: what is not kept anyway is let through."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS or func in ATTENTION:
            return super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def selective() -> tuple[Any, Any]:
    """For `torch.utils.checkpoint.checkpoint(..., context_fn=)`: a context of the first pass and one of the second."""
    keep, recall = create_selective_checkpoint_contexts(_keep)  # type: ignore[no-untyped-call]
    recall.__class__ = _Recall
    return keep, recall


def enable_activation_checkpointing(model: nn.Module, kind: str = "full") -> None:
    """Compute each block again in the backward pass: all of it (`full`, so that only its input is kept), or all but
    its matrix products and attention (`selective`); `none` leaves the model as it is.

    Raises:
        UserError: the model offers no way to do it.
    """
    if kind == "none":
        return
    offered: Any = model
    contexts = {"context_fn": selective} if kind == "selective" else {}
    if hasattr(model, "enable_activation_checkpointing"):
        if contexts and "context_fn" not in inspect.signature(offered.enable_activation_checkpointing).parameters:
            raise UserError(
                "trainer.activation_checkpointing=selective, but `enable_activation_checkpointing` of "
                f"{type(model).__name__} takes no `context_fn` (for torch.utils.checkpoint.checkpoint). Give it one, "
                "or take trainer.activation_checkpointing=full."
            )
        offered.enable_activation_checkpointing(**contexts)
    elif hasattr(model, "activation_checkpointing_enable"):  # Hugging Face, from transformers 5.20 or so
        offered.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, **contexts})
    elif hasattr(model, "gradient_checkpointing_enable"):  # and before
        offered.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **contexts})
    else:
        raise UserError(
            f"trainer.activation_checkpointing={kind}, but {type(model).__name__} has no method "
            "`enable_activation_checkpointing()`. Give it one, or set trainer.activation_checkpointing=none."
        )


def activation_checkpointing(model: nn.Module) -> str | None:
    """What the model does, read from its modules; None for one whose way of doing it is its own."""
    kinds = set()
    module: Any
    for module in model.modules():
        contexts: Any
        if hasattr(module, "checkpoint_contexts"):  # bigtrain's own
            on, contexts = module.activation_checkpointing, module.checkpoint_contexts
        elif hasattr(module, "gradient_checkpointing"):  # a block of Hugging Face's
            on = module.gradient_checkpointing
            function = getattr(module, "_gradient_checkpointing_func", None)
            contexts = getattr(function, "keywords", {}).get("context_fn")
        else:
            continue
        kinds.add("none" if not on else "selective" if contexts is selective else "full")
    if not kinds:
        return None if hasattr(model, "enable_activation_checkpointing") else "none"
    return kinds.pop() if len(kinds) == 1 else None


def offloaded(on: bool) -> AbstractContextManager[Any]:
    """Around a forward pass: with `on`, what it saves goes to the host's memory, and comes back in the backward pass.

    On a GPU to pinned memory, in the order of its stream, so that nobody waits; on a CPU it is a copy. Weights stay
    (also those that autocast has cast), as they are held anyway, and so do tensors of less than 1 KiB.
    """
    return torch.autograd.graph.saved_tensors_hooks(_to_host, _back) if on else nullcontext()


class Moved(NamedTuple):
    """A saved tensor in the host's memory, and how it lay on its device."""

    host: Tensor
    device: torch.device
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _to_host(tensor: Tensor) -> Tensor | Moved:
    if tensor.nbytes < SMALL or _is_weight(tensor):
        return tensor
    once = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    held = tensor.detach().as_strided(once, tensor.stride())  # what was expanded is moved once
    host = torch.empty_like(held, device="cpu", pin_memory=tensor.is_cuda).copy_(held, non_blocking=True)
    return Moved(host, tensor.device, tensor.shape, tensor.stride())


def _back(packed: Tensor | Moved) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    # With the strides that it had: a kernel that reads another layout may round otherwise.
    tensor = torch.empty_strided(packed.host.shape, packed.stride, dtype=packed.host.dtype, device=packed.device)
    return tensor.copy_(packed.host, non_blocking=True).expand(packed.shape)


def _is_weight(tensor: Tensor) -> bool:
    source = tensor if tensor._base is None else tensor._base  # a linear layer saves a transposed view
    if isinstance(source, nn.Parameter):
        return True
    made_by = source.grad_fn
    if made_by is None or made_by.name() != "ToCopyBackward0":
        return False
    return all(type(origin).__name__ == "AccumulateGrad" for origin, _ in made_by.next_functions)
