"""What a run leaves behind: the lines of metrics.jsonl, trackers and progress while it runs, and what follows it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bigtrain.config.components import build
from bigtrain.config.schema import RunConfig
from bigtrain.errors import RunError, UserError
from bigtrain.optim import RANGE_TEST
from bigtrain.telemetry.metrics import JsonlLog, Number, Split, counted, read_lines
from bigtrain.telemetry.progress import TrainProgress, console, say
from bigtrain.telemetry.trackers import Trackers

if TYPE_CHECKING:
    from bigtrain.distributed import Ranks


class Outputs:
    """Where rank 0 sends the numbers of a run; on the other ranks nothing happens.

    Args:
        config: the run's.
        ranks: who we are.
        step: where training begins or goes on.
        resumed: whether a checkpoint was loaded.
        total_steps: where it ends.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, step: int, resumed: bool, total_steps: int):
        self._sinks: list[JsonlLog | Trackers | TrainProgress] = []
        self._progress: TrainProgress | None = None
        if not ranks.first:
            return
        run_dir, plain = Path(config.run.dir or ""), dataclasses.asdict(config)
        jsonl = JsonlLog(run_dir, resume_step=step if resumed else None)  # first: trackers look at what it kept
        trackers = {name: build(part, f"tracker.{name}", run_dir, plain) for name, part in config.tracker.items()}
        self._progress = TrainProgress(
            total_steps, step=step, unit="tok" if (word := counted(config.objective)) == "tokens" else word
        )
        self._sinks = [jsonl, Trackers(trackers), self._progress]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def log(self, step: int, split: Split, numbers: Mapping[str, Number]) -> None:
        """One log point."""
        for sink in self._sinks:
            sink.log(step, split, numbers)

    def stepped(self, step: int) -> None:
        """A step is done."""
        if self._progress is not None:
            self._progress.step(step)

    def close(self) -> None:
        """Flush and give the terminal back; safe to call twice."""
        sinks, self._sinks, self._progress = self._sinks, [], None
        for sink in reversed(sinks):
            sink.close()


def print_evaluations(run_dir: Path, what: str) -> None:
    """The held-out loss over the run as a table: step, tokens (`what` is counted), loss, the objective's metrics."""
    from rich.table import Table

    lines = [line for line in read_lines(run_dir / "metrics.jsonl") if line["split"] == "eval"]
    if not lines:
        return
    names = [name for name in lines[0] if name not in ("step", "split")]
    table = Table(title="held-out", title_justify="left")
    for name in ("step", *[name for name in ("tokens", "loss") if name in names]):
        table.add_column(what if name == "tokens" else name, justify="right")
    others = [name for name in names if name not in ("tokens", "loss")]
    for name in others:
        table.add_column(name, justify="right")
    for line in lines:
        cells = [f"{line['step']}", f"{line['tokens']:,}", f"{line['loss'] if line['loss'] is not None else '-':.4}"]
        table.add_row(*cells, *(f"{line[name]:,.2f}" if line.get(name) is not None else "-" for name in others))
    console().print(table)


def keep_confusion(objective: Any, data: Any, run_dir: Path) -> None:
    """A classifier's confusion matrix of the last evaluation, for the report."""
    matrix = getattr(objective, "confusion", None)
    if matrix is not None:
        told = {"matrix": matrix, "names": getattr(data, "label_names", None)}
        (run_dir / "confusion.json").write_text(json.dumps(told) + "\n", encoding="utf-8")


def finish(config: RunConfig, run_dir: Path, finished: bool) -> None:
    """After the last step, on rank 0 alone: the table, a sample, the export, the report.

    One that cannot be made does not keep the others from being made: the first error is raised at the end.
    """
    print_evaluations(run_dir, counted(config.objective))
    if not finished:
        say(f"stopped on request after a checkpoint; go on with: bigtrain train run.dir={run_dir}")
    evaluation = config.evaluation
    parts: list[tuple[bool, Callable[[], None]]] = [
        (finished and evaluation.generate is not None, lambda: _sample(config, run_dir)),
        (finished and evaluation.export, lambda: _export(config, run_dir)),
        (evaluation.report, lambda: _report(run_dir)),
        (finished and config.schedule["_target_"] == RANGE_TEST, lambda: _suggestion(run_dir)),
    ]
    errors = []
    for wanted, make in parts:
        if wanted:
            try:
                make()
            except (UserError, RunError) as error:
                errors.append(error)
    if errors:
        raise errors[0]


def _sample(config: RunConfig, run_dir: Path) -> None:
    from bigtrain.generate import generate

    evaluation = config.evaluation
    sample = generate(
        run_dir,
        evaluation.generate or "",
        max_new_tokens=evaluation.generate_tokens,
        temperature=evaluation.generate_temperature,
        config=config,
    )
    (run_dir / "sample.txt").write_text(sample + "\n", encoding="utf-8")
    say(f"sample: {sample}")


def _export(config: RunConfig, run_dir: Path) -> None:
    from bigtrain.export import export

    say(f"export: {export(run_dir, run_dir / 'export', config=config)}")


def _report(run_dir: Path) -> None:
    from bigtrain.report import write_report

    say(f"report: {write_report(run_dir)}")


def _suggestion(run_dir: Path) -> None:
    from bigtrain.report.range_test import range_test
    from bigtrain.report.read import read_runs

    test = range_test(read_runs([run_dir])[0])
    if test is not None:
        say(test.sentence)
