"""`bigtrain train -m` and `bigtrain submit -m`: a run for each combination, in Hydra's grammar of sweeps.

Every combination is composed and checked before the first one starts. Runs here go one after another; on Slurm they
are an array of jobs through submitit, each of which does in its allocation what `bigtrain train` does there. With
`sweep.trials=N` Optuna chooses the runs instead: `tune.py`.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain import launch, tune
from bigtrain.config.compose import compose
from bigtrain.config.composer import Composer, overrides_from
from bigtrain.config.launchers import Slurm
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError, guarded
from bigtrain.launchers.sweep import (
    Part,
    executor_parameters,
    folder_name,
    read_ledger,
    words_of,
    write_ledger,
)
from bigtrain.launchers.tuning import refuse, settings_from

FLAGS = ("-m", "--multirun")
WARNING = "USR1"
"""The signal that ranks know too: submitit's own choice, USR2, would end them."""


def is_sweep(argv: Sequence[str]) -> bool:
    """Has the user asked for several runs?"""
    return any(word in FLAGS for word in argv)


def combinations(overrides: Sequence[str], composer: Composer) -> list[list[str]]:
    """The product of all sweeps among `overrides` (choices, `range()`, `glob()`), in Hydra's order.

    Raises:
        UserError: nothing to sweep over, or a sweep that is not discrete.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=composer.loader)
    try:
        swept = [each for each in parser.parse_overrides(list(overrides)) if each.is_sweep_override()]
        endless = [each.input_line for each in swept if each.is_interval_sweep()]
        if endless:
            raise UserError(f"'{endless[0]}' has no end of values: with sweep.trials=N Optuna chooses N of them.")
        (batch,) = BasicSweeper.split_arguments(swept, None)
    except HydraException as error:
        raise UserError(f"cannot read the sweep: {' '.join(str(error).split())}") from error
    if not swept:
        raise UserError("-m sweeps over values, and no override has several: optimizer.lr=1e-3,3e-4 seed=1,2")
    return batch


def _without(overrides: Sequence[str], key: str) -> list[str]:
    return [word for word in overrides if word.lstrip("+").partition("=")[0] != key]


def _given(overrides: Sequence[str], key: str) -> str | None:
    found = [word.partition("=")[2] for word in overrides if word.lstrip("+").partition("=")[0] == key]
    return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line asks for: a folder, the words but `run.dir=`, and what that folder holds of an old sweep."""

    folder: Path
    options: list[str]
    """`--config-dir DIR`, each."""
    overrides: list[str]
    old_words: list[str]
    old_parts: list[Part]


def _asked(argv: Sequence[str]) -> Asked:
    """Read the command line; of a sweep that is there already the words that were typed then are a part of it.

    Raises:
        UserError: the folder is a run's.
    """
    overrides, folders = overrides_from([word for word in argv if word not in FLAGS])
    options = [word for folder in folders for word in ("--config-dir", str(folder))]
    given = _given(overrides, "run.dir")
    overrides = _without(overrides, "run.dir")
    words, before = read_ledger(Path(given)) if given else ([], [])
    if words and _given(overrides, "recipe") is None:  # `-m run.dir=FOLDER` alone: what was typed then
        old, old_folders = overrides_from(words)
        overrides = [*old, *overrides]
        options = options or [word for folder in old_folders for word in ("--config-dir", str(folder))]
    recipe = (_given(overrides, "recipe") or "").removesuffix(".yaml")
    parent = (
        "runs" if "," in recipe or not recipe else f"runs/{recipe if not Path(recipe).anchor else Path(recipe).name}"
    )
    folder = Path(given or f"{parent}/sweep-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    if not words and (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a run, not of a sweep: give another run.dir=")
    return Asked(folder, options, overrides, words, before)


