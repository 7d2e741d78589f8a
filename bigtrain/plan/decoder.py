"""The native decoder in numbers: parameters, FLOPs, and the bytes that a forward pass keeps. Pure: no torch.

Symbols as in `bigtrain.models.native`: D width, H heads, K heads of keys and values, W head width, F MLP width, V
vocabulary, S tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.models.shapes import Shape


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters by where they are."""

    embedding: int
    """Tables that are looked up: tokens and positions."""
    products: int
    """Of one block, in its four (or five) matrices: what a token is multiplied with."""
    rest: int
    """Of one block: norms and biases."""
    norm: int
    """Of the last norm."""
    head: int
    """Of a head of its own; 0 where it is the embedding's."""
    layers: int

    @property
    def block(self) -> int:
        """Of one block."""
        return self.products + self.rest

    @property
    def total(self) -> int:
        """Of the model."""
        return self.embedding + self.layers * self.block + self.norm + self.head


def counts(shape: Shape) -> Counts:
    """The parameters of `bigtrain.models.native.Decoder`."""
    inside = shape.heads * shape.head_width
    qkv = inside + 2 * shape.kv_heads * shape.head_width
    up = shape.mlp_width * (2 if shape.activation == "swiglu" else 1)
    norm = shape.width * (2 if shape.norm == "layer_norm" and shape.bias else 1)
    biases = qkv + up + 2 * shape.width if shape.bias else 0
    table = shape.vocab_size * shape.width
    return Counts(
        embedding=table + (shape.sequence_length * shape.width if shape.positions == "learned" else 0),
        products=shape.width * (qkv + inside + up + shape.mlp_width),
        rest=2 * norm + biases,
        norm=norm,
        head=0 if shape.tied else table,
        layers=shape.layers,
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes a token that one block keeps for the backward pass, by `trainer.activation_checkpointing`."""

    none: float
    selective: float
    full: float

    def of(self, kind: str) -> float:
        """Of a setting of `trainer.activation_checkpointing`."""
        return float(getattr(self, kind))


def kept(shape: Shape, *, size: int, residual: int, device: str, samples: int, tensor_parallel: int = 1) -> Kept:
    """What one block keeps, in bytes a token: what its operators save, each piece of memory once.

    Checked against torch's saved tensors in `tests/unit/test_plan_memory.py`.

    Args:
        shape: of the model.
        size: bytes of a number in the products: 4, or 2 under bf16 and fp16.
        residual: bytes of a number of the residual stream: 4, or 2 where the weights themselves are in 2 bytes.
        device: cpu or cuda: their kernels save different things.
        samples: at once.
        tensor_parallel: ranks that share each matrix.
    """
    width, parts = shape.width, tensor_parallel
    heads, kv = shape.heads * shape.head_width / parts, shape.kv_heads * shape.head_width / parts
    inner = shape.mlp_width / parts
    if shape.norm == "layer_norm":
        # x, mean and 1/std, and the linear layer's input. On a GPU autocast runs it in fp32.
        own = 4 if device == "cuda" else residual
        norm = width * own + 2 * own + width * size
    elif device == "cuda":  # fused: x, 1/rms
        norm = width * 4 + 4 + width * size
    else:  # x, 1/rms and their product too
        norm = 2 * width * 4 + 4 + width * size
    statistics = 4 * shape.heads / parts  # a logarithm of a sum a head and row
    repeated = shape.kv_heads < shape.heads and not (device == "cuda" and size == 2)
    if repeated:  # keys and values are copied to all heads; of qkv itself nothing is needed any more
        attention = 3 * heads * size
    elif shape.positions == "rotary":  # turned q and k, and v, which is a part of qkv
        attention = (heads + kv + heads + 2 * kv) * size
    else:
        attention = (heads + 2 * kv) * size
    if shape.positions == "rotary" and size == 2:  # cosines and sines in the low precision, of q and of k
        attention += 4 * shape.head_width * size / samples
    attention += heads * size + statistics  # what comes out, which the next product needs too
    gated = shape.activation == "swiglu"
    mlp = inner * size * (4 if gated else 2)  # gate and up in one, silu(gate), their product; or x and gelu(x)
    everything = 2 * norm + attention + mlp
    block_input = width * residual
    products = (heads + 2 * kv) + heads + width + inner * (2 if gated else 1) + width
    return Kept(none=everything, selective=block_input + products * size + statistics, full=block_input)


def flops_per_token(shape: Shape) -> tuple[float, float]:
    """(products, attention): FLOPs of a token's forward pass; backward takes twice as many.

    Attention as it is computed: half of S keys a query on average, as the mask is causal.
    """
    count = counts(shape)
    products = 2.0 * (count.layers * count.products + shape.vocab_size * shape.width)
    attention = 4.0 * shape.layers * shape.heads * shape.head_width * shape.sequence_length / 2
    return products, attention
