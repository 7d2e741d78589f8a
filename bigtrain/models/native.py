"""The native decoder: GPT-2's and Llama's architecture, and all between them, in one file.

Shapes: B samples, S tokens, D width, H heads, K heads of keys and values, W head width, F MLP width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint, noop_context_fn

from bigtrain.errors import UserError
from bigtrain.models.losses import linear_cross_entropy
from bigtrain.models.masks import (
    Mask,
    block_mask,
    exact_mask,
    has_kernel,
    masked_attention,
    within_documents,
)
from bigtrain.models.shapes import Shape
from bigtrain.telemetry.meters import matmul_parameters, training_flops_per_token

Rope = tuple[Tensor, Tensor] | None
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (B, H, S, W), k and v (B, K, S, W) -> (B, S, H, W)."""
Exchange = Callable[[Attend, Tensor, Tensor, Tensor], Tensor]
"""The same of q, k and v that hold a part of the sequence only: the attention is done elsewhere, on whole sequences."""


class Linear(nn.Linear):
    """Born with its final weights: under ZeRO-3's sharded initialisation there is nothing left to set afterwards."""

    def __init__(self, inputs: int, outputs: int, bias: bool, std: float) -> None:
        self.std = std
        super().__init__(inputs, outputs, bias)

    def reset_parameters(self) -> None:
        """Normal weights, no bias (GPT-2's way)."""
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Born with its final weights, as `Linear` is."""

    def __init__(self, rows: int, width: int, std: float) -> None:
        self.std = std
        super().__init__(rows, width)

    def reset_parameters(self) -> None:
        """Normal weights."""
        nn.init.normal_(self.weight, std=self.std)


class Head(nn.Module):
    """Owns or shares the (V, D) weight; the loss comes out of `forward`, so that hooks on it see a tied weight too."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (B, S, V); with labels (B, S) the fp32 sum of the cross-entropy instead."""
        if labels is None:
            return F.linear(hidden, self.weight)
        loss: Tensor = linear_cross_entropy(hidden.flatten(0, -2), self.weight, labels.flatten())
        return loss


