"""`engine=auto`: of all ways to spread a recipe over its ranks, the cheapest that fits; the simplest of equals."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.config.schema import ELEMENTWISE_ONLY, NOT_ELEMENTWISE, Engine, RunConfig
from bigtrain.errors import UserError
from bigtrain.models.shapes import Shape
from bigtrain.plan.plan import GIB, Plan, model_of, plan
from bigtrain.plan.subject import cluster

if TYPE_CHECKING:
    from bigtrain.plan.traced import Traced

ENGINES = ("local", "ddp", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")
CHECKPOINTING: tuple[Literal["none", "selective", "full"], ...] = ("none", "selective", "full")
SHOWN = 5
ALIKE = 0.02
"""Share of a step by which two plans do not differ: they are not that exact."""
AMPLE = 0.8
"""Share of the memory up to which what is simpler is worth its bytes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was looked at, the chosen one first, then the cheapest; those that do not fit behind, by what they need."""

    plans: tuple[Plan, ...]

    @property
    def best(self) -> Plan:
        """The simplest of the cheapest that fit, or what comes nearest to it."""
        return self.plans[0]

    def overrides(self) -> list[str]:
        """What makes the recipe the best plan."""
        setup = self.best.setup
        return [
            f"engine={setup.engine}",
            f"engine.offload_optimizer={'cpu' if setup.offload_optimizer else 'null'}",
            f"engine.offload_parameters={'cpu' if setup.offload_parameters else 'null'}",
            f"engine.tensor_parallel={setup.tensor_parallel}",
            f"trainer.micro_batch_size={setup.micro_batch_size}",
            f"trainer.activation_checkpointing={setup.activation_checkpointing}",
        ]

    def table(self) -> str:
        """The runners-up, and why the rest fell out."""
        fitting = [one for one in self.plans if one.fits is not False]
        said = "chosen by engine=auto" if fitting else "engine=auto: nothing fits; this comes nearest"
        lines = [f"{said}: " + " ".join(self.overrides())]
        if fitting[1:]:
            lines.append("runners-up:")
            lines += [f"  {_name(one):<58}{_cost(one)}" for one in fitting[1:SHOWN]]
        out = [one for one in self.plans if one.fits is False]
        if out:
            lines.append(f"{len(out)} of {len(self.plans)} do not fit; the nearest:")
            lines += [f"  {_name(one):<58}{_missing(one)}" for one in out[: SHOWN - 1]]
        return "\n".join(lines)


def choose(config: RunConfig, nodes: int | None = None) -> Choice:
    """Every way that the rules allow, planned.

    Raises:
        UserError: no way divides the batch; nobody knows the hardware.
    """
    if config.hardware is None:
        raise UserError("engine=auto chooses for a cluster: say hardware=NAME, as hardware=h100x8.")
    model = model_of(config)
    found = []
    for candidate in candidates(config, model, nodes):
        try:
            found.append(plan(candidate, model=model, nodes=nodes))
        except UserError:  # this way does not divide the batch
            continue
    if not found:
        plan(replace(config, engine=Engine(name="zero3")), model=model, nodes=nodes)  # says why
        raise UserError("engine=auto: no engine fits trainer.global_batch_size and the ranks.")

    def order(one: Plan) -> tuple[bool, float, float]:
        seconds = one.pace.step if one.pace is not None else 0.0
        return (False, seconds, one.needed) if one.fits is not False else (True, one.needed, seconds)

    plans = sorted(found, key=order)
    simplest = min((one for one in plans if one is plans[0] or _alike(one, plans[0])), key=_effort)
    return Choice((simplest, *(one for one in plans if one is not simplest)))


def _alike(one: Plan, other: Plan) -> bool:
    """Whether a plan cannot tell which of two is cheaper, and the first has room to spare."""
    if one.fits is False or other.fits is False or one.pace is None or other.pace is None:
        return False
    spare = one.room is None or one.needed <= AMPLE * one.room
    return spare and abs(one.pace.step - other.pace.step) <= ALIKE * other.pace.step


def _effort(one: Plan) -> tuple[int, ...]:
    """What is simpler is less: the engine, what is computed twice, weights in pieces."""
    setup = one.setup
    offload = "_offload" if setup.offload_optimizer else ""
    engine = ENGINES.index(f"{setup.engine}{offload}")
    return engine, CHECKPOINTING.index(setup.activation_checkpointing), setup.tensor_parallel


def candidates(config: RunConfig, model: Shape | Traced, nodes: int | None) -> Iterator[RunConfig]:
    """The recipe with each engine, offload, tensor parallelism, micro-batch and activation checkpointing."""
    where = cluster(config, config.hardware, nodes)
    gpu = config.hardware is None or config.hardware.name != "CPU"
    sizes = [size for size in _powers(config.trainer.global_batch_size) if size <= 128]
    parts = [1]
    if gpu and isinstance(model, Shape):
        parts = [n for n in _powers(where.each) if model.kv_heads % n == 0 and model.mlp_width % n == 0]
    whole = _whole(config)
    for name, size, kind, tensor in itertools.product(ENGINES, sizes, CHECKPOINTING, parts):
        engine, _, offload = name.partition("_")
        if (engine == "local") != (where.ranks == 1) and engine in ("local", "ddp"):
            continue
        if whole and engine in ELEMENTWISE_ONLY:
            continue
        if (tensor > 1 and engine not in ("zero1", "zero2")) or (offload and tensor > 1):
            continue
        if where.ranks // tensor * size > config.trainer.global_batch_size:
            continue
        settings: dict[str, Any] = {"name": engine, "bucket_size": config.engine.bucket_size, "tensor_parallel": tensor}
        if offload:
            settings |= {"offload_optimizer": "cpu", "offload_parameters": "cpu" if engine == "zero3" else None}
        trainer = replace(config.trainer, micro_batch_size=size, activation_checkpointing=kind)
        yield replace(config, engine=Engine(**settings), trainer=trainer)


def smallest(config: RunConfig, nodes: int) -> str:
    """The fewest nodes of this hardware on which something fits, in words."""
    assert config.hardware is not None
    model = model_of(config)
    here = [one for one in _frugal(config, model, nodes) if one.fits]
    if here:
        return f"it would fit here as {_name(min(here, key=lambda one: one.pace.step if one.pace else 0))}: engine=auto"
    while nodes < 65536:
        nodes *= 2
        fitting = [one for one in _frugal(config, model, nodes) if one.fits]
        if fitting:
            return (
                f"the smallest cluster of these that holds it: {nodes} nodes x {fitting[0].where.each} = "
                f"{fitting[0].where.ranks} {config.hardware.name}, as {_name(fitting[0])}"
            )
    why = ""
    if _whole(config):
        name = str(config.optimizer["_target_"]).rpartition(".")[2]
        why = f": {name} needs whole matrices, and optimizer=adamw lets them be cut"
    return f"no cluster of up to {nodes:,} nodes x {config.hardware.gpus} {config.hardware.name} holds it{why}"


def _whole(config: RunConfig) -> bool:
    """Whether the optimizer looks at whole matrices, which then cannot be cut."""
    return str(config.optimizer["_target_"]) in NOT_ELEMENTWISE


def _frugal(config: RunConfig, model: Shape | Traced, nodes: int) -> Iterator[Plan]:
    """What takes least memory on so many nodes: a sample a rank, and a batch that divides."""
    ranks = cluster(config, config.hardware, nodes).ranks
    name: Literal["zero3", "ddp", "local"] = "zero3"
    if _whole(config):
        name = "ddp" if ranks > 1 else "local"
    for offload in (None, "cpu") if name == "zero3" else (None,):
        batch = max(config.trainer.global_batch_size // ranks, 1) * ranks
        trainer = replace(config.trainer, micro_batch_size=1, global_batch_size=batch, activation_checkpointing="full")
        engine = Engine(name=name, offload_optimizer=offload, offload_parameters=offload)
        yield plan(replace(config, engine=engine, trainer=trainer), model=model, nodes=nodes)


def _powers(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length()) if largest % 2**power == 0]


def _name(one: Plan) -> str:
    setup = one.setup
    offload = " + offload" if setup.offload_optimizer else ""
    tensor = f", tensor {setup.tensor_parallel}" if setup.tensor_parallel > 1 else ""
    return (
        f"{setup.engine}{offload}{tensor}, {setup.micro_batch_size} x {setup.accumulation}, checkpointing "
        f"{setup.activation_checkpointing}"
    )


def _cost(one: Plan) -> str:
    needed = f"{one.needed / GIB:7.1f} GiB"
    return needed if one.pace is None else f"{one.pace.step:9.3g} s a step, {needed}"


def _missing(one: Plan) -> str:
    assert one.room is not None
    over = one.needed - one.room
    return f"{over / GIB:9.1f} GiB too much" if over > 0 else "too much for the memory of the host"


def decided(words: Sequence[str]) -> list[str]:
    """A command line with `engine=auto` replaced by what it chooses; another one as it is.

    Raises:
        UserError: see `choose`; or nothing fits.
    """
    if "engine=auto" not in words:
        return list(words)
    from bigtrain.config.compose import compose

    config = compose(words).config
    best = choose(config).best
    if best.fits is False:
        raise UserError(f"engine=auto: nothing fits; {smallest(config, best.where.nodes)}.")
    given = Choice((best,)).overrides()
    print(f"engine=auto: {' '.join(given)}", file=sys.stderr)
    return [*(word for word in words if word != "engine=auto"), *given]
