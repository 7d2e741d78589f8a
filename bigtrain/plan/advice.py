"""What to say when a device has run out of memory: what holds most, and the settings that would have fitted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError
from bigtrain.models.shapes import Shape
from bigtrain.plan.choose import CHECKPOINTING
from bigtrain.plan.plan import CONTEXT, FRAGMENTS, GIB, Plan, plan
from bigtrain.plan.show import KINDS
from bigtrain.plan.subject import Cluster

Name = Literal["local", "ddp", "fsdp", "horovod", "zero0", "zero1", "zero2", "zero3", "auto"]
SHARDED: tuple[Name, ...] = ("zero1", "zero2", "zero3")
SHOWN = 3


def advice(config: RunConfig, model: Shape, where: Cluster, room: float) -> str:
    """In words.

    Args:
        config: of the run.
        model: its shape.
        where: its ranks.
        room: bytes of a device.
    """
    now = plan(config, model=model, where=where)
    parts = {text: getattr(now.memory, kind) for kind, text in KINDS.items()}
    largest = max(parts, key=lambda text: parts[text])
    lines = [
        f"planned were {now.memory.total / GIB:.1f} GiB of tensors at the peak ({now.memory.at}), most of it for "
        f"{largest}: {parts[largest] / GIB:.1f} GiB"
    ]
    found = fitting(config, model, where, min(room, (now.memory.total * (1 + FRAGMENTS) + CONTEXT) * 0.95))
    if found:
        lines.append("what would fit, by the plan:")
        lines += [f"  {' '.join(words)}  ({one.needed / GIB:.1f} GiB)" for words, one in found[:SHOWN]]
    else:
        lines.append("nothing else on these ranks would fit: take more of them, or offload (engine=zero3_offload)")
    return "\n".join(lines)


def fitting(config: RunConfig, model: Shape, where: Cluster, room: float) -> list[tuple[list[str], Plan]]:
    """Overrides with their plan, that need at most `room` bytes; the fewest changes first."""
    trainer, engine = config.trainer, config.engine
    sizes = [size for size in range(trainer.micro_batch_size, 0, -1) if trainer.micro_batch_size % size == 0]
    kinds = CHECKPOINTING[CHECKPOINTING.index(trainer.activation_checkpointing) :]
    engines: list[Name] = [engine.name]
    if where.ranks > 1:
        later = SHARDED[SHARDED.index(engine.name) + 1 :] if engine.name in SHARDED else SHARDED
        engines += [name for name in later if engine.name != "fsdp"]
    found = []
    for name, kind, size in itertools.product(engines, kinds, sizes):
        words = [f"engine={name}"] * (name != engine.name)
        words += [f"trainer.activation_checkpointing={kind}"] * (kind != trainer.activation_checkpointing)
        words += [f"trainer.micro_batch_size={size}"] * (size != trainer.micro_batch_size)
        changed = replace(
            config,
            engine=replace(engine, name=name),
            trainer=replace(trainer, activation_checkpointing=kind, micro_batch_size=size),
        )
        try:
            one = plan(changed, model=model, where=where)
        except UserError:  # the batch does not divide
            continue
        if words and one.needed <= room:
            found.append((words, one))
    return sorted(found, key=lambda each: (len(each[0]), -each[1].needed))