def _laid_out(asked: Asked) -> tuple[list[str], list[Part]]:
    """The words that all parts share, and the parts; a sweep that is there already goes on.

    Raises:
        UserError: the folder holds another sweep.
    """
    folder, before = asked.folder, asked.old_parts
    batch = combinations(asked.overrides, Composer([Path(word) for word in asked.options[1::2]]))
    parts = [Part(n, chosen, str(folder / folder_name(n, chosen))) for n, chosen in enumerate(batch)]
    if asked.old_words:
        if [part.overrides for part in before] != [part.overrides for part in parts]:
            were = "; ".join(part.title for part in before)
            raise UserError(f"{folder} holds another sweep ({were}): give the same, or another run.dir=")
        parts = before
    return [*asked.options, *asked.overrides], parts


def _checked(shared: Sequence[str], parts: Sequence[Part]) -> list[RunConfig]:
    configs = []
    for part in parts:
        try:
            configs.append(compose(words_of(shared, part)).config)
        except UserError as error:
            raise UserError(f"{part.title}: {error} Nothing was started.") from error
    return configs


def train(argv: Sequence[str]) -> int:
    """`bigtrain train`; with -m a sweep, whose parts are submitted on Slurm, outside of an allocation."""
    if is_sweep(argv):
        return _sweep(argv, launch.train, dry_run=False)
    refuse(argv, "is for a sweep: bigtrain train -m …")
    return launch.train(argv)


def submit(argv: Sequence[str]) -> int:
    """`bigtrain submit`, and with -m a sweep; `--dry-run` shows what would be submitted."""
    refuse(argv, "chooses runs one after another: bigtrain train -m …, which starts them itself")
    if not is_sweep(argv):
        return launch.submit(argv)
    dry_run = "--dry-run" in argv
    words = [word for word in argv if word != "--dry-run"]
    return _sweep(words, lambda part: launch.submit([*part, *(["--dry-run"] if dry_run else [])]), dry_run)


def _sweep(argv: Sequence[str], start: Callable[[Sequence[str]], int], dry_run: bool) -> int:
    asked = _asked(argv)
    folder = asked.folder
    settings, overrides = settings_from(asked.overrides)
    if settings is not None:
        return tune.run(folder, asked.options, overrides, settings, asked.old_words)
    shared, parts = _laid_out(asked)
    open_parts = [part for part in parts if part.outcome() != EXIT_DONE]
    configs = _checked(shared, open_parts)
    if done := len(parts) - len(open_parts):
        print(f"{done} of {len(parts)} are done already")
    on_slurm = [isinstance(config.launcher, Slurm) for config in configs]
    if any(on_slurm) and not launch.in_allocation():
        if not all(config.launcher == configs[0].launcher for config in configs):
            raise UserError("the parts of a sweep on Slurm are one array: all need the same launcher settings.")
        return _submitted(folder, shared, parts, open_parts, configs[0], dry_run)
    if dry_run:
        return max([start(words_of(shared, part)) for part in open_parts], default=EXIT_DONE)
    write_ledger(folder, shared, parts)
    return run_parts(folder, shared, parts, start)


