"""Every setting of a run, as slotted dataclasses: standard library only, so that a typo dies before torch is imported.

A *component* (model, data, objective, optimizer, schedule, trackers) is a mapping with a `_target_`, the dotted path of
a class or function of anyone's; its settings live in its own signature and are checked against that (`components.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bigtrain.config.launchers import Launcher

Component = dict[str, Any]

ELEMENTWISE_ONLY = ("fsdp", "zero1", "zero2", "zero3")
"""Engines that cut parameters into slices, so that the optimizer may not look at a matrix's shape."""

FP8_MULTIPLE = 16
"""Of which both sides of a weight must be one to be multiplied in fp8: the kernels take no other."""

NOT_ELEMENTWISE = ("bigtrain.optim.muon", "bigtrain.optim.adafactor", "torch.optim.Muon", "torch.optim.Adafactor")


@dataclass(slots=True)
class Run:
    """Where a run writes. The same folder again means: go on from its newest intact checkpoint."""

    dir: str | None = None
    """The run folder; by default `runs/<recipe>/<time>`, chosen once, before any rank starts."""
    name: str | None = None
    """The recipe's name, filled in when the configuration is composed."""


@dataclass(slots=True)
class EarlyStopping:
    """End when the held-out `metric` has not improved by `min_delta` for `patience` evaluations.

    The checkpoints that `checkpoint.keep_best` keeps are the best by the same metric.
    """

    patience: int = 3
    min_delta: float = 0.0
    metric: str = "loss"


@dataclass(slots=True)
class Trainer:
    """The loop. Exactly one of `max_steps`, `epochs` and `max_tokens` ends it."""

    global_batch_size: int
    """Samples (sequences) a step, over all ranks."""
    micro_batch_size: int
    """Samples at once on one rank; accumulation = global_batch_size / (micro_batch_size x ranks)."""
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None
    log_every: int = 10
    """Steps between two lines of metrics.jsonl; no device scalar is read in between."""
    eval_every: int | None = None
    """Steps between two evaluations on the held-out split; null: at the end only."""
    eval_batches: int | None = None
    """Batches of `global_batch_size` samples an evaluation, on however many ranks; null: the whole held-out split."""
    grad_clip: float | None = 1.0
    """Largest global L2 norm of the gradient; null: no clipping."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing; each block but its matrix products and attention; each block."""
    activation_offload: bool = False
    """Keep what the forward pass saves for the backward pass in the host's memory."""
    compile: bool = False
    """torch.compile the model."""
    early_stopping: EarlyStopping | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loader_workers: int = 0
    """Processes a rank that read the samples, for a data set of your own that takes long to make one; 0: a thread."""
    timeout_s: float = 1800.0
    """Seconds that a rank waits for the others in a collective operation."""


@dataclass(slots=True)
class Engine:
    """How the model is spread over the ranks."""

    name: Literal["local", "ddp", "fsdp", "horovod", "zero0", "zero1", "zero2", "zero3", "auto"]
    bucket_size: int = 50_000_000
    """Elements reduced or gathered at once (ZeRO)."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass still runs (ZeRO on a GPU)."""
    sharded_init: bool = True
    """zero3, fsdp: no rank but the first ever holds the whole model."""
    offload_optimizer: Literal["cpu", "nvme"] | None = None
    """Keep optimizer state and fp32 masters in the host's memory (zero1 to zero3) or on a disk (zero3)."""
    offload_parameters: Literal["cpu", "nvme"] | None = None
    """Keep the weights there too, and fetch them block by block (zero3)."""
    nvme_path: str | None = None
    """A folder on a fast local disk, for `nvme`."""
    hierarchical_partition: int | None = None
    """ZeRO++ (arXiv:2306.10209): ranks, those of one node, that hold a second partition of the weights (zero3)."""
    quantized_weights: bool = False
    """ZeRO++: weights are gathered in int8 (zero3 on GPUs)."""
    quantized_gradients: bool = False
    """ZeRO++: gradients are reduced in int4 (zero3 on GPUs)."""
    sequence_parallel: int = 1
    """Ranks that share each sequence (DeepSpeed Ulysses, arXiv:2309.14509)."""
    tensor_parallel: int = 1
    """Ranks that share each weight matrix (DeepSpeed AutoTP; zero0 to zero2)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Expert keys merged into DeepSpeed's configuration, checked against its own models."""


