"""`bigtrain train -m … sweep.trials=N`: Optuna chooses the runs of a sweep, one after another, and ends the hopeless.

The values of a trial come from a Tree-structured Parzen Estimator (Bergstra et al., NeurIPS 2011) that knows the
trials before it. Its seed is that of the run and the trial's number, so that a study which was killed and goes on is
the study that it would have been. Each trial is a process of its own in a run folder of its own; what it logs of the
held-out split goes to a median pruner (Golovin et al., KDD 2017). `study.log` in the sweep's folder is the study.
"""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from bigtrain import launch
from bigtrain.checkpoint.folder import lock
from bigtrain.config.compose import compose
from bigtrain.config.composer import Composer, overrides_from
from bigtrain.config.launchers import Kubernetes, Slurm, Torchrun
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from bigtrain.launchers.sweep import Part, words_of, write_ledger
from bigtrain.launchers.tuning import Settings, Space, first_of, part_of, settings_from, space_of, words_from
from bigtrain.telemetry.metrics import FILE_NAME as METRICS
from bigtrain.telemetry.metrics import numbers, read_lines

if TYPE_CHECKING:
    from optuna import Study, Trial

STUDY = "study.log"
PICTURE = "sweep.png"
POLL_S = 0.2
SHOWN = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "stopped", "WAITING": "not run"}


