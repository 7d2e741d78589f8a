"""Cross-entropy of a linear head without the logits: they exist for a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

IGNORE = -100
"""A label without a target."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a chunk of rows at once, so that backward neither keeps nor recomputes logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int, dtype: torch.dtype, training: bool
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)  # of softmax, loss and sums of gradients
        kept = (labels != IGNORE)[:, None]
        target = labels.where(kept[:, 0], 0)[:, None]
        # Rows without a target become zeros, so that nothing of theirs, not even a NaN, reaches the weight's gradient.
        h, w = hidden.to(dtype).masked_fill(~kept, 0), weight.to(dtype)
        grad_hidden = torch.empty_like(h) if training and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if training and ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        # One buffer for all chunks, and worked on in place: (rows, V) is the largest tensor here.
        buffer = torch.empty(min(rows, len(h)), len(w), dtype=wide, device=h.device)
        narrow = buffer if dtype == wide else torch.empty_like(buffer, dtype=dtype)
        for start in range(0, len(h), rows):
            part = slice(start, start + rows)
            logits = torch.mm(h[part], w.t(), out=narrow[: len(h[part])])
            logits = logits if dtype == wide else buffer[: len(logits)].copy_(logits)
            logits.sub_(logits.amax(dim=-1, keepdim=True))
            correct = logits.gather(1, target[part])
            total = logits.exp_().sum(dim=-1, keepdim=True)
            loss += (total.log() - correct).masked_fill_(~kept[part], 0).sum()
            if not training:
                continue
            # d loss / d logits = softmax - one_hot(target)
            grad = logits.div_(total).scatter_add_(1, target[part], torch.full_like(correct, -1))
            grad = grad if dtype == wide else narrow[: len(grad)].copy_(grad)
            if grad_hidden is not None:
                torch.mm(grad, w, out=grad_hidden[part])
            if grad_weight is None:
                continue
            if dtype == wide:
                grad_weight.addmm_(grad.t(), h[part])
            else:
                grad_weight += torch.mm(grad.t(), h[part])
        if training:
            ctx.hidden_dtype, ctx.weight_dtype = hidden.dtype, weight.dtype
            ctx.save_for_backward(kept, grad_hidden, grad_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        kept, grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            # In fp32: a bf16 tensor times a scalar would round the scalar, and so tilt every gradient below the head.
            grad_hidden = (grad_hidden.to(grad_loss.dtype) * grad_loss).masked_fill_(~kept, 0).to(ctx.hidden_dtype)
        if grad_weight is not None:
            # In place, as it may be gigabytes; autograd notices it if a graph is walked twice.
            grad_weight = grad_weight.mul_(grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def rows_at_once(hidden: Tensor, weight: Tensor) -> int:
    """How many rows of logits to make at a time."""
    vocabulary, width = weight.shape
    if hidden.is_cuda:
        # Each chunk reads and writes the weight's whole gradient: a GPU wants few of them, and half that gradient's
        # size (or 128 MiB) is little beside it.
        return max(width // 2, 2**25 // vocabulary)
    return max(1, 2**20 // vocabulary) * 16  # 64 MiB in fp32; MKL is slower by 8 % on rows that are no multiple of 16


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """Sum over the targets of `cross_entropy(hidden @ weight.T, labels)`, as an fp32 scalar.

    hidden (N, D), weight (V, D), labels (N,) int64 with -100 for no target. The logits of `chunk` rows exist at a
    time. Products are in autocast's dtype where it is on, else in the weight's; softmax, the loss and the weight's
    gradient are in fp32. On a CPU nothing is computed for rows without a target. The gradient can be taken once. The
    idea is that of Liger Kernel (arXiv:2410.10989).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    training = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if device == "cpu" and not isinstance(labels, FakeTensor):  # a GPU would have to be waited for
        kept = (labels != IGNORE).nonzero().flatten()
        if len(kept) < len(labels):
            hidden, labels = hidden[kept], labels[kept]
    rows = chunk or rows_at_once(hidden, weight)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, rows, dtype, training)  # type: ignore[no-untyped-call]
    return loss
