"""A plan as text."""

from __future__ import annotations

from bigtrain.models.shapes import Shape
from bigtrain.plan.plan import GIB, Plan

KINDS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state, fp32 masters",
    "activations": "activations",
    "logits": "head: logits, loss, its gradient",
    "buffers": "messages, gathered weights",
}
PARTS = {
    "products": "matrix products",
    "attention": "attention",
    "traffic": "memory traffic of the rest",
    "optimizer": "optimizer",
    "messages": "messages that nothing hides",
}


def short(number: float) -> str:
    """`8.03 B`."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """In the unit that a person would say."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.3g} s"


def headline(plan: Plan) -> list[str]:
    """What is planned."""
    setup, where = plan.setup, plan.where
    device = plan.hardware.name if plan.hardware else ("CPU" if setup.device == "cpu" else "GPU")
    batch = (
        setup.micro_batch_size * setup.accumulation * where.ranks // (setup.tensor_parallel * setup.sequence_parallel)
    )
    cut = "".join(
        f", {name} parallel {parts}"
        for name, parts in (("tensor", setup.tensor_parallel), ("sequence", setup.sequence_parallel))
        if parts > 1
    )
    fp8 = f" with {setup.fp8} fp8 products" if setup.fp8 else ""
    unit = f"{setup.sequence_length} tokens" if setup.sequence_length else "one"
    return [
        f"{plan.recipe}: {short(plan.parameters)} parameters, engine {setup.engine}{cut}, {setup.precision}{fp8}, "
        f"activation checkpointing {setup.activation_checkpointing}",
        f"{where.nodes} node{'s' * (where.nodes > 1)} x {where.each} {device} = {where.ranks} "
        f"rank{'s' * (where.ranks > 1)}; {batch} x {unit} a step: {setup.micro_batch_size} "
        f"samples x {setup.accumulation} micro-batches a rank",
    ]


def memory_lines(plan: Plan) -> list[str]:
    """The peak of a rank."""
    found = plan.memory
    unit, name = (GIB, "GiB") if found.total >= GIB / 2 else (2**20, "MiB")

    def line(text: str, size: float) -> str:
        return f"  {text:<34}{size / unit:>9,.2f} {name}"

    lines = [f"memory of a rank at its peak, {found.at}:"]
    lines += [line(text, getattr(found, kind)) for kind, text in KINDS.items()]
    if plan.needed > found.total:
        lines.append(line("driver, kernels, fragments", plan.needed - found.total))
    verdict = ""
    if plan.room is not None:
        verdict = f" of {plan.room / unit:,.1f}: " + ("fits" if plan.fits else "DOES NOT FIT")
    lines.append(line("in all", plan.needed) + verdict)
    if found.host:
        host = plan.hardware.host_memory_gib if plan.hardware else None
        share = "" if host is None else f" of {0.9 * host * GIB / unit / plan.where.each:,.1f}, a rank's share"
        lines.append(line("in the memory of its host", found.host) + share)
    return lines


def time_lines(plan: Plan) -> list[str]:
    """A step, and the run."""
    if plan.pace is None:
        return ["time and cost: say hardware=NAME (bigtrain plan --help lists them)"]
    pace = plan.pace
    lines = ["time of a step:"]
    parts = dict(PARTS)
    if not isinstance(plan.model, Shape):  # whose pass on tensors without memory does not tell them apart
        parts |= {"products": "matrix products, attention"}
        del parts["attention"]
    if plan.setup.offload_parameters:
        parts["messages"] = "messages, weights from the host"
    lines += [
        f"  {text:<34}{getattr(pace, kind):>9.3g} s {getattr(pace, kind) / pace.step:>6.0%}"
        for kind, text in parts.items()
    ]
    lines.append(f"  {'in all':<34}{pace.step:>9.3g} s        binds: {parts[pace.binds]}")
    device = plan.setup.device == "cuda"
    rate = f"{pace.tokens_per_s:,.0f} tokens/s, {pace.tokens_per_s / plan.where.ranks:,.0f} a rank"
    lines.append(rate + (f", MFU {pace.mfu:.1%}" if device else ""))
    if pace.sent:
        lines.append(f"{pace.sent / 1e9:,.3g} GB of messages from each rank")
    if plan.seconds is not None:
        assert plan.steps is not None
        cost = "" if plan.dollars is None else f", {plan.dollars:,.{0 if plan.dollars >= 10 else 2}f} dollars"
        lines.append(f"{plan.steps:,} steps, {short(plan.steps * pace.tokens)} tokens: {duration(plan.seconds)}{cost}")
    else:
        lines.append("days and cost: not known before the data are: trainer.max_steps or trainer.max_tokens would say")
    return lines


def text(plan: Plan) -> str:
    """The whole."""
    return "\n".join([*headline(plan), "", *memory_lines(plan), "", *time_lines(plan), *plan.notes])
