"""Cross-entropy of logits that a model has made already, without further copies of them in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""A label without a target."""


class _CrossEntropy(torch.autograd.Function):
    """The gradient is made in forward, a chunk of rows at a time, in the dtype of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rows: int, training: bool) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        kept = (labels != IGNORE)[:, None]
        target = labels.where(kept[:, 0], 0)[:, None]
        grads = torch.empty_like(logits) if training else None
        loss = torch.zeros((), dtype=wide, device=logits.device)
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            logp = torch.log_softmax(logits[part].to(wide), dim=-1)
            loss -= logp.gather(1, target[part]).masked_fill_(~kept[part], 0).sum()
            if grads is not None:
                # d loss / d logits = softmax - one_hot(target), and nothing where there is no target
                minus = torch.full_like(target[part], -1, dtype=wide)
                grads[part] = logp.exp_().scatter_add_(1, target[part], minus).masked_fill_(~kept[part], 0)
        if training:
            ctx.rows = rows
            ctx.save_for_backward(grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        # In fp32 whatever the logits are, as a factor rounded to bf16 would tilt every gradient; in place, as autograd
        # notices it if a graph is walked twice.
        for part in grads.split(ctx.rows):
            part.copy_(part.to(grad_loss.dtype) * grad_loss)
        return grads, None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def cross_entropy(logits: Tensor, labels: Tensor, chunk: int = 256) -> Tensor:
    """Sum of the cross-entropy over the targets, as an fp32 scalar.

    logits (N, V) of any float dtype, labels (N,) int64 with -100 for no target; `chunk` rows at a time are in fp32.
    The gradient can be taken once.
    """
    training = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _CrossEntropy.apply(logits, labels, chunk, training)  # type: ignore[no-untyped-call]
    return loss
