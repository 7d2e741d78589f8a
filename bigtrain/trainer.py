"""THE loop: micro-batches in, optimizer steps out, and now and then a line of metrics, an evaluation, a checkpoint.

It names no engine, model, data set or tracker: they stand behind the protocols of their rooms.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from bigtrain import garbage
from bigtrain.config.metrics import WAYS
from bigtrain.config.schema import EarlyStopping, Trainer
from bigtrain.distributed import Ranks, max_over_ranks, sum_on_hosts, sum_over_ranks
from bigtrain.engines.base import Batch, Engine, Objective, summary
from bigtrain.errors import EXIT_STOPPED, RunError, UserError, nearest
from bigtrain.telemetry.meters import Meters, peak_memory_bytes
from bigtrain.telemetry.metrics import Number, Split

Numbers = dict[str, Number]
EXPLODED = 4.0
"""A range test ends where the loss is so many times the first."""


@dataclass(slots=True)
class State:
    """All that the loop itself has to remember; a checkpoint holds it beside weights, optimizer and RNG."""

    step: int = 0
    position: int = 0
    """Index of the next global sample: the whole state of the data."""
    tokens: int = 0
    """Targets seen so far, over all ranks."""
    best_score: float | None = None
    """Of all evaluations so far, lower is better: the held-out loss, or what `early_stopping.metric` says."""
    best_metric: str = "loss"
    """What `best_score` is of."""
    evaluations_since_best: int = 0

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> State:
        """Of a checkpoint; those of bigtrain 0.1 have `best_loss`."""
        return cls(**{"best_score" if name == "best_loss" else name: value for name, value in plain.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Batches(Protocol):
    """Training batches from a position on, and one pass over the held-out split."""

    def train(self, position: int) -> Iterable[tuple[list[Batch], int]]:
        """This rank's micro-batches of each step, with the position after it."""

    def held_out(self) -> Iterable[Batch] | None:
        """This rank's part of the held-out split, as many batches on every rank; None where there is none."""


@dataclass(slots=True)
class Job:
    """What the loop works with."""

    engine: Engine
    objective: Objective
    schedule: Callable[[int, int], float]
    batches: Batches
    ranks: Ranks
    settings: Trainer
    total_steps: int
    meters: Meters
    log: Callable[[int, Split, Numbers], None]
    """A line of metrics: step, split, numbers."""
    save: Callable[[State, float | None, bool], None]
    """Write a checkpoint; the number is the held-out loss at this step, where it was measured. True: no step follows.
    """
    save_every: int | None
    stepped: Callable[[int], None]
    """Called after each step, for a progress bar."""
    range_test: bool = False
    """Look for a learning rate: nothing is evaluated or saved, and the run is done where the loss explodes."""


