"""A learning-rate range test: the rate that its losses suggest, and the picture of it (SVG).

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), and fastai's two suggestions: where
the smoothed loss falls most steeply over the logarithm of the rate, and a tenth of the rate where it is lowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigtrain.optim import RANGE_TEST
from bigtrain.report.read import Run
from bigtrain.report.summary import finite

FEWEST = 10
"""Log points below which nothing is suggested."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 360, 56, 24, 34, 44


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The finite losses of a range test over its rates, both (N,), and what they suggest."""

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    steepest: float | None
    """The rate of the steepest descent; None: the loss does not fall by more than its noise."""
    lowest: float | None
    """The rate of the lowest smoothed loss."""

    @property
    def sentence(self) -> str:
        """What to take, in words that can be copied."""
        if len(self.rates) < FEWEST:
            return (
                f"No learning rate is suggested from {len(self.rates)} log points; {FEWEST} are needed: "
                "trainer.log_every=1, and where the loss exploded early a lower schedule.min_factor."
            )
        if self.steepest is None or self.lowest is None:
            return (
                "No learning rate is suggested: the loss did not fall by more than its noise from "
                f"{self.rates[0]:.1e} to {self.rates[-1]:.1e}."
            )
        still = "; it fell to the end, so try a higher optimizer.lr" if self.lowest > self.rates[-1] / 1.5 else ""
        return (
            f"suggested optimizer.lr={self.steepest:.1e}, where the loss falls most steeply (a tenth of the rate with "
            f"the lowest loss: {self.lowest / 10:.1e}{still})"
        )


def range_test(run: Run) -> RangeTest | None:
    """The range test that a run was; None: it was an ordinary run."""
    schedule = run.config.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("_target_") != RANGE_TEST:
        return None
    points: list[tuple[float, float]] = []
    for line in run.train:
        rate, loss = finite(line, "lr"), finite(line, "loss")
        if rate is not None and loss is not None and rate > (points[-1][0] if points else 0.0):
            points.append((rate, loss))
    return judged(points)


def judged(points: Sequence[tuple[float, float]]) -> RangeTest:
    """Smooth the losses (rates rising) over a tenth of the points, and look for the steepest descent up to the lowest.

    What comes after the lowest loss is the explosion: a loss that falls back there is no descent to learn from.
    """
    rates, losses = [rate for rate, _ in points], [loss for _, loss in points]
    count, reach = len(points), max(1, len(points) // 20)
    smooth = [sum(near) / len(near) for near in (losses[max(0, i - reach) : i + reach + 1] for i in range(count))]
    if count < FEWEST:
        return RangeTest(rates, losses, smooth, None, None)
    low = min(range(count), key=smooth.__getitem__)
    noise = math.sqrt(
        sum((loss - mean) ** 2 for loss, mean in zip(losses[: low + 1], smooth, strict=False)) / (low + 1)
    )
    if smooth[0] - smooth[low] <= 2 * noise:
        return RangeTest(rates, losses, smooth, None, None)
    logs = [math.log(rate) for rate in rates]
    slopes = {
        i: (smooth[i + 1] - smooth[i - 1]) / (logs[i + 1] - logs[i - 1]) for i in range(1, low + 1) if i + 1 < count
    }
    return RangeTest(rates, losses, smooth, rates[min(slopes, key=slopes.__getitem__)], rates[low])


def range_svg(test: RangeTest) -> str:
    """The losses, the smoothed ones, and lines where the suggestions are; what exploded is cut off at the top."""
    if len(test.rates) < 2:
        return ""
    first, last = math.log10(test.rates[0]), math.log10(test.rates[-1])
    bottom, ordinary = min(test.losses), max(test.smooth[: test.smooth.index(min(test.smooth)) + 1])
    span = max(ordinary - bottom, 1e-6)
    bottom, top = bottom - 0.05 * span, ordinary + 0.35 * span

    def x(rate: float) -> float:
        return LEFT + (math.log10(rate) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return HEIGHT - BOTTOM - (min(loss, top) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    def line(losses: Sequence[float], kind: str) -> str:
        path = "L".join(f"{x(rate):.1f} {y(loss):.1f}" for rate, loss in zip(test.rates, losses, strict=True))
        return f'<path class="line {kind}" d="M{path}"/>'

    parts = [f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="Loss over learning rate"><g class="grid">']
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 24}" text-anchor="middle">1e{power}</text>')
    for index in range(5):
        loss = bottom + (top - bottom) * index / 4
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss):.1f}" y2="{y(loss):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.3g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">learning rate</text></g>')
    parts += [line(test.losses, "faint c0"), line(test.smooth, "c0")]
    if test.steepest is not None and test.lowest is not None:
        marks = [(test.steepest, "c2", "steepest"), (test.lowest / 10, "c1", "lowest / 10")]
        for side, (rate, colour, name) in enumerate(sorted(marks)):  # the left one's name to its left
            at = x(rate)
            left = at > 0.8 * WIDTH or (side == 0 and at > 0.2 * WIDTH)
            parts.append(f'<path class="line dashed {colour}" d="M{at:.1f} {TOP - 8}V{HEIGHT - BOTTOM}"/>')
            parts.append(
                f'<text class="{colour}" fill="currentColor" font-size="13" x="{at + (-6 if left else 6):.1f}" '
                f'y="{TOP - 12 * side - 4}" text-anchor="{"end" if left else "start"}">{name}: {rate:.1e}</text>'
            )
    return f"{''.join(parts)}</svg>"