@dataclass(slots=True)
class Precision:
    """Arithmetic of the forward and backward pass; weights and optimizer state stay fp32 masters."""

    name: Literal["fp32", "bf16", "fp16"]
    initial_loss_scale: float = 65536.0
    """fp16 only: the first loss scale; it halves on overflow and doubles after `loss_scale_window` good steps."""
    loss_scale_window: int = 1000
    fp8: Literal["rowwise", "tensorwise"] | None = None
    """bf16 only: how what the products of the blocks multiply is scaled to 8 bits; null: it is not."""


@dataclass(slots=True)
class Checkpoint:
    """When to write a checkpoint and which to keep. One is always written at the end and on a stop."""

    every: int | None = None
    """Steps; null: only at the end."""
    keep_last: int | None = 3
    """How many; null: all."""
    keep_best: int = 0
    """Beside them, the ones with the lowest held-out loss."""
    weights_from: str | None = None
    """A run folder or a checkpoint of the same model: a new run begins with its weights."""


@dataclass(slots=True)
class Evaluation:
    """What happens after training."""

    generate: str | None = None
    """A prompt: sample text is printed and kept at the end."""
    generate_tokens: int = 100
    generate_temperature: float = 0.8
    """0: always the likeliest token."""
    report: bool = True
    export: bool = False
    """Write a Hugging Face folder into `<run>/export`."""
    folds: int | None = None
    """Cross-validation: a run for each of so many folds of the data, and mean and deviation of what they measure."""


@dataclass(slots=True)
class Profiler:
    """A trace of a few steps of rank 0, and a page that says where they went (`RUN/profile/`)."""

    start: int = 10
    """Steps before it begins."""
    steps: int = 3


@dataclass(slots=True)
class Hardware:
    """What a plan is made for (`conf/hardware/`): one node, and how nodes are joined. GB are 10^9 bytes."""

    name: str
    """As its driver calls it: the peak of a known one is known by it."""
    gpus: int
    """Of a node; ranks, on a CPU."""
    memory_gib: float | None
    """Of a GPU; null on a CPU: this machine's."""
    bandwidth: float | None
    """GB/s of a GPU's memory; null on a CPU: measured."""
    link: float
    """GB/s between the GPUs of a node, each way, of one GPU."""
    network: float
    """GB/s between nodes, each way, of one GPU."""
    host_link: float
    """GB/s between a GPU and its host, each way."""
    host_memory_gib: float | None
    """Of a node."""
    price: float | None
    """Dollars an hour and GPU; null: no costs are told."""
    products: float
    """The part of the peak that large matrix products reach."""
    attention: float
    """The part of the peak that fused attention reaches, forward and backward together."""
    tflops: dict[str, float] = field(default_factory=dict)
    """Dense peak by precision, of a device that is not known by its name; none on a CPU: measured."""


@dataclass(slots=True)
class RunConfig:
    """The whole configuration of a run, as frozen into `config.yaml`."""

    run: Run
    seed: int
    model: Component
    data: Component
    objective: Component
    optimizer: Component
    schedule: Component
    engine: Engine
    precision: Precision
    trainer: Trainer
    checkpoint: Checkpoint
    evaluation: Evaluation
    launcher: Launcher
    tracker: dict[str, Component] = field(default_factory=dict)
    profiler: Profiler | None = None
    hardware: Hardware | None = None
    """What `bigtrain plan` and `engine=auto` plan for; null: not known."""