class Rotary:
    """Rotary positions (arXiv:2104.09864): cosines and sines in fp32, made on first use.

    A plain object: DeepSpeed would cast a buffer to bf16, and a table of positions in bf16 is wrong from 256 on.
    """

    def __init__(self, width: int, theta: float, scaling: Mapping[str, Any] | None) -> None:
        self.width, self.theta, self.scaling = width, theta, scaling
        self.table: tuple[Tensor, Tensor] | None = None

    def __call__(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (S, W) fp32."""
        if self.table is None or len(self.table[0]) < length or self.table[0].device != device:
            with torch.inference_mode(False), torch.no_grad():  # an inference tensor could not be trained with later
                angles = torch.outer(torch.arange(length, device=device).float(), self.frequencies().to(device))
                self.table = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        return self.table[0][:length], self.table[1][:length]

    def frequencies(self) -> Tensor:
        """(W/2,) radians a token; Llama 3 stretches the wavelengths that its first context was too short for."""
        powers = torch.arange(0, self.width, 2, dtype=torch.float32) / self.width
        f: Tensor = 1.0 / self.theta**powers
        if self.scaling is None:
            return f
        s = self.scaling
        turns = s["original_max_position_embeddings"] * f / (2 * math.pi)
        low, high = float(s["low_freq_factor"]), float(s["high_freq_factor"])
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched by the factor; 1: as it was
        stretched: Tensor = f * (keep + (1 - keep) / float(s["factor"]))
        return stretched


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + W/2) of x (B, H, S, W), which is Hugging Face's order of Llama's weights."""
    left, right = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * sin.to(x.dtype)


def check_heads(heads: int, kv_heads: int, parts: int, setting: str = "sequence_parallel") -> None:
    """Every rank gets as many heads: a `UserError` where they cannot be divided."""
    for count, what in ((heads, "attention heads"), (kv_heads, "heads of keys and values")):
        if count % parts:
            raise UserError(f"engine.{setting}={parts} does not divide the model's {count} {what}: take one that does.")


def norm(shape: Shape) -> nn.Module:
    """The shape's normalisation over D."""
    if shape.norm == "rms_norm":
        return nn.RMSNorm(shape.width, eps=shape.norm_eps)
    return nn.LayerNorm(shape.width, eps=shape.norm_eps, bias=shape.bias)


class Attention(nn.Module):
    """Causal self-attention through torch's SDPA, or FlexAttention where documents are kept apart on a GPU."""

    def __init__(self, shape: Shape, std: float, std_out: float) -> None:
        super().__init__()
        self.head_width = shape.head_width
        self.sizes = [n * shape.head_width for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
        self.repeat = shape.heads // shape.kv_heads
        self.qkv = Linear(shape.width, sum(self.sizes), shape.bias, std)
        self.out = Linear(self.sizes[0], shape.width, shape.bias, std_out)
        self.exchange: Exchange | None = None

    def forward(self, x: Tensor, rope: Rope, mask: Mask | None = None) -> Tensor:
        """x (B, S, D) -> (B, S, D); mask (B, 1, S, S) bool: what sees what, None: all that came before."""
        heads = (t.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for t in self.qkv(x).split(self.sizes, dim=-1))
        q, k, v = heads  # (B, H or K, S, W)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        attend = partial(self.attend, mask=mask)
        y = attend(q, k, v) if self.exchange is None else self.exchange(attend, q, k, v)
        out: Tensor = self.out(y.flatten(-2))
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
        """q (B, H, S, W), k and v (B, K, S, W) -> (B, S, H, W)."""
        if isinstance(mask, BlockMask):
            attended: Tensor = masked_attention(q, k, v, mask)
            return attended.transpose(1, 2)
        grouped = self.repeat > 1
        if grouped and not (mask is None and q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)):
            # Only the flash kernel reads grouped heads, and it takes no mask; the others would fall back to one that
            # stores S x S scores.
            k, v = (t.repeat_interleave(self.repeat, dim=1) for t in (k, v))
            grouped = False
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
        return y.transpose(1, 2)


class MLP(nn.Module):
    """GELU (in GPT-2's tanh form) or SwiGLU (arXiv:2002.05202)."""

    def __init__(self, shape: Shape, std: float, std_out: float) -> None:
        super().__init__()
        self.gated = shape.activation == "swiglu"
        inner = shape.mlp_width * (2 if self.gated else 1)  # of the gate first, then of what it opens
        self.up = Linear(shape.width, inner, shape.bias, std)
        self.down = Linear(shape.mlp_width, shape.width, shape.bias, std_out)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, D) -> (B, S, D)."""
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(x, approximate="tanh")
        out: Tensor = self.down(x)
        return out


class Block(nn.Module):
    """Attention, then MLP, each normalised before and added after."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        std_out = 0.02 / math.sqrt(2 * shape.layers)  # 2 a layer are added up on the residual stream
        self.attention_norm, self.mlp_norm = norm(shape), norm(shape)
        self.attention = Attention(shape, 0.02, std_out)
        self.mlp = MLP(shape, 0.02, std_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rope: Rope, mask: Mask | None = None) -> Tensor:
        """x (B, S, D) -> (B, S, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, mask))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class Decoder(nn.Module):
    """A causal language model of any `Shape`."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        # The final norm makes |hidden|^2 = D, so the first logits have variance D std^2 and the first loss is
        # ln V + D std^2 / 2. GPT-2's 0.02 would put a wide model 3 to 14 % above ln V: here it is 1 % at most.
        std = min(0.02, math.sqrt(0.02 * math.log(max(shape.vocab_size, 2)) / shape.width))
        self.vocab_size = shape.vocab_size
        self.embedding = Embedding(shape.vocab_size, shape.width, std)
        learned = shape.positions == "learned"
        self.positions = Embedding(shape.sequence_length, shape.width, 0.02) if learned else None
        self.rotary = None if learned else Rotary(shape.head_width, shape.rope_theta, shape.rope_scaling)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = norm(shape)
        if shape.tied:
            weight = cast(nn.Parameter, self.embedding.weight)
        else:
            weight = nn.Parameter(torch.empty(shape.vocab_size, shape.width).normal_(std=std))
        self.head = Head(weight)
        self.part, self.parts = 0, 1  # of the sequence
        self.activation_checkpointing = False
        self.checkpoint_contexts: Callable[[], Any] | None = None

    def enable_activation_checkpointing(self, context_fn: Callable[[], Any] | None = None) -> None:
        """Keep each block's input only and compute the block again in backward, with the same random numbers.

        `context_fn` goes to `torch.utils.checkpoint.checkpoint`: what the block keeps besides.
        """
        self.activation_checkpointing, self.checkpoint_contexts = True, context_fn

    def enable_sequence_parallel(self, part: int, parts: int, exchange: Exchange) -> None:
        """From now on `input_ids` are the part of index `part` of `parts` equal ones of a sequence; `document_ids` stay
        whole.

        Raises:
            UserError: the heads cannot be divided by the parts.
        """
        check_heads(self.shape.heads, self.shape.kv_heads, parts)
        self.part, self.parts = part, parts
        for block in self.blocks:
            cast(Block, block).attention.exchange = exchange

    def tensor_parallel_plan(self, parts: int) -> tuple[list[dict[str, Any]], None]:
        """How AutoTP is to cut the linear layers into `parts`; from now on each attention has its share of the heads.

        Raises:
            UserError: the heads or the MLP cannot be divided by the parts.
        """
        check_heads(self.shape.heads, self.shape.kv_heads, parts, "tensor_parallel")
        if self.shape.mlp_width % parts:
            raise UserError(f"engine.tensor_parallel={parts} does not divide mlp_width={self.shape.mlp_width}.")
        fused = {"attention.qkv": cast(Block, self.blocks[0]).attention.sizes}
        fused["mlp.up"] = [self.shape.mlp_width] * (2 if self.shape.activation == "swiglu" else 1)
        plan: list[dict[str, Any]] = [
            {"patterns": [rf".*{name}\.weight$"], "partition_type": "column", "partition_dim": 0, "shape": [sizes, -1]}
            for name, sizes in fused.items()
        ]
        plan.append({"patterns": [r".*(attention\.out|mlp\.down)\.weight$"], "partition_type": "row"})
        for block in self.blocks:
            attention = cast(Block, block).attention
            attention.sizes = [size // parts for size in attention.sizes]
        return plan, None

    @property
    def flops_per_token(self) -> float:
        """FLOPs of forward and backward for one token at the full sequence length, for MFU."""
        tables = [self.embedding, self.positions] if not self.shape.tied else [self.positions]
        return training_flops_per_token(
            matmul_parameters(self, [cast(nn.Parameter, table.weight) for table in tables if table is not None]),
            layers=self.shape.layers,
            heads=self.shape.heads,
            head_dim=self.shape.head_width,
            sequence_length=self.shape.sequence_length,
        )

    def hidden(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """input_ids (B, S) int64 -> (B, S, D) after the last norm."""
        length = input_ids.shape[1]
        start, whole = self.part * length, self.parts * length
        at = torch.arange(start, start + length, device=input_ids.device)
        mask: Mask | None = None
        if document_ids is not None:
            at, begins = within_documents(document_ids)
            at = at[:, start : start + length]
            blocks = has_kernel(input_ids.device, self.shape.head_width)
            mask = block_mask(begins) if blocks else exact_mask(begins)
        x = self.embedding(input_ids)
        rope: Rope = None
        if self.positions is not None:
            if whole > self.shape.sequence_length:
                raise UserError(f"{whole} tokens do not fit into model.sequence_length={self.shape.sequence_length}.")
            x = x + self.positions(at)
        elif self.rotary is not None:
            cos, sin = self.rotary(whole, input_ids.device)
            rope = cos[at], sin[at]
            if mask is not None:
                rope = rope[0].unsqueeze(1), rope[1].unsqueeze(1)  # (B, 1, S, W)
        x = self.dropout(x)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                contexts = self.checkpoint_contexts or noop_context_fn
                x = checkpoint(block, x, rope, mask, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x, rope, mask)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """input_ids (B, S) int64 -> logits (B, S, V).

        With document_ids (B, S) int64, the same number for neighbouring tokens of one document, each document is
        computed as if it were alone: attention stays inside it, and its positions start from 0.
        """
        logits: Tensor = self.head(self.hidden(input_ids, document_ids))
        return logits

    def loss_sum(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Sum of cross-entropy over the targets, an fp32 scalar; labels (B, S) are shifted already, -100 is none."""
        loss: Tensor = self.head(self.hidden(input_ids, document_ids), labels)
        return loss
