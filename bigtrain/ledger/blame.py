"""`bigtrain data blame RUN`: the documents behind a loss spike, the likeliest first.

A logged loss is that of one step's batch on the weights before its update. Where it jumps at step N, and was as
expected at the last logged step P before, the cause lies in the batch of N or in the updates of P to N-1: the documents
of the steps P to N are the candidates. Each is judged by its losses under one checkpoint of the run, against the
documents of the steps around (`bigtrain.ledger.judge.standing_out`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.find import Checkpoint, verify
from bigtrain.errors import EXIT_DONE, UserError
from bigtrain.ledger.opened import OpenedRun, Sample
from bigtrain.ledger.spikes import SPIKE, LogPoint, log_points, spikes
from bigtrain.ledger.writing import Texts, place, print_table, tell, words_of, write_lines
from bigtrain.terminal import CommandLine
from bigtrain.trained import Device, load_trained

if TYPE_CHECKING:
    from bigtrain.ledger.judge import Key

SUMMARY = """\
The documents behind a loss spike, the likeliest first.

  bigtrain data blame RUN                  spikes are found in metrics.jsonl
  bigtrain data blame RUN --step 12340     of this step and the one before it
  bigtrain train run.dir=RUN data.exclude=RUN/blame.jsonl     goes on without what stands out

Judged is how far a document's losses under a checkpoint of the run lie from those of the documents around it: above
them (hard text, such as bytes read as letters) or below (easy text, such as repetitions). The file takes those that
stand out; look at them before you leave them out."""

STRANGE = 5.0
"""Documents this far from their peers, in units of what is usual, stand out."""
MOST_SAMPLES = 2048
"""Looked at: the candidates, and for peers the samples around them."""
FEWEST_SAMPLES = 256
LAST_LOSSES = 5
"""Logged losses whose median is that of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A candidate."""

    domain: str
    document: int
    file: str
    offset: int
    tokens: int
    """Targets of it that were looked at."""
    loss: float
    """Their mean loss under the judge, in nats."""
    strange: float
    """How far that lies from the peers: see `bigtrain.ledger.judge.standing_out`."""
    steps: list[int]
    """Candidate steps that it was part of."""
    spikes: int
    """Spikes that it may be behind."""


@dataclass(slots=True)
class Blame:
    """What `blame` found."""

    suspects: list[Suspect]
    """All candidates, the strangest first."""
    judge: Path
    """The checkpoint whose weights judged."""
    found: list[LogPoint]
    """Spikes of the log that were looked at."""
    usual: float
    """The median of the documents' mean losses."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how it was found."""


def blame(
    run: OpenedRun,
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    device: Device = "auto",
    most_samples: int = MOST_SAMPLES,
) -> Blame:
    """The documents behind the spikes of a run, or behind one step.

    Args:
        run: the run.
        step: look at this step; None: where the logged loss jumps, and where it does not, at all steps.
        overrides: the user's words; a model of their own needs them (see `load_trained`).
        device: where the model judges.
        most_samples: look at so many samples at most (but at the candidates of one spike at least).
        run: the run, where it is open already.

    Raises:
        UserError: see `load_trained`; no such step, nothing logged, or no intact checkpoint.
    """
    points = log_points(run.path)
    if step is None and not points:
        raise UserError(f"{run.path} has logged no loss yet: say which step, as --step N.")
    windows, found, notes = _windows(run, points, step)
    samples, candidates = _samples(run, windows, most_samples)
    if len(candidates) < sum(len(window) for window in windows):
        notes.append(f"looked at {len(candidates):,} steps only, where the loss is highest (more: --samples)")
    checkpoint = _judge(run, points, min(candidates), notes)
    trained = load_trained(checkpoint.path, overrides=overrides, device=device)

    from bigtrain.ledger.judge import document_losses, standing_out

    losses = document_losses(trained, list(chain.from_iterable(samples.values())), run.config.trainer.micro_batch_size)
    strange = standing_out(losses)
    steps: dict[Key, list[int]] = {}
    where: dict[Key, tuple[str, int]] = {}
    for at in sorted(candidates):
        for part in chain.from_iterable(run.parts(sample) for sample in samples[at]):
            key = (part.sample.domain, part.document)
            where[key] = (part.file, part.offset)
            if key in losses and at not in steps.setdefault(key, [])[-1:]:
                steps[key].append(at)
    suspects = [
        Suspect(
            *key, *where[key], len(losses[key]), float(losses[key].mean()), strange[key], at,
            sum(any(step in window for step in at) for window in windows) if found else 0,
        )
        for key, at in steps.items() if at
    ]  # fmt: skip
    suspects.sort(key=lambda suspect: -suspect.strange)
    usual = float(np.median([of.mean() for of in losses.values()]))
    return Blame(suspects, checkpoint.path, found, usual, notes)


def _windows(run: OpenedRun, points: list[LogPoint], step: int | None) -> tuple[list[range], list[LogPoint], list[str]]:
    """Steps whose documents may be at fault, the likeliest window first; the spikes, and what to say."""
    if step is not None:
        run.samples(step)  # there is such a step
        logged = [point for point in points if point.step == step]
        before = logged[0].after if logged else step - 1
        notes = [f"the loss of step {step:,} was not logged"] if not logged else []
        return [range(max(1, before), step + 1)], logged, notes
    found = spikes(points)
    if found:
        return [range(max(1, point.after), point.step + 1) for point in found], found, []
    highest = max(points, key=lambda point: point.height)
    notes = [
        f"no logged loss stands out (the highest, of step {highest.step:,}, is {highest.height:.1f} times the usual "
        f"noise above what was expected; a spike is {SPIKE:g}): all steps are looked at"
    ]
    order = sorted(points, key=lambda point: -point.height)
    return [range(point.after + 1, point.step + 1) for point in order], [], notes