class Stop:
    """SIGTERM, SIGUSR1 (a scheduler's notice) and SIGINT ask for an end after the step; a second SIGINT insists.

    Outside of the loop there is no step to finish and nothing to save: the process ends at once, with the same code.
    """

    def __init__(self) -> None:
        self.asked = False
        self.in_loop = False

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if not self.in_loop:
            raise SystemExit(EXIT_STOPPED)

    @contextmanager
    def armed(self) -> Iterator[Stop]:
        """Listen for the signals; the handlers that were there before come back afterwards."""
        listened = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, self._ask) for number in listened}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The loop: what is asked for in here is done after the step."""
        self.in_loop = True
        try:
            yield
        finally:
            self.in_loop = False


def evaluate(job: Job) -> tuple[float, dict[str, float]] | None:
    """(mean loss over all targets of the held-out split, what else the objective measures), the same on every rank;
    None where there is none."""
    batches = job.batches.held_out()
    if batches is None:
        return None
    sums: torch.Tensor | float = 0.0
    targets = 0
    for batch in batches:
        sums = sums + job.engine.tally(batch).double()
        targets += job.objective.count(batch)
    assert isinstance(sums, torch.Tensor), "a held-out split has a batch"
    (total,) = sum_on_hosts(job.ranks, targets)
    return summary(job.objective, sum_over_ranks(sums), total // job.ranks.replicas)


def fit(job: Job, state: State, stop: Stop) -> bool:
    """Train from `state` to the end; `state` moves along. False where it was stopped on request.

    Raises:
        RunError: the loss is not a number any more (in a range test: from the first step on), or the data cannot be
            read any more, here or on another rank.
        Exception: what a data set of the user's own raised.
    """
    settings, engine, ranks, meters = job.settings, job.engine, job.ranks, job.meters
    keeps = not job.range_test
    metric = (settings.early_stopping or EarlyStopping()).metric
    if state.best_metric != metric:  # asked for when the run goes on: what was best by another one says nothing
        state.best_metric, state.best_score, state.evaluations_since_best = metric, None, 0
    if state.step == 0 and keeps:
        _evaluate_and_log(job, state)
    saved = state.step
    first_loss: float | None = None
    finished = state.step >= job.total_steps or _no_better(settings, state)
    batches = iter(job.batches.train(state.position)) if not finished else iter(())
    while not finished:
        with meters.waiting():
            micro_batches, position, fault = _fetch(batches, state.position)

        # On the hosts, so that no device is waited for: how many targets the step has, whether any rank must stop, and
        # whether one has lost its data. Then all end alike, after a checkpoint of what was trained so far.
        counted = sum(job.objective.count(batch) for batch in micro_batches)
        targets, stops, faults = sum_on_hosts(ranks, counted, int(stop.asked), int(fault is not None))
        if faults:
            if state.step > saved:
                with meters.paused():
                    job.save(state, None, True)
            raise fault or RunError("another rank cannot read its data any more: see its message.")
        targets //= ranks.replicas
        factor = job.schedule(state.step, job.total_steps)
        result = engine.train_step(micro_batches, targets, factor)

        state.step, state.position, state.tokens = state.step + 1, position, state.tokens + targets
        meters.step(targets)
        job.stepped(state.step)
        garbage.collect(state.step)
        finished = state.step >= job.total_steps

        if state.step % settings.log_every == 0 or finished or state.step == 1:
            loss = float(sum_over_ranks(result.loss))  # the device is waited for here, and only here
            job.log(state.step, "train", _numbers(job, state, loss, result.grad_norm, factor))
            first_loss = loss if first_loss is None else first_loss
            if job.range_test and math.isfinite(first_loss) and not loss <= EXPLODED * abs(first_loss):
                return True  # NaN too
            if not math.isfinite(loss) and not result.may_overflow:
                raise RunError(f"the loss is {loss} at step {state.step}: nothing was saved of it. Lower optimizer.lr, "
                               "or look at the data of this step.")  # fmt: skip

        held_out = None
        if keeps and (finished or (settings.eval_every and state.step % settings.eval_every == 0)):
            with meters.paused():
                held_out = _evaluate_and_log(job, state)
            finished = finished or _no_better(settings, state)
        if stops or (keeps and (finished or (job.save_every and state.step % job.save_every == 0))):
            with meters.paused():
                job.save(state, held_out, finished or bool(stops))
            saved = state.step
        if stops:
            return finished
    return True


def _fetch(batches: Iterator[tuple[list[Batch], int]], position: int) -> tuple[list[Batch], int, Exception | None]:
    """The next step's micro-batches and the position after it; or none, and why the data cannot be read any more."""
    try:
        return *next(batches), None
    except OSError as error:
        fault = RunError(f"the data cannot be read any more: {error}")
        fault.__cause__ = error
        return [], position, fault
    except Exception as error:  # the others wait for this rank: whatever it is, they must hear of it
        return [], position, error


def _numbers(job: Job, state: State, loss: float, grad_norm: torch.Tensor | float | None, factor: float) -> Numbers:
    numbers: Numbers = {
        "loss": loss,
        "tokens": state.tokens,
        "lr": job.engine.base_lr * factor,
        "grad_norm": None if grad_norm is None else float(grad_norm),
    }
    peak = torch.tensor(float(peak_memory_bytes(job.engine.device)), dtype=torch.float64, device=job.engine.device)
    numbers |= job.meters.window() | {"memory_peak_bytes": int(max_over_ranks(peak))}
    scale = job.engine.scalars().get("loss_scale")
    return numbers if scale is None else numbers | {"loss_scale": scale}


def _evaluate_and_log(job: Job, state: State) -> float | None:
    """The score that checkpoints are kept by; None where nothing is held out."""
    found = evaluate(job)
    if found is None:
        return None
    loss, metrics = found
    job.log(state.step, "eval", {"loss": loss, "tokens": state.tokens, **metrics})
    stopping = job.settings.early_stopping or EarlyStopping()
    score = _score(stopping.metric, {"loss": loss, **metrics})
    if state.best_score is None or score < state.best_score - stopping.min_delta:
        state.best_score, state.evaluations_since_best = score, 0
    else:
        state.evaluations_since_best += 1
    return score


def _score(metric: str, found: Mapping[str, float]) -> float:
    """The metric, or its negative, so that lower is better; a `UserError` where this objective has none such."""
    if metric not in found:
        raise UserError(f"trainer.early_stopping.metric={metric}: this objective has none.{nearest(metric, found)}")
    return found[metric] if WAYS[metric] == "minimize" else -found[metric]


def _no_better(settings: Trainer, state: State) -> bool:
    stopping = settings.early_stopping
    return stopping is not None and state.evaluations_since_best >= stopping.patience
