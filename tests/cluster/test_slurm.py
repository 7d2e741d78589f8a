"""Slurm with two nodes: across both, preempted, warned, a node's power cut; the losses are those of an unbroken run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import STEPS, Job
from tests.cluster.lab import wait_for
from tests.cluster.slurm import SlurmLab

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs are submitted from: a project with its .venv."""
    folder = tmp_path_factory.mktemp("project")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def sbatch(lab: SlurmLab, job: Job, *options: str) -> str:
    """`launch/slurm.sbatch`, with two ranks without GPUs; the number of the job."""
    small = ["--parsable", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10"]
    done = lab.run("sbatch", *small, *options, str(LAUNCH / "slurm.sbatch"), *job.words, folder=job.folder.parent,
                   RECIPE="smoke", RUN_DIR=str(job.folder))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ended(lab: SlurmLab, number: str) -> bool:
    return lab.job(number)["JobState"] not in (
        "PENDING",
        "RUNNING",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "PREEMPTED",
    )


@pytest.mark.timeout(300)
def test_preempted_is_unbroken(slurm: SlurmLab, folder: Path, data: str) -> None:
    straight, preempted = Job(folder / "straight", data, go=True), Job(folder / "preempted", data)
    first = sbatch(slurm, straight, "--partition=high")
    second = sbatch(slurm, preempted, "--partition=lab")
    took = wait_for("first steps", 60, lambda: preempted.step() > 30)
    print("first steps", took)
    done = slurm.run(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--ntasks-per-node=3", "--wrap=true", folder=folder
    )
    assert done.returncode == 0, done.stderr
    took = wait_for("requeued", 60, lambda: slurm.job(second).get("Restarts") == "1")
    print("requeued", took, preempted.step(), preempted.saved())
    preempted.order("go")
    took = wait_for("end", 120, lambda: ended(slurm, second) and ended(slurm, first))
    print("end", took, slurm.job(second), slurm.job(first))
    assert straight.lines() == preempted.lines()
    assert [line["step"] for line in straight.lines() if line["split"] == "train"] == list(range(1, STEPS + 1))
