"""Seconds of a step of the native decoder: a roofline of its products, attention, traffic, optimizer and messages.

Nothing here is fitted to a training run but `ROWWISE`: peaks and bandwidths are data sheets', what large products and
fused attention reach of the peak are their kernels' own published benchmarks (`conf/hardware/`), the rest is counted.
Pure: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigtrain.config.schema import Hardware
from bigtrain.models.shapes import Shape
from bigtrain.plan.decoder import counts
from bigtrain.plan.memory import Setup
from bigtrain.telemetry.meters import training_flops_per_token

REACHED = 0.85
"""What streaming kernels reach of a memory's bandwidth, and large messages of a link's."""
HOST = 50e9
"""Bytes a second that a host's optimizer goes through."""
OVERLAPPED = 0.9
"""Of the time of messages, what can run beside products."""


ROWWISE = 0.67
"""What fp8 products with a scale for each row reach of those with one for a tensor: read off torchao's table of
Llama 3 8B on 8 H100s (torchao/float8/README.md: 6,768 tokens a second and GPU beside 7,690, and 6,150 in bf16)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one step, by what they go to, and what follows of them."""

    products: float
    attention: float
    traffic: float
    """Of memory: norms, activations, residuals, casts, the loss."""
    optimizer: float
    messages: float
    """Of the messages between ranks, what is not hidden behind products."""
    tokens: int
    """A step, over all ranks."""
    flops_per_token: float
    peak: float
    """FLOP/s of all devices."""
    sent: float
    """Bytes that a rank sends."""

    @property
    def step(self) -> float:
        """Seconds."""
        return self.products + self.attention + self.traffic + self.optimizer + self.messages

    @property
    def tokens_per_s(self) -> float:
        """Over all ranks."""
        return self.tokens / self.step

    @property
    def mfu(self) -> float:
        """In [0, 1]."""
        return self.tokens_per_s * self.flops_per_token / self.peak

    @property
    def binds(self) -> str:
        """What most of the step goes to."""
        kinds = ("products", "attention", "traffic", "optimizer", "messages")
        return max(kinds, key=lambda kind: float(getattr(self, kind)))


