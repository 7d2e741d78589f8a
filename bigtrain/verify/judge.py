"""What was measured against what it should be: a row of the table, with the likely cause of a difference in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bigtrain.config.schema import Precision
from bigtrain.verify.cases import Case
from bigtrain.verify.processes import Fault

if TYPE_CHECKING:
    from bigtrain.verify.rank import Outcome

Verdict = Literal["ok", "FAIL", "not here"]


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a set-up may be from its reference."""

    loss: float
    """Of each step's loss and of the held-out losses: absolute, in nats, up to a loss of 1, then relative."""
    norm: float
    """Of each step's gradient norm: relative."""


FP32 = Bound(1e-6, 1e-4)
"""The order of sums differs, nothing else."""
BF16 = Bound(2e-3, 5e-2)
FP16 = Bound(2e-3, 2e-2)
FP8 = Bound(1e-2, 2e-1)
"""Three bits of mantissa; one rank and several scale other groups of numbers."""
EXACT = Bound(0.0, 0.0)
"""The same set-up twice on a CPU: bit for bit."""


def of_precision(precision: Precision) -> Bound:
    """How far a set-up in it may be from one in fp32."""
    return FP8 if precision.fp8 else {"fp32": FP32, "bf16": BF16, "fp16": FP16}[precision.name]


@dataclass(slots=True)
class Row:
    """A line of the table."""

    group: str
    name: str
    ranks: int
    verdict: Verdict
    first_loss: float | None = None
    difference: float | None = None
    """The largest, in units of `bound`."""
    bound: float | None = None
    note: str = ""
    """Why it is not here, or the likely cause of a difference."""
    seconds: float | None = None
    memory: int | None = None
    """The most that a rank held, in bytes."""


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """The ranks' outcomes as one: rank 0's, with the sums and the largest over all."""
    first = outcomes[0]
    first.samples = [sum(step) for step in zip(*(outcome.samples for outcome in outcomes), strict=True)]
    first.parts = [part for outcome in outcomes for part in outcome.parts]
    first.held = max(outcome.held for outcome in outcomes)
    first.memory = max(outcome.memory for outcome in outcomes)
    first.seconds = max(outcome.seconds for outcome in outcomes)
    return first


def row(case: Case, found: Outcome | Fault, verdict: Verdict = "ok", note: str = "") -> Row:
    """A row without a comparison."""
    if isinstance(found, Fault):
        return Row(
            case.group, case.name, case.ranks, "not here" if found.kind == "refused" else "FAIL", note=found.message
        )
    first = found.losses[0] if found.losses else None
    return Row(case.group, case.name, case.ranks, verdict, first, note=note, seconds=found.seconds, memory=found.memory)


def compare(case: Case, found: Outcome | Fault, right: Outcome, bound: Bound) -> Row:
    """`found` against `right`, over the steps that `found` has."""
    result = row(case, found)
    if isinstance(found, Fault):
        return result
    result.bound = bound.loss
    places = [right.steps.index(step) for step in found.steps if step in right.steps]
    if not places or len(places) != len(found.steps):
        result.verdict, result.note = "FAIL", f"it made the steps {found.steps}, and the reference {right.steps}"
        return result
    losses = [(mine, right.losses[at]) for mine, at in zip(found.losses, places, strict=True)]
    if found.held_out and right.held_out:
        losses.append((found.held_out[-1], right.held_out[-1]))
    loss_gaps = [_gap(mine, theirs, max(1.0, abs(theirs))) for mine, theirs in losses]
    norm_gaps = [_gap(mine, right.norms[at], right.norms[at]) for mine, at in zip(found.norms, places, strict=True)]
    result.difference = max(loss_gaps)
    wrong_loss = [gap > bound.loss for gap in loss_gaps]
    wrong_norm = [gap > bound.norm for gap in norm_gaps]
    cause = _shape(case, found, right)
    if any(wrong_loss) or any(wrong_norm) or cause:
        result.verdict = "FAIL"
        result.note = cause or _cause(case, found, right, places, wrong_loss, wrong_norm)
    return result


def _gap(mine: float, theirs: float, scale: float) -> float:
    if not (math.isfinite(mine) and math.isfinite(theirs)):
        return 0.0 if mine == theirs else math.inf
    return abs(mine - theirs) / scale if scale else abs(mine - theirs)


def _shape(case: Case, found: Outcome, right: Outcome) -> str:
    """Faults that need no loss to be seen."""
    if found.parameters != right.parameters:
        return (
            f"{found.parameters:,} trained parameters, and the reference has {right.parameters:,}: tied weights are "
            "tied no more, or the model is another"
        )
    cut = case.config.engine.name in ("fsdp", "zero1", "zero2", "zero3")
    if cut and found.held > 1.25 / case.ranks + 0.01 and case.config.engine.tensor_parallel == 1:
        return f"a rank holds {found.held:.0%} of the weights: {case.config.engine.name} has not cut them up"
    return ""


def _cause(
    case: Case, found: Outcome, right: Outcome, places: list[int], wrong_loss: list[bool], wrong_norm: list[bool]
) -> str:
    """In words; the first thing that differs says most."""
    at = places[0]
    resumed = case.resume_from is not None
    after = " after the resume" if resumed else ""
    if found.samples and right.samples and found.samples != [right.samples[place] for place in places]:
        return f"other samples{after}: a batch was skipped or repeated, or the order of the data is another"
    if any(
        mine is not None and theirs is not None and _gap(mine, theirs, theirs) > 1e-6
        for mine, theirs in zip(found.lrs, [right.lrs[place] for place in places], strict=False)
    ):
        return f"the learning rate is another{after}: {found.lrs[0]:.3g}, and not {right.lrs[at]:.3g}"
    if resumed and found.scales != [right.scales[place] for place in places if place < len(right.scales)]:
        return f"the loss scale did not come back: {found.scales[0]}, and not {right.scales[at]}"
    if wrong_loss[0]:
        if resumed:
            return "the first loss after the resume differs: weights, or the state of dropout, did not come back"
        return (
            "the first loss differs: the weights at the start (sharded initialisation), or what the loss is divided by"
        )
    if wrong_norm[0]:
        ratio = found.norms[0] / right.norms[at] if right.norms[at] else math.inf
        factor = next((f"{k}" for k in (*range(2, 65), *(2**n for n in range(7, 25))) if _near(ratio, k)), None)
        inverse = next((f"1/{k}" for k in (*range(2, 65), *(2**n for n in range(7, 25))) if _near(1 / ratio, k)), None)
        times = f" by a factor of {factor or inverse or f'{ratio:.4g}'}"
        return (
            f"gradient norms differ{times} while first losses agree: the normaliser over ranks and micro-batches, the "
            "loss scale, or weights that are tied no more"
        )
    if resumed:
        return (
            "the first step after the resume agrees, a later one does not: optimizer state (moments) did not come back"
        )
    if any(wrong_loss):
        return "first loss and gradient agree, later ones do not: the step: clipping, learning rate or optimizer"
    return "gradient norms of later steps differ: clipping, or how gradients are summed"


def _near(value: float, whole: float) -> bool:
    return abs(value / whole - 1) < 0.01
