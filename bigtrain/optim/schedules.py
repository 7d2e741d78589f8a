"""Learning-rate schedules: plain functions of (step, total steps). Standard library only.

Each builder gives a `schedule(step, total_steps) -> factor` in (0, 1] that multiplies the base learning rate; steps
count from 0. The warm-up is linear and its first step is 1 / warmup_steps, not zero: no step is wasted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bigtrain.errors import UserError

Schedule = Callable[[int, int], float]
RANGE_TEST = "bigtrain.optim.lr_range"
"""A run with this schedule looks for a learning rate: it keeps nothing, and may diverge."""


def _warmed_up(warmup_steps: int, min_factor: float, after: Callable[[int, int], float]) -> Schedule:
    """Linear warm-up, then `after(steps since, steps in all since)`."""
    if warmup_steps < 0:
        raise UserError(f"schedule.warmup_steps must not be negative: {warmup_steps}.")
    if not 0 <= min_factor <= 1:
        raise UserError(f"schedule.min_factor is a part of the base learning rate, from 0 to 1, not {min_factor}.")

    def schedule(step: int, total_steps: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return after(step - warmup_steps, max(1, total_steps - warmup_steps))

    return schedule


def warmup_cosine(*, warmup_steps: int = 100, min_factor: float = 0.1) -> Schedule:
    """Half a cosine from the base rate to `min_factor` of it (arXiv:1608.03983).

    Args:
        warmup_steps: linear warm-up before it.
        min_factor: of the base rate, at the end.
    """

    def after(step: int, steps: int) -> float:
        return min_factor + (1 - min_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    return _warmed_up(warmup_steps, min_factor, after)


def linear(*, warmup_steps: int = 100, min_factor: float = 0.0) -> Schedule:
    """A straight line from the base rate to `min_factor` of it.

    Args:
        warmup_steps: linear warm-up before it.
        min_factor: of the base rate, reached when the last step is done.
    """
    return _warmed_up(
        warmup_steps, min_factor, lambda step, steps: max(min_factor, 1 - (1 - min_factor) * step / steps)
    )


def constant(*, warmup_steps: int = 0) -> Schedule:
    """The base rate.

    Args:
        warmup_steps: linear warm-up before it.
    """
    return _warmed_up(warmup_steps, 1.0, lambda step, steps: 1.0)


def wsd(*, warmup_steps: int = 100, decay_fraction: float = 0.2, min_factor: float = 0.0) -> Schedule:
    """Warm-up, stable, decay (arXiv:2404.06395): the base rate, and a straight line down at the end.

    Args:
        warmup_steps: linear warm-up before it.
        decay_fraction: part of all the run's steps that the line down takes.
        min_factor: of the base rate, reached when the last step is done.
    """
    if not 0 <= decay_fraction <= 1:
        raise UserError(f"schedule.decay_fraction is a part of the run, from 0 to 1, not {decay_fraction}.")

    def after(step: int, steps: int) -> float:
        decay = min(steps, max(1, round(decay_fraction * (steps + warmup_steps))))
        return max(min_factor, 1 - (1 - min_factor) * max(0, step - (steps - decay)) / decay)

    return _warmed_up(warmup_steps, min_factor, after)


def inverse_sqrt(*, warmup_steps: int = 100, min_factor: float = 0.0) -> Schedule:
    """sqrt(warmup_steps / step) after the warm-up (arXiv:1706.03762), whatever the run's length.

    Args:
        warmup_steps: linear warm-up before it.
        min_factor: of the base rate, at the least.
    """

    def after(step: int, steps: int) -> float:
        first = max(1, warmup_steps)
        return max(min_factor, math.sqrt(first / (first + step)))

    return _warmed_up(warmup_steps, min_factor, after)


def lr_range(*, warmup_steps: int = 0, min_factor: float = 1e-7) -> Schedule:
    """A learning-rate range test (Smith, arXiv:1506.01186): from `min_factor` of the base rate up to all of it, every
    step by the same ratio.

    Args:
        warmup_steps: at the first rate, before it rises.
        min_factor: of the base rate, in the first step.
    """
    if warmup_steps < 0:
        raise UserError(f"schedule.warmup_steps must not be negative: {warmup_steps}.")
    if not 0 < min_factor < 1:
        raise UserError(f"schedule.min_factor of a range test lies between 0 and 1, not at {min_factor}: 1.0e-7.")

    def schedule(step: int, total_steps: int) -> float:
        done = max(0, step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
        return math.exp(math.log(min_factor) * (1 - min(1.0, done)))

    return schedule