def pace(
    shape: Shape,
    setup: Setup,
    hardware: Hardware,
    peak: float,
    nodes: int,
    *,
    compiled: bool = False,
    fp8_peak: float | None = None,
) -> Pace:
    """What a step takes.

    Args:
        shape: of the model.
        setup: how it is trained.
        hardware: with its bandwidths known.
        peak: FLOP/s of one device in the run's precision.
        nodes: that the ranks are on.
        compiled: kernels between products are fused.
        fp8_peak: FLOP/s in fp8, where the products of the blocks are in it.
    """
    count = counts(shape)
    ranks = setup.ranks * setup.tensor_parallel
    tokens = setup.micro_batch_size * setup.sequence_length / setup.sequence_parallel
    micro = setup.accumulation
    memory = hardware.bandwidth * 1e9 * REACHED if hardware.bandwidth else float("inf")
    parts, size = setup.tensor_parallel, setup.size
    again = 1 if setup.activation_checkpointing == "full" else 0
    passes = 3 + again

    # A product's operands are read and its result is written beside its arithmetic, not behind it.
    inside, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    up = shape.mlp_width * (2 if shape.activation == "swiglu" else 1)
    matrices = (
        (shape.width, (inside + 2 * kv) / parts), (inside / parts, shape.width), (shape.width, up / parts),
        (shape.mlp_width / parts, shape.width),
    )  # fmt: skip

    def product(inputs: float, outputs: float) -> float:
        moved = size * (tokens * (inputs + outputs) + inputs * outputs)
        return 2 * tokens * inputs * outputs / (peak * hardware.products) + moved / memory

    def fp8_product(inputs: float, outputs: float) -> float:
        """One of three, which between them read inputs, weights and gradients twice: each time they are scaled, read in
        bf16 (once more first for the largest of a whole tensor) and written in 8 bits."""
        assert fp8_peak is not None
        scaled = tokens * (inputs + outputs) + inputs * outputs
        moved = scaled * (3 if setup.fp8 == "rowwise" else 5) * 2 / 3 + scaled + tokens * outputs
        reached = fp8_peak * hardware.products * (ROWWISE if setup.fp8 == "rowwise" else 1)
        return 2 * tokens * inputs * outputs / reached + moved / memory

    blocks = shape.layers * sum((product if fp8_peak is None else fp8_product)(*matrix) for matrix in matrices)
    head = 3 * product(shape.width, shape.vocab_size)
    products = micro * (passes * blocks + head)

    keys = setup.sequence_length / 2  # causal: half of them on average
    attended = 4 * tokens * shape.layers * inside / parts * keys  # FLOPs forward; 2.5 times as many backward
    attention = micro * attended * (3.5 + again) / (peak * hardware.attention)

    walks = 3 + (setup.activation_checkpointing != "none")  # selective: all but products and attention again
    traffic = micro * (tokens * _bytes_per_token(shape, setup, compiled) * (walks / 3)) / memory
    if size == 2 and not setup.deepspeed and setup.engine != "fsdp":  # autocast casts the weights in each pass
        traffic += micro * 6 * count.total / memory

    sending = messages(count.total // parts, setup, hardware, nodes, (products + attention) / micro)
    bytes_sent = sent(count.total // parts, setup)
    if parts > 1:  # two sums of activations a block, forward and backward; nothing to hide them behind
        rounds = 4 + 2 * again
        share = 2 * (parts - 1) / parts
        sums = micro * shape.layers * rounds * share * tokens * shape.width * size
        sending += sums / (hardware.link * 1e9 * REACHED)
        bytes_sent += sums
    return Pace(
        products=products,
        attention=attention,
        traffic=traffic,
        optimizer=optimizer_seconds(count.total, setup, hardware, memory),
        messages=sending,
        tokens=int(setup.micro_batch_size * setup.sequence_length * micro * setup.ranks / setup.sequence_parallel),
        flops_per_token=training_flops_per_token(
            count.layers * count.products + shape.vocab_size * shape.width,
            layers=shape.layers,
            heads=shape.heads,
            head_dim=shape.head_width,
            sequence_length=setup.sequence_length,
        ),
        peak=peak * ranks,
        sent=bytes_sent,
    )


def _bytes_per_token(shape: Shape, setup: Setup, compiled: bool) -> float:
    """Of a token's forward and backward pass, read and written between products and attention."""
    size, parts = setup.size, setup.tensor_parallel
    rotary = 0.0
    if shape.positions == "rotary":
        heads = (shape.heads + shape.kv_heads) * shape.head_width / parts
        rotary = 3 * heads * size * (2 if compiled else 9)
    head = shape.vocab_size * (4 * 5 + (2 if size == 2 else 0)) if not compiled else shape.vocab_size * 12
    return shape.layers * (block_bytes(shape, setup, compiled) + rotary) + head


def block_bytes(shape: Shape, setup: Setup, compiled: bool = False) -> float:
    """Of a token and block, forward and backward: two norms, two residuals, the activation."""
    size = setup.size
    width, inner = shape.width, shape.mlp_width / setup.tensor_parallel
    gated = shape.activation == "swiglu"
    stream = 4 if not (setup.deepspeed or setup.engine == "fsdp") or size == 4 else 2
    # forward: norm (in, out), residual (two in, one out), activation; each as a kernel of its own, or fused
    norm = width * ((stream + size) if compiled else (2 * stream + (4 + size if stream == 4 and size == 2 else size)))
    residual = width * (2 * stream + size) if not compiled else width * (stream + size)
    activation = inner * size * ((3 if compiled else 5) if gated else 2)
    return 3 * (2 * norm + 2 * residual + activation)


def optimizer_seconds(parameters: int, setup: Setup, hardware: Hardware, memory: float) -> float:
    """Seconds of the optimizer's pass over what a rank owns of so many trained parameters."""
    own = parameters / (setup.ranks if setup.stage > 0 else 1)
    # reads the gradient; reads and writes weight and states; writes the low-precision weight
    seconds = own * (4 + 8 * (1 + setup.optimizer_states) + (2 if setup.size == 2 else 0)) / memory
    if setup.offload_optimizer:  # gradients go to the host and weights come back; its memory is slower by far
        seconds += own * ((4 + setup.size) / (hardware.host_link * 1e9 * REACHED) + 28 / HOST)
    return seconds


def messages(parameters: int, setup: Setup, hardware: Hardware, nodes: int, computing: float, frozen: int = 0) -> float:
    """Seconds of messages that nothing hides, of a step whose micro-batch computes for so many seconds.

    Where the weights lie in the host's memory, a rank fetches its part of them before they are gathered.
    """
    fetched = 0.0
    if setup.offload_parameters and setup.device != "cpu":
        fetched = setup.size * (parameters + frozen) / setup.ranks / (hardware.host_link * 1e9 * REACHED)
    if setup.ranks == 1 and not fetched:
        return 0.0
    link, network = hardware.link * 1e9 * REACHED, hardware.network * 1e9 * REACHED
    # Between nodes the GPUs of a node share the work: each sends a part of it through its own adapter.
    slowest = min(link, network * hardware.gpus) if nodes > 1 else link
    if setup.device == "cpu":  # whose cores carry the messages themselves
        computing = 0.0
    weights, gradients = (volume / slowest for volume in _volumes(parameters, setup, frozen))
    forward, backward = computing / 3, computing * 2 / 3
    if setup.stage == 3:  # gathered forward and backward, in each micro-batch; gradients are sent in each one too
        open_ = _left(fetched + weights, forward) + _left(fetched + weights + gradients, backward)
        return setup.accumulation * open_
    return _rounds(setup) * _left(gradients * _ways(setup), backward) + (weights if setup.stage > 0 else 0.0)


def sent(parameters: int, setup: Setup, frozen: int = 0) -> float:
    """Bytes that a rank sends in a step for so many trained parameters and frozen ones, by collectives in rings."""
    weights, gradients = _volumes(parameters, setup, frozen)
    if setup.stage == 3:
        return setup.accumulation * (2 * weights + gradients)
    return _rounds(setup) * _ways(setup) * gradients + (weights if setup.stage > 0 else 0.0)


def _volumes(parameters: int, setup: Setup, frozen: int) -> tuple[float, float]:
    """Bytes that a rank sends to gather all weights, and to sum all gradients where each rank keeps a part."""
    share = (setup.ranks - 1) / setup.ranks
    gathered = parameters + (frozen if setup.stage == 3 else 0)
    return gathered * setup.size * share, parameters * 4 * share


def _rounds(setup: Setup) -> int:
    return setup.accumulation if setup.stage == 2 else 1  # ZeRO-2 sends in every micro-batch


def _ways(setup: Setup) -> int:
    return 2 if setup.stage < 3 else 1  # summed and told to all: ZeRO-1 and 2 too (`allreduce_and_scatter`)


def _left(sending: float, computing: float) -> float:
    """Seconds of sending that computing does not hide; its first or last part has nothing beside it."""
    return max(sending - OVERLAPPED * computing, sending * (1 - OVERLAPPED))
