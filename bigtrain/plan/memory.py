"""Bytes that one rank holds at once, through a step of the native decoder: what is planned with. Pure: no torch.

The step is walked through as it runs: forward, the head with its loss, backward block by block, the optimizer. At each
point everything that is live is added up; the largest sum is the peak. What is kept and what is worked with was read
off torch's and DeepSpeed's own allocations (`benchmarks/plan_memory.py` measures prediction against them).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bigtrain.engines.zero_bytes import deepspeed_bytes, paper_bytes
from bigtrain.models.shapes import Shape
from bigtrain.plan.decoder import Counts, counts, kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What decides the memory of a rank, beside the model."""

    engine: str
    ranks: int
    """That share the state: all ranks over those of tensor parallelism."""
    micro_batch_size: int
    sequence_length: int
    accumulation: int
    precision: str
    activation_checkpointing: str = "none"
    device: str = "cuda"
    optimizer_states: int = 2
    """fp32 numbers a parameter that the optimizer keeps."""
    bucket_size: int = 50_000_000
    offload_optimizer: bool = False
    offload_parameters: bool = False
    activation_offload: bool = False
    dropout: bool = False
    tensor_parallel: int = 1
    sequence_parallel: int = 1
    fp8: str | None = None
    """How what the blocks' products multiply is scaled to 8 bits; None: it is not. What is kept is not of 8 bits."""

    @property
    def stage(self) -> int:
        """Of ZeRO; fsdp divides everything too."""
        return 3 if self.engine == "fsdp" else int(self.engine[-1]) if self.engine.startswith("zero") else 0

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains: its weights are in the run's precision."""
        return self.engine.startswith("zero")

    @property
    def low_weights(self) -> bool:
        """Whether blocks are in the low precision before autocast sees them."""
        return self.deepspeed or self.engine == "fsdp"

    @property
    def size(self) -> int:
        """Bytes of a number in the products."""
        return 4 if self.precision == "fp32" else 2


@dataclass(slots=True)
class Memory:
    """Bytes of one rank, by kind, at the point of the step where their sum is largest."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    """What the forward pass keeps, and what the backward pass of a block works with."""
    logits: float
    """Of the head and the loss: chunks of logits, and the gradients that come of them at once."""
    buffers: float
    """Of communication, and of weights gathered from other ranks."""
    host: float = 0.0
    """In the host's memory, for what is offloaded."""
    at: str = ""
    """Which point of the step."""
    points: dict[str, float] = field(default_factory=dict)
    """The sum at each point."""

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers


def memory(shape: Shape, setup: Setup) -> Memory:
    """The peak of one rank."""
    walk = _Walk(shape, setup)
    points = walk.points()
    at = max(points, key=lambda name: points[name].total)
    found = points[at]
    found.at, found.host = at, walk.host
    found.points = {name: point.total for name, point in points.items()}
    return found


