"""The numbers of a run that people ask for first, and the sentence on top of the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.report.read import Line, Run, flatten
from bigtrain.telemetry.metrics import counted

UNSAID = ("run.dir",)
"""Settings that differ between any two runs."""

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Summary:
    """None where the run does not tell."""

    last_step: int | None
    planned_steps: int | None
    first_eval: Line | None
    last_eval: Line | None
    best_eval: Line | None
    counted: str
    """What `tokens` counts, in words."""
    tokens: int | None
    training_s: float | None
    tokens_per_s: float | None
    memory_peak_bytes: float | None
    mfu: float | None
    diverged_at: int | None
    """The first of the steps, up to the last one, whose training loss is not finite."""


def finite(line: Line | None, name: str) -> float | None:
    """A metric of a line where it is known and finite."""
    value = line.metrics.get(name) if line is not None else None
    return float(value) if value is not None and math.isfinite(value) else None


def _values(lines: Sequence[Line], name: str) -> list[float]:
    return [value for line in lines if (value := finite(line, name)) is not None]


def summarise(run: Run) -> Summary:
    """One run in numbers: medians over log points, sums over steps."""
    lines = [*run.train, *run.eval]
    scored = [line for line in run.eval if finite(line, "loss") is not None]
    rates, mfu = _values(run.train, "tokens_per_s"), _values(run.train, "mfu")
    trainer = run.config.get("trainer")
    planned = trainer.get("max_steps") if isinstance(trainer, dict) else None
    return Summary(
        last_step=max((line.step for line in lines), default=None),
        planned_steps=planned if isinstance(planned, int) else None,
        first_eval=scored[0] if scored else None,
        last_eval=scored[-1] if scored else None,
        best_eval=min(scored, key=lambda line: finite(line, "loss") or 0.0) if scored else None,
        counted=counted(run.config.get("objective")),
        tokens=int(max(_values(lines, "tokens"), default=0)) or None,
        training_s=_training_seconds(run.train),
        tokens_per_s=statistics.median(rates) if rates else None,
        memory_peak_bytes=max(_values(run.train, "memory_peak_bytes"), default=None),
        mfu=statistics.median(mfu) if mfu else None,
        diverged_at=_diverged_at(run.train),
    )


def _training_seconds(train: Sequence[Line]) -> float | None:
    """Each log point's mean step time, times the steps since the one before."""
    total, before, known = 0.0, 0, False
    for line in train:
        step_time = finite(line, "step_time_s")
        if step_time is not None:
            total += step_time * max(line.step - before, 0)
            known = True
        before = line.step
    return total if known else None


def _diverged_at(train: Sequence[Line]) -> int | None:
    first = None
    for line in reversed(train):
        loss = line.metrics.get("loss")
        if loss is None or math.isfinite(loss):
            break
        first = line.step
    return first


def verdict(run: Run, summary: Summary) -> str:
    """What came of the run, in a sentence or two; facts only."""
    return " ".join(part for part in (_outcome(run, summary), _ending(summary)) if part)


def _outcome(run: Run, summary: Summary) -> str:
    if summary.last_step is None:
        return "Nothing was logged yet."
    if summary.diverged_at is not None:
        return f"The training loss is not finite from step {summary.diverged_at:,} on: the run diverged."
    if summary.first_eval is None or summary.last_eval is None or summary.best_eval is None:
        losses = _values(run.train, "loss")
        if len(losses) < 2:
            return f"One log point, with a training loss of {losses[0]:.4g}." if losses else "No loss was logged yet."
        word = "fell" if losses[-1] < losses[0] else "rose"
        return f"The training loss {word} from {losses[0]:.4g} to {losses[-1]:.4g}; nothing was held out to check it."
    name = "perplexity" if finite(summary.last_eval, "perplexity") is not None else "loss"
    first, last = finite(summary.first_eval, name), finite(summary.last_eval, name)
    if first is None or last is None:
        return ""
    if summary.first_eval is summary.last_eval:
        return f"Held-out {name} is {figure(last)} at step {summary.last_eval.step:,}, the only evaluation."
    if last < first:
        ratio = f", {first / last:.3g} times lower" if name == "perplexity" and last > 0 else ""
        text = f"Held-out {name} fell from {figure(first)} to {figure(last)}{ratio}."
    else:
        text = f"Held-out {name} did not fall: {figure(first)} at first, {figure(last)} at the end."
    best, last_loss = finite(summary.best_eval, "loss"), finite(summary.last_eval, "loss")
    if best is not None and last_loss is not None and last_loss > best * 1.002 and last < first:
        low = finite(summary.best_eval, name)
        text += f" It was lowest at step {summary.best_eval.step:,} ({figure(low or best)}) and has risen since."
    return text


def _ending(summary: Summary) -> str:
    if summary.last_step is None or summary.planned_steps is None or summary.last_step >= summary.planned_steps:
        return ""
    return f"It stands at step {summary.last_step:,} of {summary.planned_steps:,}."


def compare(runs: Sequence[Run], summaries: Sequence[Summary], differences: dict[str, list[Any]]) -> str:
    """The sentence over several runs."""
    scored = [
        (loss, run.label, summary)
        for run, summary in zip(runs, summaries, strict=True)
        if (loss := finite(summary.last_eval, "loss")) is not None
    ]
    if not scored:
        return "None of them has a held-out loss to compare."
    scored.sort(key=lambda entry: entry[0])
    loss, label, summary = scored[0]
    perplexity = finite(summary.last_eval, "perplexity")
    text = f"Lowest final held-out loss: {label} with {loss:.4f}"
    text += f" (perplexity {figure(perplexity)})" if perplexity is not None else ""
    text += f", {scored[1][0] - loss:.4f} below the next." if len(scored) > 1 else "."
    if len({entry[2].tokens for entry in scored}) > 1:
        text += f" They saw different numbers of {common_word(summaries)}."
    if any(name.startswith("data.") for name in differences):
        text += " Their data settings differ, so their losses may not be comparable."
    return text


def common_word(summaries: Sequence[Summary]) -> str:
    """What `tokens` counts in all of them."""
    words = {summary.counted for summary in summaries}
    return words.pop() if len(words) == 1 else "targets"


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs: name → a value a run, `ABSENT` where the run lacks it."""
    flat = [flatten(run.config) for run in runs]
    known = [config for config in flat if config]  # a run whose config.yaml is lost differs in nothing that we know
    names = dict.fromkeys(name for config in known for name in config if name not in UNSAID)
    return {
        name: [config.get(name, ABSENT) for config in flat]
        for name in names
        if any(config.get(name, ABSENT) != known[0].get(name, ABSENT) for config in known[1:])
    }


def figure(value: float) -> str:
    """1873.2 → `1,873`, 24.81 → `24.8`, 1.234 → `1.23`, 4.5e9 → `4.50e+09`."""
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.0f}" if size >= 100 else f"{value:.3g}"