def _samples(run: OpenedRun, windows: Sequence[range], most: int) -> tuple[dict[int, list[Sample]], set[int]]:
    """(the samples of the steps to look at, which of these steps are candidates).

    The candidates first; then as peers the steps around them, until there are four times as many samples.
    """
    samples: dict[int, list[Sample]] = {}
    seen: set[tuple[str, int]] = set()

    def look_at(step: int) -> None:
        samples[step] = run.samples(step)
        seen.update((sample.domain, sample.index) for sample in samples[step])

    for window in windows:
        for step in window:
            if step not in samples and (len(seen) < most or window is windows[0]):
                look_at(step)
    candidates = set(samples)
    enough = min(most, max(FEWEST_SAMPLES, 4 * len(seen)), run.data_samples)
    first, last, end = windows[0][0], windows[0][-1], run.last_step()
    for away in range(1, end):
        for step in (first - away, last + away):
            if 1 <= step <= end and step not in samples and len(seen) < enough:
                look_at(step)
        if len(seen) >= enough:
            break
    return samples, candidates


def _judge(run: OpenedRun, points: Sequence[LogPoint], first: int, notes: list[str]) -> Checkpoint:
    """The intact checkpoint that knows text best: where the logged loss was lowest.

    One from before a good run's spike and one from after it do about as well, the newer a little better; the untrained
    one of the first steps, and those of a run that has diverged, tell little. Without a log: the nearest one before
    the candidates, else the nearest one behind them.
    """

    def loss(step: int) -> float:
        last = [point.loss for point in points if point.step <= step][-LAST_LOSSES:]
        return float(np.median(last)) if last and np.isfinite(last).all() else float("inf")

    by_distance = sorted(run.checkpoints, key=lambda step: (step >= first, abs(first - step)))
    for step in sorted(by_distance, key=loss):  # stable: of equals the nearest
        folder = run.checkpoints[step]
        faults = verify(folder)
        if not faults:
            if step >= first:
                notes.append(f"{folder.name}, which judges, has been trained on these documents itself")
            return Checkpoint(folder, manifest.read(folder))
        notes.append(f"{folder.name} is damaged: {faults[0]}")
    raise UserError(
        f"{run.path} has no intact checkpoint ({'; '.join(notes) or 'none at all'}), and blame needs a model that "
        "judges the documents. `bigtrain data trace` names those of a step without."
    )


def main(argv: Sequence[str]) -> int:
    """The command."""
    line = CommandLine("data blame", SUMMARY)
    line.add_argument("--step", type=int, metavar="N", help="look at this step; else at the spikes of the logged loss")
    line.add_argument("--top", type=int, default=10, metavar="K", help="show so many documents (10)")
    line.add_argument(
        "--samples", type=int, default=MOST_SAMPLES, metavar="N", help=f"look at so many at most ({MOST_SAMPLES})"
    )
    line.add_argument("--json", action="store_true", help="print a JSON object for each document shown, with its text")
    line.add_argument("--out", metavar="FILE", help="where what stands out is written; else blame.jsonl in the run")
    options, path, overrides = line.read(argv)
    for name in ("top", "samples"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(options, name)}.")
    run = OpenedRun(path, overrides)
    result = blame(run, step=options.step, overrides=overrides, device=options.device, most_samples=options.samples)
    shown = result.suspects[: options.top]
    texts = Texts(run)
    entries = [_entry(suspect, texts) for suspect in shown]
    strange = [entry for entry, suspect in zip(entries, shown, strict=True) if suspect.strange >= STRANGE]
    if options.json:
        write_lines(entries)
    else:
        _show(run, result, shown, texts)
    end = (
        f"None of these documents stands out ({STRANGE:g} and more would): the cause may lie elsewhere, as in "
        "optimizer.lr, a missing warm-up or a fault of the hardware. Nothing was written."
    )
    if strange:
        out = Path(options.out or run.path / "blame.jsonl")
        write_lines(strange, out)
        end = (
            f"{len(strange)} of them written to {out}. To go on without: "
            f"bigtrain train run.dir={run.path} data.exclude={out}"
        )
    print(end, file=sys.stderr) if options.json else tell(end)
    return EXIT_DONE


def _entry(suspect: Suspect, texts: Texts) -> dict[str, Any]:
    return {**asdict(suspect), "text": texts.document(suspect.domain, suspect.document)}


def _show(run: OpenedRun, result: Blame, shown: Sequence[Suspect], texts: Texts) -> None:
    for point in result.found:
        between = f", after {point.after:,}" if point.step - point.after > 1 else ""
        how = f"{point.height:.1f} times the usual noise above what was expected"
        tell(f"step {point.step:,}{between}: loss {point.loss:.4f}, {how}")
    for note in result.notes:
        tell(f"note: {note}")
    tell(f"{len(result.suspects):,} documents, judged by {result.judge.name}; their usual loss is {result.usual:.3f}")
    several = len(result.found) > 1
    columns = ["", "strange", "loss", "targets", *(["spikes"] if several else []), "document", "first words"]
    rows = [
        [
            f"{rank}", f"{suspect.strange:.1f}", f"{suspect.loss:.3f}", f"{suspect.tokens:,}",
            *([f"{suspect.spikes}/{len(result.found)}"] if several else []),
            place(suspect.file, suspect.offset), words_of(texts.document(suspect.domain, suspect.document)),
        ]
        for rank, suspect in enumerate(shown, 1)
    ]  # fmt: skip
    print_table(columns, rows)
