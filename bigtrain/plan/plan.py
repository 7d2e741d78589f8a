"""A recipe on a cluster: memory, time and cost, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bigtrain.config.schema import FP8_MULTIPLE, Hardware, RunConfig
from bigtrain.errors import UserError
from bigtrain.models.shapes import Shape
from bigtrain.plan.decoder import counts
from bigtrain.plan.memory import Memory, Setup, memory
from bigtrain.plan.pace import Pace, pace
from bigtrain.plan.subject import Cluster, cluster, setup_of, shape_of
from bigtrain.telemetry.peaks import Arithmetic, peak_flops

if TYPE_CHECKING:
    from bigtrain.plan.traced import Traced

GIB = 2**30
CONTEXT = 0.9 * GIB
"""Of a GPU: what the driver's context, NCCL and the kernels' own workspaces hold."""
KINDS: tuple[Arithmetic, ...] = ("fp32", "fp16", "bf16", "fp8")
FRAGMENTS = 0.04
"""Of the peak: what the allocator cannot hand out, as it is in pieces."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rank holds and a step takes."""

    recipe: str
    model: Shape | Traced
    setup: Setup
    where: Cluster
    hardware: Hardware | None
    memory: Memory
    pace: Pace | None
    """None: the hardware is not known."""
    steps: int | None
    """Of the run; None: it ends by epochs of data that are not prepared."""
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Of the model."""
        return counts(self.model).total if isinstance(self.model, Shape) else self.model.parameters

    @property
    def trained(self) -> int:
        """Of the parameters."""
        return self.parameters if isinstance(self.model, Shape) else self.model.trained

    @property
    def needed(self) -> float:
        """Bytes of a device, with the driver's and the allocator's own."""
        gpu = self.setup.device == "cuda"
        return self.memory.total * (1 + FRAGMENTS) + CONTEXT if gpu else self.memory.total

    @property
    def room(self) -> float | None:
        """Bytes that a device has."""
        has = self.hardware.memory_gib if self.hardware else None
        return None if has is None else has * GIB

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the devices, and what is offloaded into the hosts; None: not known."""
        if self.room is None or self.hardware is None:
            return None
        host = self.hardware.host_memory_gib
        held = self.memory.host * self.where.each
        return self.needed <= self.room and (host is None or held <= 0.9 * host * GIB)

    @property
    def seconds(self) -> float | None:
        """Of the whole run, in its steps."""
        return None if self.pace is None or self.steps is None else self.pace.step * self.steps

    @property
    def dollars(self) -> float | None:
        """Of the whole run."""
        price = self.hardware.price if self.hardware else None
        return None if price is None or self.seconds is None else self.seconds / 3600 * price * self.where.ranks

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: bytes, seconds, tokens, dollars."""
        told: dict[str, Any] = {
            "recipe": self.recipe,
            "parameters": self.parameters,
            "model": asdict(self.model),
            "setup": asdict(self.setup),
            "nodes": self.where.nodes,
            "ranks_of_a_node": self.where.each,
            "hardware": None if self.hardware is None else asdict(self.hardware),
            "memory": asdict(self.memory) | {"total": self.memory.total, "needed": self.needed, "room": self.room},
            "fits": self.fits,
            "steps": self.steps,
            "seconds": self.seconds,
            "dollars": self.dollars,
            "notes": list(self.notes),
        }
        if self.pace is not None:
            told["step"] = asdict(self.pace) | {
                "seconds": self.pace.step,
                "tokens_per_s": self.pace.tokens_per_s,
                "mfu": self.pace.mfu,
                "binds": self.pace.binds,
            }
        return told


def peak_of(hardware: Hardware, precision: str) -> float:
    """FLOP/s of one device.

    Raises:
        UserError: nobody knows it; or the device does not have the precision.
    """
    if precision in hardware.tflops:
        return hardware.tflops[precision] * 1e12
    peak = peak_flops(hardware.name, precision)  # type: ignore[arg-type]
    if peak is not None:
        return peak
    if hardware.tflops or peak_flops(hardware.name, "fp32"):
        known = hardware.tflops or [kind for kind in KINDS if peak_flops(hardware.name, kind)]
        raise UserError(f"{hardware.name} has no {precision}: take precision={' or '.join(known)}.")
    raise UserError(
        f"hardware.name={hardware.name}: its peak is not known, and nothing is guessed: give its dense TFLOP/s, as "
        f"'hardware.tflops={{{precision}: 100}}'."
    )


def plan(
    config: RunConfig, *, model: Shape | Traced | None = None, nodes: int | None = None, where: Cluster | None = None
) -> Plan:
    """Plan a checked configuration.

    Args:
        config: with `hardware`, or memory alone is planned.
        model: where it is known already.
        nodes: instead of the launcher's.
        where: the ranks, instead of the launcher's.

    Raises:
        UserError: the batch cannot be divided, the model or the hardware is not known.
    """
    hardware = config.hardware
    where = where or cluster(config, hardware, nodes)
    cpu = config.trainer.device == "cpu" if hardware is None else hardware.name == "CPU"
    setup = setup_of(config, where, "cpu" if cpu else "cuda")
    if setup.fp8 and cpu and hardware is not None:
        raise UserError("precision=fp8 trains on a CPU to be tried out, slower than bf16, and is not planned there.")
    model = model or model_of(config)
    if setup.fp8 and isinstance(model, Shape) and model.width % FP8_MULTIPLE:
        fault = f"model.width={model.width} is no multiple of {FP8_MULTIPLE}, and no product of it fits."
        raise UserError(f"precision=fp8: {fault}")
    if cpu and hardware is not None:
        from bigtrain.plan.here import measured

        hardware = measured(hardware, setup, model, where, config.launcher.threads)
    found = None
    if hardware is not None and hardware.bandwidth is not None:
        peak = peak_of(hardware, setup.precision)
        if isinstance(model, Shape):
            fp8 = peak_of(hardware, "fp8") if setup.fp8 else None
            found = pace(model, setup, hardware, peak, where.nodes, compiled=config.trainer.compile, fp8_peak=fp8)
        else:
            from bigtrain.plan import traced

            found = traced.pace(model, setup, hardware, peak, where.nodes)
    return Plan(
        recipe=config.run.name or "",
        model=model,
        setup=setup,
        where=where,
        hardware=hardware,
        memory=_memory(model, setup),
        pace=found,
        steps=_steps(config),
        notes=(*_notes(config, where, model), *_launches(model, setup, found)),
    )


def _notes(config: RunConfig, where: Cluster, model: Shape | Traced) -> Iterator[str]:
    hardware, engine = config.hardware, config.engine
    if hardware is not None and hardware.name != "CPU" and hardware.gpus > where.each:
        yield (
            f"note: {where.each} of a node's {hardware.gpus} GPUs train here, and the others are not in the cost; "
            f"launcher.processes={hardware.gpus} with an engine for several, as engine=zero2, takes all"
        )
    if config.precision.fp8 and not isinstance(model, Shape):
        yield "note: products in fp8 are planned as in bf16: what they take is known of bigtrain's own decoder only"
    elif config.precision.fp8 and not config.trainer.compile:
        yield "note: fp8 pays where scaling is fused, as this plan takes it to be: trainer.compile=true"
    classifies = str(config.objective["_target_"]).endswith(".classification")
    if not isinstance(model, Shape) and classifies and config.model.get("classes", 0) is None:
        from bigtrain.plan.traced import CLASSES

        yield f"note: planned with {CLASSES} classes: they are known when the data are prepared, or by model.classes=N"
    if engine.quantized_weights or engine.quantized_gradients or engine.hierarchical_partition:
        yield "note: ZeRO++ is planned as ZeRO-3: neither its shorter messages nor its second copy of the weights"


def _launches(model: Shape | Traced, setup: Setup, found: Pace | None) -> Iterator[str]:
    """Where starting kernels may take longer than running them: of the order of 5 us each, and 60 a block of the native
    decoder; of other models as many as are counted forward, and twice as many backward."""
    if found is not None and setup.device == "cuda":
        kernels = 60 * model.layers if isinstance(model, Shape) else 3 * model.kernels
        starting = 5e-6 * kernels * setup.accumulation
        if found.step < starting:
            yield (
                f"note: the GPU will wait for Python: starting the kernels of a step takes of the order of "
                f"{starting * 1e3:.2g} ms, which is not planned; more samples at once, or trainer.compile=true"
            )


def model_of(config: RunConfig) -> Shape | Traced:
    """By formulae where it is the native decoder; else by a pass of it on tensors without memory."""
    shape = shape_of(config)
    if shape is not None:
        return shape
    from bigtrain.plan.traced import traced

    return traced(config)


def _memory(model: Shape | Traced, setup: Setup) -> Memory:
    if isinstance(model, Shape):
        return memory(model, setup)
    from bigtrain.plan import traced

    return traced.memory(model, setup)


def _steps(config: RunConfig) -> int | None:
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    length = config.data.get("sequence_length")
    if trainer.max_tokens is None or not isinstance(length, int):
        return None
    return max(1, -(-trainer.max_tokens // (trainer.global_batch_size * length)))