def run_parts(folder: Path, shared: Sequence[str], parts: Sequence[Part], start: Callable[[Sequence[str]], int]) -> int:
    """One part after another. One that fails keeps no other from being run; a stop ends the sweep, which can go on."""
    stopped = False
    for part in parts:
        if part.outcome() == EXIT_DONE:
            continue
        print(f"\n[{part.number + 1}/{len(parts)}] {part.title}", flush=True)
        code = guarded(start, words_of(shared, part))
        part.record(code)
        stopped = code == EXIT_STOPPED
        if stopped:
            break
    print_table(parts)
    print(folder, flush=True)
    if stopped:
        print(f"bigtrain: the sweep goes on with: bigtrain train -m run.dir={folder}", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_DONE if all(part.outcome() == EXIT_DONE for part in parts) else EXIT_FAILED


SAID = {None: "not run", EXIT_DONE: "done", EXIT_STOPPED: "stopped", EXIT_USER: "refused"}


def print_table(parts: Sequence[Part]) -> None:
    """One line a part; the lowest held-out loss is marked."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "overrides", "outcome", "step", "loss", "held-out loss", box=box.SIMPLE_HEAD)
    held_out = {part.number: part.last("eval").get("loss") for part in parts}
    best = min((loss for loss in held_out.values() if loss is not None), default=None)
    for part in parts:
        train_line, code, loss = part.last("train"), part.outcome(), held_out[part.number]
        shown = "" if loss is None else f"{loss:.4f}{' *' if loss == best else ''}"
        train_loss = train_line.get("loss")
        table.add_row(
            str(part.number), part.title, SAID.get(code, "failed"), str(train_line.get("step", "")),
            "" if train_loss is None else f"{train_loss:.4f}", shown,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


class Worker:
    """What submitit runs in each job: this part, to its end; a stop after a checkpoint queues the job again."""

    def __call__(self, shared: Sequence[str], part: Part) -> int:
        """The part's exit code, 0; any other is an error, so that the scheduler counts the job as failed."""
        import signal

        code = guarded(launch.train, words_of(shared, part))
        if code == EXIT_STOPPED and _still_running():
            signal.raise_signal(getattr(signal, f"SIG{WARNING}"))  # submitit's handler queues the job again
        part.record(code)
        if code != EXIT_DONE:
            raise RuntimeError(f"{part.title}: ended with exit code {code}; see {part.folder}/logs")
        return code

    def checkpoint(self, shared: Sequence[str], part: Part) -> Any:
        """The same again: its run folder knows how far it has come."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, shared, part)


def _still_running() -> bool:
    """Outside of Slurm, or in a job that was not cancelled: a cancelled one must not come back."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return True
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=False).stdout
    return "JobState=RUNNING" in shown


def executor(folder: Path, parameters: dict[str, Any], cluster: str = "slurm", python: str | None = None) -> Any:
    """Submitit's executor, its files in the sweep's folder; `python` is the interpreter of the jobs.

    Raises:
        UserError: submitit or Slurm is not here.
    """
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = WARNING  # read when submitit is imported, here and in the jobs
    try:
        import submitit
    except ImportError as error:
        raise UserError("a sweep on Slurm needs submitit: pip install 'bigtrain[slurm]'") from error
    try:
        made = submitit.AutoExecutor(
            folder=folder / "submitit", cluster=cluster, slurm_max_num_timeout=10_000, slurm_python=python
        )
    except RuntimeError as error:
        raise UserError(
            "launcher=slurm: there is no srun here; start the sweep on a machine of the cluster."
        ) from error
    made.update_parameters(**parameters)
    return made


def _queued() -> set[str]:
    """The ids of this user's jobs that wait or run, those of an array as `id_index`."""
    command = ["squeue", "--array", "--noheader", "--format=%i", "--user", str(os.getuid())]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=False).stdout.split())
    except OSError:
        return set()


def _submitted(
    folder: Path, shared: Sequence[str], parts: Sequence[Part], open_parts: Sequence[Part], config: RunConfig,
    dry_run: bool,
) -> int:  # fmt: skip
    assert isinstance(config.launcher, Slurm)
    parameters = executor_parameters(config)
    if dry_run:
        print("".join(f"# {key}: {value}\n" for key, value in parameters.items() if value is not None), end="")
        for part in open_parts:
            print(" ".join(["bigtrain train", *words_of(shared, part)]))
        return EXIT_DONE
    queued = _queued()
    waiting = [part for part in open_parts if part.job in queued]
    for part in waiting:
        print(f"{part.job}  {part.title}: in the queue already")
    fresh = [part for part in open_parts if part not in waiting]
    made = executor(folder, parameters, python=config.launcher.python)
    submit_parts(made, shared, fresh)
    write_ledger(folder, shared, parts)
    for part in fresh:
        print(f"{part.job}  {part.title}  {part.folder}")
    print(folder, flush=True)
    return EXIT_DONE


def submit_parts(made: Any, shared: Sequence[str], parts: Sequence[Part]) -> list[Any]:
    """An array of jobs, one a part; their ids are kept in the parts."""
    jobs: list[Any] = made.map_array(Worker(), [list(shared)] * len(parts), parts) if parts else []
    for part, job in zip(parts, jobs, strict=True):
        part.job = str(job.job_id)
    return jobs
