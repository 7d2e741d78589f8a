"""What this machine's CPU reaches at a model's own sizes, measured in a second: no number is guessed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from bigtrain.config.launching import threads
from bigtrain.config.schema import Hardware
from bigtrain.models.shapes import Shape
from bigtrain.plan.memory import Setup
from bigtrain.plan.pace import REACHED, block_bytes
from bigtrain.plan.subject import Cluster

if TYPE_CHECKING:
    from bigtrain.plan.traced import Traced

MOST = 2048
"""Tokens at most, and columns of a matrix, that are measured with: larger ones are no faster a token."""
WORK = 2e9
"""FLOPs at most of the products that are measured with: a CPU without bf16 of its own takes a second for them."""


OTHERS = Shape(
    vocab_size=1, sequence_length=512, layers=1, heads=8, kv_heads=8, head_width=64, width=512, mlp_width=512,
    norm="layer_norm", activation="gelu",
)  # fmt: skip
"""What a model that is no native decoder is measured with, on one sample."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured with."""

    tokens: int
    length: int
    width: int
    wide: int
    heads: int
    kv_heads: int
    head_width: int
    gated: bool
    layer_norm: bool
    threads: int
    """Of all ranks."""


def measured(hardware: Hardware, setup: Setup, model: Shape | Traced, where: Cluster, threads: int | None) -> Hardware:
    """The hardware with what it leaves open filled in for one rank, of as many on a node as `where` has, each with so
    many threads (None: as a run would have them)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    host = hardware.host_memory_gib or total / 2**30
    found = replace(hardware, host_memory_gib=host, memory_gib=hardware.memory_gib or host / where.each)
    if found.tflops and found.bandwidth:
        return found
    if not isinstance(model, Shape):
        model, setup = OTHERS, replace(setup, micro_batch_size=1, sequence_length=OTHERS.sequence_length)
    block = replace(model, width=min(MOST, model.width), mlp_width=min(MOST, model.mlp_width))
    most = max(32, int(WORK / (6 * block.width * block.mlp_width)))
    tokens = min(MOST, setup.micro_batch_size * setup.sequence_length, most)
    sizes = Sizes(
        tokens, min(tokens, setup.sequence_length), block.width, block.mlp_width,
        block.heads, block.kv_heads, block.head_width, block.activation == "swiglu", block.norm == "layer_norm",
        _threads(threads, where.each),
    )  # fmt: skip
    moved = block_bytes(block, replace(setup, tensor_parallel=1))
    products, attention, rest = _rates(setup.precision, sizes)
    flops = products / where.each
    return replace(
        found,
        tflops=found.tflops or {setup.precision: flops / 1e12},
        attention=found.attention if found.tflops else attention / products,
        bandwidth=found.bandwidth or moved * rest / where.each / 1e9 / REACHED,
    )


def _threads(asked: int | None, ranks: int) -> int:
    """Of all ranks of this machine, and not more than there are cores, also where the environment has no number."""
    cores = len(os.sched_getaffinity(0))
    each = threads(asked, os.environ, cores, ranks)
    return min(cores, (int(each) if each.isdigit() and int(each) else max(1, cores // ranks)) * ranks)


@cache  # engine=auto asks for hundreds of plans
def _rates(precision: str, sizes: Sizes) -> tuple[float, float, float]:
    """FLOP/s of products, of attention, and tokens a second of a block's norms, residuals and activation.

    Of all threads together, which the ranks share; forward and backward. Attention's FLOPs are `pace`'s: 3.5 times
    forward, over half of the keys.
    """
    import torch
    from torch.nn import functional

    from bigtrain.engines.base import DTYPES

    dtype = DTYPES[precision]
    tokens, width, wide = sizes.tokens, sizes.width, sizes.wide
    samples = max(1, tokens // sizes.length)
    x, weight, out = (torch.randn(*size, dtype=dtype) for size in ((tokens, width), (width, wide), (tokens, wide)))
    q, k, v = (
        torch.randn(samples, heads, sizes.length, sizes.head_width, dtype=dtype, requires_grad=True)
        for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)
    )
    stream, up = (torch.randn(tokens, columns, requires_grad=True) for columns in (width, wide))

    def products() -> None:
        torch.mm(x, weight)
        torch.mm(out, weight.t())
        torch.mm(x.t(), out)

    def attention() -> None:
        keys, values = (each.repeat_interleave(sizes.heads // sizes.kv_heads, 1) for each in (k, v))
        attended = functional.scaled_dot_product_attention(q, keys, values, is_causal=True)
        torch.autograd.grad(attended, (q, k, v), attended)

    def rest() -> None:
        norm = functional.layer_norm if sizes.layer_norm else functional.rms_norm
        after = stream
        for _ in range(2):
            after = after + norm(after, (width,))
        active = functional.silu(up) * up if sizes.gated else functional.gelu(up, approximate="tanh")
        torch.autograd.grad((after, active), (stream, up), (after, active))

    attended = samples * sizes.length * sizes.heads * sizes.head_width * sizes.length / 2
    threads = torch.get_num_threads()
    torch.set_num_threads(sizes.threads)
    try:
        products_s, attention_s, rest_s = _seconds([products, attention, rest])
    finally:
        torch.set_num_threads(threads)
    return 6 * tokens * width * wide / products_s, 3.5 * 4 * attended / attention_s, tokens / rest_s


def _seconds(works: Sequence[Callable[[], object]]) -> list[float]:
    """Of a call of each: the lowest of three spells' medians; they take turns, as a machine has its moments.

    What takes long is called once, after a call that does not count.
    """
    medians: list[list[float]] = [[] for _ in works]
    for _ in range(3):
        for work, mine in zip(works, medians, strict=True):
            if mine and mine[-1] > 0.1:
                continue
            found: list[float] = []
            work()
            end = time.perf_counter() + 0.1
            while not found or time.perf_counter() < end:
                start = time.perf_counter()
                work()
                found.append(time.perf_counter() - start)
            mine.append(statistics.median(found))
    return [min(mine) for mine in medians]