def _need_extra() -> None:
    try:
        import matplotlib
        import optuna
    except ImportError as error:
        raise UserError(f"sweep.trials needs Optuna and Matplotlib: pip install 'bigtrain[tune]' ({error})") from error
    matplotlib.use("Agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(slots=True)
class Sweep:
    """A study and the words that belong to it."""

    folder: Path
    options: list[str]
    overrides: list[str]
    settings: Settings
    space: Space
    study: Study
    seed: int
    asked: list[int] = field(default_factory=list)
    """The signals that asked us to stop."""
    child: subprocess.Popen[bytes] | None = None

    @property
    def shared(self) -> list[str]:
        """The words of every trial."""
        keys = {key.lstrip("+~") for key in self.space}
        return [*self.options, *(w for w in self.overrides if w.lstrip("+~").partition("=")[0] not in keys)]

    def rows(self) -> list[dict[str, Any]]:
        """What came of each trial so far: number, values, metric (of a pruned one: its last), state."""
        return [
            {
                "number": trial.number,
                "values": {
                    key: float(f"{value:.6g}") if isinstance(value, float) else value
                    for key, value in ((key, trial.params[key]) for key in self.space if key in trial.params)
                },
                "metric": trial.value if trial.value is not None and math.isfinite(trial.value) else None,
                "state": SHOWN[trial.state.name],
            }
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def keep(self) -> None:
        """Write `sweep.json`."""
        rows = self.rows()
        chosen = best(rows, self.settings.way)
        parts = [part_of(self.folder, row["number"], row["values"]) for row in rows]
        more = {"metric": self.settings.metric, "direction": self.settings.way,
                "best": chosen and chosen["number"], "trials": rows}  # fmt: skip
        words = [*self.options, *self.overrides, *words_from(self.settings)]
        write_ledger(self.folder, words, parts, more)


def best(rows: Sequence[Mapping[str, Any]], way: str) -> Mapping[str, Any] | None:
    """The trial that was done with the best metric."""
    done = [row for row in rows if row["state"] == "done" and row["metric"] is not None]
    return (min if way == "minimize" else max)(done, key=lambda row: row["metric"], default=None)


def run(folder: Path, options: list[str], overrides: list[str], settings: Settings, old_words: Sequence[str]) -> int:
    """All trials that are not done yet, then the table, `sweep.json`, `sweep.png` and the command of the best.

    Args:
        folder: the sweep's.
        options: `--config-dir DIR`, each.
        overrides: all others, those that are swept among them.
        settings: how to sweep.
        old_words: what was typed for the sweep that the folder holds already.

    Returns:
        0 where at least one trial was done, 75 where it was asked to stop, else 1.

    Raises:
        UserError: anything wrong, before a trial starts; or a metric that evaluations do not have.
    """
    _need_extra()
    composer = Composer([Path(word) for word in options[1::2]])
    space = space_of(overrides, composer)
    if old_words:
        _same(folder, old_words, settings, overrides, composer)
    trial = part_of(folder, 0, first_of(space))
    trial.folder = str(folder / "first")  # no run's folder
    try:
        config = compose(words_of([*options, *overrides], trial)).config
    except UserError as error:
        raise UserError(f"{trial.title}: {error} Nothing was started.") from error
    if config.evaluation.folds is not None:
        raise UserError(
            "evaluation.folds with sweep.trials: a trial is one run. Sweep first, then take folds of the best."
        )
    _refuse_handed_over(config)
    with lock(folder):
        sweep = Sweep(folder, options, overrides, settings, space, _study(folder, settings), config.seed)
        sweep.keep()
        try:
            with _listening(sweep):
                stopped = _all_trials(sweep)
        finally:
            sweep.keep()
        return _told(sweep, stopped)


def _same(
    folder: Path, old_words: Sequence[str], settings: Settings, overrides: Sequence[str], composer: Composer
) -> None:
    old, rest = settings_from(overrides_from(old_words)[0])
    if old is None:
        raise UserError(f"{folder} holds a grid of runs, which Optuna did not choose: give another run.dir=")
    then = space_of(rest, composer)
    if (then, old.metric, old.way) != (space_of(overrides, composer), settings.metric, settings.way):
        were = " ".join(word for word in rest if word.lstrip("+").partition("=")[0] in {k.lstrip("+") for k in then})
        raise UserError(f"{folder} holds another sweep ({were}, {old.way} {old.metric}): give another run.dir=")


def _refuse_handed_over(config: RunConfig) -> None:
    """Trials are chosen one after another, so that somebody has to wait for each: us."""
    launcher = config.launcher
    queued = isinstance(launcher, Kubernetes) or (isinstance(launcher, Slurm) and not launch.in_allocation())
    if queued or (isinstance(launcher, Torchrun) and (launcher.nodes or 1) > 1):
        raise UserError(
            f"launcher={launcher.name}: sweep.trials chooses each run by those before it, and so waits for it here. "
            "Start it where it can: on one machine, with a hostfile, or inside of an allocation; a grid "
            "(-m without sweep.trials) can be submitted to Slurm."
        )


def _study(folder: Path, settings: Settings) -> Study:
    """The one in `study.log`, or a new one; the folder's lock is ours."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    (folder / f"{STUDY}.lock").unlink(missing_ok=True)  # of one that was killed
    quick = settings.startup_trials
    pruner = optuna.pruners.MedianPruner(n_startup_trials=quick) if settings.prune else optuna.pruners.NopPruner()
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY))), study_name="sweep", load_if_exists=True,
        pruner=pruner, direction=settings.way,
    )  # fmt: skip


@contextmanager
def _listening(sweep: Sweep) -> Iterator[None]:
    """Requests to stop go on to the running trial, which is in a process group of its own and hears them once."""

    def ask(number: int, frame: FrameType | None) -> None:
        sweep.asked.append(number)
        if sweep.child is not None and sweep.child.poll() is None:
            sweep.child.send_signal(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _all_trials(sweep: Sweep) -> bool:
    """Go on with the trial that was in the middle, then choose the others; True: asked to stop before the end."""
    from optuna.trial import TrialState

    settings, study = sweep.settings, sweep.study
    trials = study.get_trials(deepcopy=False)
    if done := sum(trial.state.is_finished() for trial in trials):
        print(f"{done} of {settings.trials} are done already")
    while not sweep.asked:
        trials = study.get_trials(deepcopy=False)
        halfway = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if not halfway and len(trials) >= settings.trials:
            return False
        trial, part = _chosen(sweep, halfway[0] if halfway else None, len(trials))
        print(f"\n[{part.number + 1}/{settings.trials}] {part.title}", flush=True)
        try:
            state, value = _one_trial(sweep, trial, part)
        except UserError:
            study.tell(trial, state=TrialState.FAIL)
            raise
        if state == TrialState.RUNNING:
            return True
        study.tell(trial, value, state)
        sweep.keep()
    return True


def _chosen(sweep: Sweep, halfway: Any, number: int) -> tuple[Trial, Part]:
    """The trial and its values. The sampler's seed is the trial's own: it holds no state that a kill could lose."""
    import numpy as np
    import optuna

    number = number if halfway is None else halfway.number
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    sweep.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=sweep.settings.startup_trials)
    trial = sweep.study.ask() if halfway is None else optuna.trial.Trial(sweep.study, halfway._trial_id)
    # what `ask(space)` does; values that the trial has already are kept
    values = {key: trial._suggest(key, distribution) for key, distribution in sweep.space.items()}
    return trial, part_of(sweep.folder, trial.number, values)


def _one_trial(sweep: Sweep, trial: Trial, part: Part) -> tuple[Any, float | None]:
    """Run it to its end; RUNNING: stopped, it can go on.

    Raises:
        UserError: its evaluations do not have the metric, or there are none.
    """
    from optuna.trial import TrialState

    file = Path(part.folder) / METRICS
    seen = set(sweep.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    if seen and trial.should_prune():  # decided before we were killed
        return TrialState.PRUNED, None
    from bigtrain.train import die_with_parent

    command = [sys.executable, "-m", "bigtrain", "train", *words_of(sweep.shared, part)]
    child = sweep.child = subprocess.Popen(command, process_group=0, preexec_fn=die_with_parent)
    pruned = False
    try:
        if sweep.asked:  # while it was started
            child.send_signal(sweep.asked[-1])
        while child.poll() is None:
            if not pruned and (pruned := _reported(file, sweep.settings, trial, seen)) and not sweep.asked:
                child.terminate()
            time.sleep(POLL_S)
        code = child.returncode
        pruned = pruned or _reported(file, sweep.settings, trial, seen)
    finally:
        sweep.child = None
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code == EXIT_DONE:  # whatever the pruner thought of its last evaluation
        found = _evaluations(file, sweep.settings)
        if not found:
            raise UserError("sweep.trials chooses by evaluations, and the run has logged none: is anything held out?")
        _, value = found[-1]
        return (TrialState.COMPLETE, value) if math.isfinite(value) else (TrialState.FAIL, None)
    if pruned:
        print(f"pruned: its {sweep.settings.metric} is worse than the median of the others at this step")
        return TrialState.PRUNED, None
    if sweep.asked or code == EXIT_STOPPED:
        return TrialState.RUNNING, None
    return TrialState.FAIL, None


def _evaluations(file: Path, settings: Settings) -> list[tuple[int, float]]:
    """Step and metric of each evaluation so far; one without a number is NaN."""
    found = []
    for line in read_lines(file, "eval"):
        logged = numbers(line)
        if settings.metric not in logged:
            names = ", ".join(name for name in logged if name != "tokens")
            raise UserError(f"sweep.metric={settings.metric}: evaluations have none; they have {names}.")
        value = logged[settings.metric]
        found.append((int(line["step"]), math.nan if value is None else float(value)))
    return found


def _reported(file: Path, settings: Settings, trial: Trial, seen: set[int]) -> bool:
    """Tell Optuna of evaluations that are new, one by one; True: the trial has no hope.

    The one before the first step says nothing of the values.
    """
    for step, value in _evaluations(file, settings):
        if step > 0 and step not in seen:
            seen.add(step)
            trial.report(value, step)
            if trial.should_prune():
                return True
    return False


def _told(sweep: Sweep, stopped: bool) -> int:
    """The table, the picture, the command of the best; the exit code."""
    from bigtrain.report.sweep_picture import draw

    rows, settings = sweep.rows(), sweep.settings
    chosen = best(rows, settings.way)
    _print_table(rows, chosen, settings.metric)
    if chosen is not None:
        logarithmic = [key for key, each in sweep.space.items() if getattr(each, "log", False)]
        draw(sweep.folder / PICTURE, rows, settings.metric, settings.way, logarithmic)
        part = part_of(sweep.folder, chosen["number"], chosen["values"])
        words = words_of(sweep.shared, part)[:-1]  # without its run folder: a new run
        print(f"picture: {sweep.folder / PICTURE}")
        print(f"the best again: bigtrain train {shlex.join(words)}")
    print(sweep.folder, flush=True)
    if stopped:
        print(f"bigtrain: the sweep goes on with: bigtrain train -m run.dir={sweep.folder}", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_DONE if chosen is not None else EXIT_FAILED


def _print_table(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any] | None, metric: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    table = Table("trial", *keys, metric, "state", box=box.SIMPLE_HEAD)
    for row in rows:
        value = "" if row["metric"] is None else f"{row['metric']:.4f}{' *' if row is chosen else ''}"
        table.add_row(
            str(row["number"]), *(str(row["values"].get(key, "")) for key in keys), value, row["state"]
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
