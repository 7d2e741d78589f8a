"""A small vision transformer: Dosovitskiy et al. 2021 (arXiv:2010.11929), pre-norm, the mean of the patches classified.

Shapes: B images, C channels, H = W pixels, P patches, D width, N classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bigtrain.models.checks import check_divides, check_dropout, check_images, check_sizes


class Block(nn.Module):
    """Attention among all patches, then an MLP, each beside the residual stream."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        batch, patches, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.dropout(self.out(seen))
        added: Tensor = x + self.dropout(self.down(functional.gelu(self.up(self.mlp_norm(x)))))
        return added


class VisionTransformer(nn.Module):
    """Images in patches, with learnt positions."""

    task = "image_classification"

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        check_sizes(classes=classes, channels=channels, image_size=image_size, patch_size=patch_size, width=width,
                    layers=layers, heads=heads)  # fmt: skip
        check_dropout(dropout)
        check_divides("patch_size", patch_size, "image_size", image_size)
        check_divides("heads", heads, "width", width)
        self.classes, self.channels, self.image_size = classes, channels, image_size
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList([Block(width, heads, mlp_width or 4 * width, dropout) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        self._again: Callable[..., Any] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) float -> logits (B, N).

        Raises:
            UserError: the images have another size or other channels than the model was built for.
        """
        check_images(images, self.channels, self.image_size)
        x = self.patches(images.to(self.head.weight.dtype)).flatten(2).transpose(1, 2) + self.positions
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x) if self._again is None or not self.training else self._again(block, x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits

    def enable_activation_checkpointing(self, context_fn: Callable[[], Any] | None = None) -> None:
        """Compute each block again in backward, with the same random numbers.

        `context_fn` goes to `torch.utils.checkpoint.checkpoint`: what the block keeps besides.
        """
        contexts: dict[str, Any] = {} if context_fn is None else {"context_fn": context_fn}

        def again(block: nn.Module, x: Tensor) -> Tensor:
            kept: Tensor = checkpoint(block, x, use_reentrant=False, **contexts)
            return kept

        self._again = again
