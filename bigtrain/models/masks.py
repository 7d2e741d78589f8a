"""Document masks: the documents of a sample do not see each other. Exact on a CPU, block-sparse on a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Mask = Tensor | BlockMask

NARROWEST_HEAD = 16
"""What FlexAttention's kernels multiply with."""


def within_documents(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, S) document ids: each token's position in its document, and where that document begins in the sample; both
    (B, S)."""
    at = torch.arange(document_ids.shape[1], device=document_ids.device)
    begins = document_ids != document_ids.roll(1, dims=1)
    begins[:, 0] = True
    start = torch.where(begins, at, 0).cummax(dim=1).values
    return at - start, start


def exact_mask(start: Tensor) -> Tensor:
    """(B, S) beginnings -> what sees what (B, 1, S, S) bool: a token sees what came before it in its document."""
    at = torch.arange(start.shape[1], device=start.device)
    return ((at <= at[:, None]) & (at >= start.unsqueeze(-1))).unsqueeze(1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def block_mask(start: Tensor) -> BlockMask:
    """The same for FlexAttention (Dong et al. 2024, arXiv:2412.05496), which skips blocks where nothing is seen."""

    def sees(sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= start[sample, query])

    samples, length = start.shape
    made: BlockMask = _kernel(create_block_mask, start)(sees, samples, None, length, length, device=start.device)
    return made


@torch.compiler.disable  # type: ignore[untyped-decorator]
def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """q (B, H, S, W), k and v (B, K, S, W) -> (B, H, S, W). On a CPU it goes without the kernel, to compare with."""
    out: Tensor = _kernel(flex_attention, q)(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return out


def has_kernel(device: torch.device, head_width: int) -> bool:
    """Whether FlexAttention serves: on a CPU it has no gradient."""
    return device.type == "cuda" and head_width >= NARROWEST_HEAD


def _kernel(function: Any, on: Tensor) -> Any:
    """The function as it is to be called on such a tensor. It is compiled by itself also where the model around it is
    compiled: in one with rotary positions, inductor's C++ kernel gives wrong numbers (torch 2.13)."""
    return _compiled(function) if on.is_cuda else function


@cache
def _compiled(function: Any) -> Any:
    """Once a process, not once a layer or a model."""
    return torch.compile(function)
