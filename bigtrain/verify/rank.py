"""What one rank of a set-up does, in a process of its own: assemble the run as training does, and write down what it
computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.assembly import Assembly, assemble, check_parts, run_loop
from bigtrain.config.components import build
from bigtrain.config.rules import replicas
from bigtrain.distributed import Ranks
from bigtrain.engines.base import Batch, Objective
from bigtrain.errors import UserError
from bigtrain.telemetry.meters import peak_memory_bytes
from bigtrain.telemetry.metrics import Split
from bigtrain.trainer import Stop
from bigtrain.verify.cases import Case
from bigtrain.verify.data import Arranged

Plant = Callable[[Case, Ranks], None]
"""Called first on each rank: how a test plants a fault."""

DROPOUT = 0.1
"""Where dropout is looked at, and the recipe's is 0."""


@dataclass(slots=True)
class Outcome:
    """What one rank saw; losses and norms are of all ranks, and the same on each."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    lrs: list[float | None] = field(default_factory=list)
    """Of the first group, as the optimizer has it."""
    scales: list[float | None] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    """A sum over this rank's samples of each step: which they were."""
    parts: list[float] = field(default_factory=list)
    """The loss of each micro-batch of this rank, a target; only where `Case.data` is "same"."""
    parameters: int = 0
    held: float = 0.0
    """Share of the trained numbers that this rank holds the masters of."""
    moved: dict[str, float] = field(default_factory=dict)
    """Of the leak probe: by how much logits moved that must not, relative to the largest."""
    vocabulary: int = 0
    seconds: float = 0.0
    memory: int = 0


class Noted:
    """The recipe's objective, and a note of what passes through it."""

    def __init__(self, objective: Objective, outcome: Outcome, parts: bool) -> None:
        self._objective, self._outcome, self._parts, self._sum = objective, outcome, parts, 0

    def count(self, batch: Batch) -> int:
        """See `Objective.count`."""
        content = next((batch[key] for key in ("input_ids", *batch) if key in batch), None)
        if content is not None:
            place = torch.arange(1, content[0].numel() + 1, dtype=torch.float64)
            rows = content.flatten(1).double() @ place if content.dim() > 1 else content.double()
            self._sum += int(rows.sum().item()) % 2**40
        return self._objective.count(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """See `Objective.loss`."""
        loss = self._objective.loss(model, batch)
        if self._parts and torch.is_grad_enabled():
            self._outcome.parts.append(float(loss.detach()) / max(self._objective.count(batch), 1))
        return loss

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """See `Objective.metrics`."""
        return self._objective.metrics(mean_loss)

    def samples(self) -> int:
        """The sum since the last call."""
        total, self._sum = self._sum, 0
        return total


@dataclass(frozen=True, slots=True)
class Sampled:
    """The recipe's whole schedule in a few steps: the factor in the middle of each of as many parts of it. So warm-up
    hides nothing, and a learning rate that stays behind shows."""

    schedule: Callable[[int, int], float]
    whole: int

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor of the learning rate at `step` of `total_steps`."""
        return self.schedule(int((step + 0.5) * self.whole / total_steps), self.whole)


def dropout_of(model: nn.Module) -> list[tuple[Any, str]]:
    """Where a model keeps its dropout: of torch's modules, and numbers of modules named after it."""
    places: list[tuple[Any, str]] = []
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            places.append((module, "p"))
        else:
            named = [key for key, value in vars(module).items() if "drop" in key and type(value) in (int, float)]
            places += [(module, key) for key in named]
    return places


def set_dropout(model: nn.Module, on: bool) -> None:
    """Set it aside; or leave it as the recipe has it, or at `DROPOUT` where that is 0.

    Raises:
        UserError: on, and the model has none at all.
    """
    places = dropout_of(model)
    if on and not places:
        raise UserError("the model has no dropout")
    if on and any(getattr(*place) for place in places):
        return
    for module, key in places:
        setattr(module, key, DROPOUT if on else 0.0)


def work(ranks: Ranks, case: Case, whole: int, plant: Plant | None) -> Outcome:
    """One rank of `case`; `whole`: the steps of the recipe's own run."""
    from bigtrain.verify import probes

    began = time.monotonic()
    if plant is not None:
        plant(case, ranks)
    ranks = replace(ranks, replicas=replicas(case.config.engine))
    schedule, objective = check_parts(case.config)
    data = Arranged(build(case.config.data, "data"), case.data)
    outcome = Outcome()
    parts = (case, ranks, data, Sampled(schedule, whole), objective, outcome)
    {"loop": _loop, "plain": probes.plain_loop, "leak": probes.leak}[case.work](*parts)
    outcome.seconds, outcome.memory = time.monotonic() - began, peak_memory_bytes(ranks.device)
    return outcome


def _loop(
    case: Case,
    ranks: Ranks,
    data: Any,
    schedule: Callable[[int, int], float],
    objective: Objective,
    outcome: Outcome,
) -> None:
    noted = Noted(objective, outcome, parts=case.data == "same")
    still = (lambda step, total: 0.0) if case.data == "same" else schedule  # the weights stay: only dropout is left
    parts = assemble(case.config, ranks, data, still, noted)
    set_dropout(parts.engine.model, case.dropout)
    if case.resume_from is not None and parts.checkpoint is None:
        raise RuntimeError(f"no checkpoint was found in {case.config.run.dir}")

    def log(step: int, split: Split, numbers: Mapping[str, Any]) -> None:
        samples = noted.samples()
        if split == "eval":
            outcome.held_out.append(numbers["loss"])
            return
        outcome.steps.append(step)
        outcome.losses.append(numbers["loss"])
        outcome.norms.append(numbers["grad_norm"] if numbers["grad_norm"] is not None else float("nan"))
        outcome.lrs.append(_lr(parts))
        outcome.scales.append(numbers.get("loss_scale"))
        outcome.samples.append(samples)

    run_loop(parts, Stop(), log, lambda step: None)
    model = parts.engine.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outcome.parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trained)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    mine = sum(fragment.numel for fragment in parts.engine.fragments() if fragment.name in names)
    outcome.held = mine / max(outcome.parameters, 1)
    parts.engine.close()


def _lr(parts: Assembly) -> float | None:
    optimizer = getattr(parts.engine, "optimizer", None)
    return float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, torch.optim.Optimizer) else None
