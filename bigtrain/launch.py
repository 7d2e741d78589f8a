"""`bigtrain train` and `bigtrain submit`: compose once, look at the machines, write the run folder, start."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bigtrain.checkpoint.folder import lock
from bigtrain.config.components import shipped
from bigtrain.config.compose import PENDING, Composed, compose, freeze, targets
from bigtrain.config.hosts import listed_hosts
from bigtrain.config.launchers import DeepSpeed, Kubernetes, Slurm, Torchrun
from bigtrain.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError
from bigtrain.launchers import plan, preflight, report
from bigtrain.launchers.base import Job, Plan
from bigtrain.launchers.local import free_port
from bigtrain.launchers.supervise import run
from bigtrain.placement import SPECIAL_STEPS
from bigtrain.plan.choose import decided


def train(argv: Sequence[str]) -> int:
    """Compose, freeze the configuration into the run folder, start the ranks."""
    argv = decided(argv)
    composed = compose(argv)
    if composed.config.evaluation.folds is not None:
        from bigtrain import folds

        return folds.train(argv, composed.config)
    job = _job(composed, argv)
    if isinstance(composed.config.launcher, Torchrun) and (composed.config.launcher.nodes or 1) > 1:
        _one_folder(composed.config.launcher, argv)
    launcher = composed.config.launcher
    if isinstance(launcher, Kubernetes) or (isinstance(launcher, Slurm) and not in_allocation()):
        return _hand_over(composed, job)
    for note in (*composed.notes, *_foreign(job.run_dir)):
        print(note)
    job = preflight.look(job)
    steps = plan(job)
    new = not job.run_dir.exists()
    if getattr(composed.config.launcher, "node_rank", 0) == 0:  # else the first node does it
        _made(composed, job, steps, new)
    with report.in_charge(job.run_dir):
        code = run(steps.processes, job.run_dir)
    if (composed.config.launcher.nodes or 1) == 1 or job.hosts:  # else the other nodes' commands read it too
        report.clear(job.run_dir)
    if code == EXIT_USER and new and not (job.run_dir / "config.yaml").exists():
        shutil.rmtree(job.run_dir, ignore_errors=True)  # no rank has taken the run up: leave nothing half-made
    else:
        if code == EXIT_STOPPED and not (job.run_dir / "config.yaml").exists():
            print("bigtrain: stopped before it began: there is nothing to go on with; start it again", file=sys.stderr)
        with contextlib.suppress(BrokenPipeError):
            print(job.run_dir, flush=True)
    return code


def submit(argv: Sequence[str]) -> int:
    """Render what a scheduler is to be given, check it, hand it over; `--dry-run` prints it."""
    words = decided([word for word in argv if word != "--dry-run"])
    composed = compose(words)
    job = _job(composed, words)
    if "--dry-run" in argv:
        steps = plan(job)
        if isinstance(composed.config.launcher, Kubernetes):  # as `kubectl apply -f -` reads it
            steps = replace(steps, processes=[])
        print(shown(steps))
        return EXIT_DONE
    name = composed.config.launcher.name
    if not plan(job).submits:
        raise UserError(f"launcher={name} starts processes itself: `bigtrain train … launcher={name}`.")
    return _hand_over(composed, job)


def _hand_over(composed: Composed, job: Job) -> int:
    for note in composed.notes:
        print(note)
    preflight.look(job)
    steps = plan(job)
    new = not job.run_dir.exists()
    _made(composed, job, steps, new)
    if run(steps.processes):
        _unmade(job, new)
        raise UserError("the scheduler has refused the job, as it says above; nothing is queued.")
    print(job.run_dir, flush=True)
    return EXIT_DONE


def _made(composed: Composed, job: Job, steps: Plan, new: bool) -> None:
    """The run folder, as the other machines see it too; a new one is not left behind where they do not."""
    _write(composed, job, steps)
    try:
        preflight.look_at_folder(job)
    except UserError:
        _unmade(job, new)
        raise


def _foreign(run_dir: Path) -> list[str]:
    """A note where the run folder is none yet, and holds what is not a run's."""
    if not run_dir.is_dir() or any((run_dir / name).exists() for name in ("config.yaml", PENDING)):
        return []
    found = sorted(entry.name for entry in run_dir.iterdir() if entry.name not in ("logs", ".lock"))
    some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    said = f"note: run.dir={run_dir} is no run folder and holds {some}: the run's files go between them"
    return [said] if found else []


def _unmade(job: Job, new: bool) -> None:
    if new:
        shutil.rmtree(job.run_dir, ignore_errors=True)


def _write(composed: Composed, job: Job, steps: Plan) -> None:
    with lock(job.run_dir):  # says now, and not from a worker, that the folder is taken or cannot be written
        freeze(composed.raw, job.run_dir / PENDING)
        report.clear(job.run_dir)
        (job.run_dir / "logs").mkdir(exist_ok=True)  # Slurm ends a job at once whose log it cannot open
        for path, text in steps.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _job(composed: Composed, words: Sequence[str]) -> Job:
    launcher = composed.config.launcher
    hosts = listed_hosts(launcher)
    return Job(
        composed.config,
        words=tuple(words),
        trusted=tuple(target for target in targets(composed.config) if not shipped(target)),
        hosts=tuple(hosts),
        cwd=Path.cwd(),
        python=sys.executable,
        port=getattr(launcher, "master_port", None) or free_port(),
        cores=os.cpu_count() or 1,
        env=dict(os.environ),
        deepspeed_env=_deepspeed_env() if isinstance(launcher, DeepSpeed) else "",
    )


def _deepspeed_env() -> str:
    """The user's own files, in the order in which DeepSpeed reads them."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    files = dict.fromkeys(folder / name for folder in (Path.home(), Path.cwd()))
    lines = [line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
    return "".join(f"{line}\n" for line in lines if "=" in line)


def _one_folder(launcher: Torchrun, argv: Sequence[str]) -> None:
    """Several commands, one run: each would make a folder of its own."""
    if not any(word.lstrip("+").startswith("run.dir=") for word in argv):
        raise UserError(
            f"launcher.nodes={launcher.nodes} with torchrun is one command on each node: give all of them the same "
            "run.dir=DIR, on a file system that they share."
        )


def in_allocation() -> bool:
    """Inside a Slurm job, but not in one of the ranks that srun has started.

    Raises:
        UserError: in a rank.
    """
    if "SLURM_STEP_ID" in os.environ and int(os.environ["SLURM_STEP_ID"]) < SPECIAL_STEPS:
        raise UserError(
            "launcher=slurm runs srun itself: start it once, or the worker: srun python -m bigtrain.train …"
        )
    return "SLURM_JOB_ID" in os.environ


def shown(steps: Plan) -> str:
    """A plan as text that a shell can read."""
    parts = [f"# {path}\n{text.rstrip()}\n" for path, text in steps.files.items()]
    for process in steps.processes:
        words = [f"{key}={shlex.quote(value)}" for key, value in process.environment.items()]
        output = f" >>{shlex.quote(str(process.output))} 2>&1" if process.output else ""
        parts.append(" ".join([*words, shlex.join(process.command)]) + output)
    return "\n".join(parts)
