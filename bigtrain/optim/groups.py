"""Which parameters decay."""

from __future__ import annotations

from typing import Any

from torch import nn

HEADS = ("head", "lm_head", "embed_out", "output")
"""Usual names of the matrix that makes logits."""


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """The whole parameter's shape: under ZeRO-3 `parameter.shape` is (0,) while it is sharded."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def roles(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every parameter that requires a gradient, once, with its role: `norm`, `embedding`, `head`, `matrix` or `vector`.

    A weight shared by embedding and head is an embedding.
    """
    found: dict[nn.Parameter, str] = {}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, nn.Embedding):
                found[parameter] = "embedding"
            elif type(module).__name__.endswith("Norm"):
                found[parameter] = "norm"
            elif len(shape_of(parameter)) < 2 or leaf == "bias":
                found.setdefault(parameter, "vector")
            else:
                found.setdefault(parameter, "head" if name in HEADS else "matrix")
    return found


def decay_groups(model: nn.Module, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: matrices decay; norms, biases and embeddings do not.

    Frozen parameters are left out and tied ones are there once. With `decay_all` everything decays, in one group.
    """
    held = roles(model)
    decaying = [p for p, role in held.items() if decay_all or role in ("matrix", "head")]
    others = [p for p, role in held.items() if not (decay_all or role in ("matrix", "head"))]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