class _Walk:
    def __init__(self, shape: Shape, setup: Setup) -> None:
        self.shape, self.setup = shape, setup
        self.count: Counts = counts(shape)
        cut = self.count.layers * self.count.products if setup.tensor_parallel > 1 else 0
        self.states = states(self.count.total - cut + cut // setup.tensor_parallel, setup)
        self.host = moved(self.states, setup)

    def points(self) -> dict[str, Memory]:
        """What is live at each point that may be the peak."""
        setup, shape, count = self.setup, self.shape, self.count
        tokens = setup.micro_batch_size * setup.sequence_length / setup.sequence_parallel
        low = setup.size == 2
        residual = 2 if low and setup.low_weights else 4
        of_block = kept(
            shape,
            size=setup.size,
            residual=residual,
            device=setup.device,
            samples=setup.micro_batch_size,
            tensor_parallel=setup.tensor_parallel,
        )
        kind = setup.activation_checkpointing
        # Autocast's casts of the weights live as long as its context, and until backward where they are saved.
        casts = 2 * count.products if low and not setup.low_weights else 0
        each = tokens * of_block.of(kind) + (casts if kind == "none" else 0)
        whole = tokens * of_block.none + casts
        rms = shape.norm == "rms_norm"
        last_norm = tokens * shape.width * ((8 if setup.device == "cpu" else 4) if rms else residual)
        table = shape.vocab_size * shape.width
        rows = rows_at_once(shape, tokens, setup.device)
        chunk = rows * shape.vocab_size * (4 + (2 if low else 0))
        head_gradient = 4 * table
        # In low precision: the cast weight, and a chunk's gradient of it, which a CPU casts before it adds it.
        head_cast = (0 if setup.low_weights else 2 * table) + (6 if setup.device == "cpu" else 2) * table if low else 0
        hidden = tokens * shape.width * setup.size
        before = self.states["gradients"] if setup.accumulation > 1 or setup.engine == "ddp" else 0.0
        if setup.engine == "zero1" and setup.precision == "bf16" and not before:
            before = 4.0 * count.total  # DeepSpeed's BF16_Optimizer sums into one fp32 buffer that stays
        elif setup.engine == "zero3" and not before:
            before = self.states["gradients"]  # of which there is one fp32 buffer that stays
        weights = gathered(count, setup)
        twice = self.states["gradients"] if setup.accumulation > 1 and setup.engine == "ddp" else 0.0  # not sent yet

        def at(gradients: float, activations: float, logits: float, buffers: float = 0.0) -> Memory:
            return Memory(
                self.states["parameters"], gradients, self.states["optimizer"], activations, logits, buffers + twice
            )

        reducing = 4.0 * min(setup.bucket_size, count.total) if setup.deepspeed and 0 < setup.stage < 3 else 0.0

        forward = tokens * count.layers * of_block.of(kind) + count.layers * casts + last_norm
        points = {
            # h, its gradient, chunks of logits, the head's whole gradient
            "the head": at(before, forward, 3 * hidden + chunk + head_gradient + head_cast, weights),
            "the optimizer": at(self.states["gradients"], 0.0, 0.0),
        }
        inner = shape.mlp_width / setup.tensor_parallel
        gated = shape.activation == "swiglu"
        # Behind `down`: the gradients of what went into it, of what it is made of, and of the residual stream.
        works = tokens * (setup.size * inner * (2 if gated else 1) + residual * shape.width)
        # The head's gradient waits for the embedding's where they are one; else it is a gradient like the others.
        head_waits = head_gradient if shape.tied or not before else 0.0
        for number in dict.fromkeys((count.layers, 1)):  # from one to the other it only grows, or only shrinks
            done = (count.layers - number) * count.block * self.states["gradients"] / count.total
            gradients = (before or done) + 4 * shape.width * inner
            points[f"backward of block {number}"] = at(
                gradients, (number - 1) * each + whole + works, head_waits, weights + reducing
            )
        # A tied table gets its gradient from both ends.
        points["backward of the embedding"] = at(
            self.states["gradients"],
            tokens * 4 * shape.width,
            4 * table if shape.tied or before else 0.0,
            reducing,
        )
        return points


LIVE = 1_000_000_000
"""Parameters that ZeRO-3 may keep gathered (DeepSpeed's `stage3_max_live_parameters`)."""


def gathered(count: Counts, setup: Setup) -> float:
    """Bytes of weights that were gathered from the other ranks, while blocks are computed."""
    if setup.stage < 3:
        return 0.0
    if setup.engine == "fsdp":  # this block and the next one, and what is in no block
        return setup.size * (2.0 * count.block + count.embedding + count.head + count.norm)
    bucket = 4.0 * min(setup.bucket_size, count.total)  # where gradients are reduced, from the start
    return (setup.size * float(min(count.total, LIVE)) if setup.ranks > 1 else 0.0) + bucket


def rows_at_once(shape: Shape, tokens: float, device: str) -> float:
    """Rows of logits that exist at a time: `bigtrain.models.losses.rows_at_once`."""
    if device == "cuda":
        return min(tokens, max(shape.width // 2, 2**25 // shape.vocab_size))
    return min(tokens, max(1, 2**20 // shape.vocab_size) * 16)


def moved(held: dict[str, float], setup: Setup) -> float:
    """Bytes that go to the host's memory, taken out of what the device holds. Where DeepSpeed steps on the host, its
    parts of the gradients are there too (`device` of `stage3.py` and `stage_1_and_2.py`)."""
    kinds = ["optimizer"] * setup.offload_optimizer + ["parameters"] * setup.offload_parameters
    if setup.offload_optimizer and setup.stage >= 2:
        kinds.append("gradients")
    host = sum(held[kind] for kind in kinds)
    held.update(dict.fromkeys(kinds, 0.0))
    return host


def states(parameters: int, setup: Setup) -> dict[str, float]:
    """Weights, gradients and optimizer state of a rank, in bytes, of so many trained parameters."""
    if setup.deepspeed:
        found = deepspeed_bytes(parameters, setup.stage, setup.ranks, setup.precision, setup.optimizer_states)
    else:  # fp32 weights are their own masters
        found = paper_bytes(parameters, setup.stage, setup.ranks, "fp32", setup.optimizer_states)
    return {str(kind): float(value) for kind, value in found.items()}
