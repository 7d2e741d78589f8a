"""The terminal and the log files: rank 0 speaks, every rank keeps `logs/rank_N.log`.

Messages, tables and progress go to standard output, and the last line that a command prints is its result (a path).
Standard error is for what ends a command, and for warnings.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from bigtrain.errors import UserError
from bigtrain.telemetry.metrics import Number, Split

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

said = logging.getLogger("bigtrain.said")
"""What was printed already: for the log file only."""

LIBRARIES = ("DeepSpeed", "transformers", "datasets", "huggingface_hub", "torch", "wandb", "absl")


@functools.cache
def console() -> Console:
    """The one console of the process, on standard output; 120 columns where that is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(width=width, highlight=False)


def say(message: str, style: str | None = None) -> None:
    """Print one message as it is: no markup is read in it, and no line of it is broken (paths stay whole).

    It goes to the rank's log file too, where there is one.
    """
    _print(console(), message, style)
    said.info(message)


def _print(on: Console, message: str, style: str | None = None) -> None:
    on.print(message, style=style, markup=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    """Warnings of rank 0 on the terminal, above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        try:
            message = record.getMessage()
            _print(console(), message if style is None else f"{record.levelname.lower()}: {message}", style)
        except Exception:
            self.handleError(record)


def _for_terminal(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or (record.name.startswith("bigtrain") and record.name != said.name)


def setup_logging(run_dir: Path, rank: int) -> Path:
    """Send this rank's logging and Python warnings to `<run>/logs/rank_N.log`, which grows over resumes.

    On rank 0 bigtrain's messages and everybody's warnings are on the terminal too. Any other rank's standard output
    goes to its log file, whoever writes it (C++ and child processes too); its standard error stays, so that a crash is
    never silent. Call `adopt_libraries` again after libraries were imported: some make handlers of their own.

    Raises:
        UserError: the log cannot be written.
    """
    path = run_dir / "logs" / f"rank_{rank}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if getattr(handler, "bigtrain", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [to_file]
    if rank == 0:
        to_console = _ConsoleHandler()
        to_console.addFilter(_for_terminal)
        handlers.append(to_console)
    for handler in handlers:
        handler.bigtrain = True  # type: ignore[attr-defined]  # so that a second call replaces them
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    adopt_libraries()
    if rank != 0:
        sys.stdout.flush()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.close(descriptor)
    return path


def adopt_libraries() -> None:
    """Libraries that print their logs themselves hand them to the root logger instead."""
    for name in LIBRARIES:
        library = logging.getLogger(name)
        for handler in list(library.handlers):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                library.removeHandler(handler)
        library.propagate = True


class TrainProgress:
    """A bar with step, loss, learning rate, tokens/s and the time left; plain lines where there is no terminal.

    Args:
        total_steps: where training ends.
        step: where it begins (a resume: the checkpoint's).
        unit: what is counted a second.
        output: standard output, or another stream (tests).
    """

    def __init__(self, total_steps: int, *, step: int = 0, unit: str = "tok", output: TextIO | None = None):
        self._total, self._unit = total_steps, unit
        self._first = step
        self._console = console() if output is None else _console_on(output)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            expand=True,
            refresh_per_second=4,  # a bar that is drawn ten times a second is seen in the CPU time of a tiny model
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task("train", total=self._total, completed=self._first, numbers="")
        self._bar.start()

    def step(self, step: int) -> None:
        """Step `step` is done (1 after the first)."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """The numbers of a log point. An evaluation makes a line that stays; the log file has every one."""
        place = f"step {step:>{len(str(self._total))}}/{self._total}"
        if split == "eval":
            line = f"eval   {place}  {_eval_numbers(metrics)}"
        else:
            line = f"train  {place}  {_train_numbers(metrics, self._unit, whole=True)}{self._left(step, metrics)}"
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=step, numbers=_train_numbers(metrics, self._unit))
        if split == "eval" or self._bar is None:
            _print(self._console, line)
        said.info(line)

    def _left(self, step: int, metrics: Mapping[str, Number]) -> str:
        pace = metrics.get("step_time_s")
        return f"  left {clock(pace * (self._total - step))}" if pace is not None and step < self._total else ""

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _console_on(output: TextIO) -> Console:
    from rich.console import Console

    return Console(file=output, highlight=False, width=None if output.isatty() else 120)


def _train_numbers(metrics: Mapping[str, Number], unit: str, *, whole: bool = False) -> str:
    formats = {"loss": "loss {:.4f}", "lr": "lr {:.2e}", "grad_norm": "grad {:.3g}"}
    parts = [
        form.format(value)
        for name, form in formats.items()
        if (value := metrics.get(name)) is not None and (whole or name != "grad_norm")
    ]
    if (rate := metrics.get("tokens_per_s")) is not None:
        parts.append(f"{short(rate)} {unit}/s")
    if whole and (mfu := metrics.get("mfu")) is not None:
        parts.append(f"mfu {mfu:.1%}")
    return "  ".join(parts)


def _eval_numbers(metrics: Mapping[str, Number]) -> str:
    shown = {name: value for name, value in metrics.items() if value is not None and name != "tokens"}
    return "  ".join(
        f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.5g}" for name, value in shown.items()
    )


def short(number: float) -> str:
    """1234 → `1.23k`, 5.6e9 → `5.6B`: three digits with a scale."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """75 → `1:15`, 7261 → `2:01:01`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
