"""Slurm with two nodes: across both, preempted, warned, a node lost; the losses are those of an unbroken run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import STEPS, Job
from tests.cluster.lab import wait_for
from tests.cluster.slurm import SlurmLab
from tests.support import ran

LAUNCH = Path(__file__).parents[2] / "launch"
NODES = ["launcher=slurm", "launcher.nodes=2", "launcher.processes=1"]
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")


class SlurmRun:
    """A job in the queue."""

    def __init__(self, lab: SlurmLab, job: Job, number: str, log: Path):
        self.lab, self.job, self.number, self.log = lab, job, number, log

    def state(self) -> str:
        """Slurm's word for it."""
        return self.lab.job(self.number).get("JobState", "")

    def restarts(self) -> int:
        """How often it was queued again."""
        return int(self.lab.job(self.number).get("Restarts", 0))

    def said(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace") if self.log.exists() else "(it has written nothing)"

    def _over(self, *but: str) -> str | None:
        state = self.state()
        return f"{state}\n{self.said()[-4000:]}" if state in OVER and state not in but else None

    def wait_until_trains(self) -> None:
        """Its ranks are in the loop and have a checkpoint behind them."""
        wait_for(
            f"{self.job.folder.name} to train",
            180,
            lambda: self.job.saved() and self.job.step() > 10,
            self._over,
            self.said,
        )

    def wait_until_done(self) -> None:
        """To its last step, over any number of restarts."""
        wait_for(f"the end of {self.job.folder.name}", 180, lambda: self.state() == "COMPLETED",
                 lambda: self._over("COMPLETED"), self.said)  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where jobs are submitted from: a project with its .venv."""
    folder = tmp_path_factory.mktemp("project")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def submit(lab: SlurmLab, job: Job, *words: str) -> SlurmRun:
    """`bigtrain submit`, with two ranks."""
    done = lab.run("bigtrain", "submit", *job.words, *NODES, *words, folder=job.folder.parent, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(job.folder)
    found = re.search(r"Submitted batch job (\d+)", done.stdout)
    assert found, done.stdout
    return SlurmRun(lab, job, found[1], job.folder / f"logs/slurm-{found[1]}.out")


def sbatch(lab: SlurmLab, job: Job, *options: str) -> SlurmRun:
    """`launch/slurm.sbatch` as it lies there, with options that win over those in it."""
    words = ["sbatch", "--parsable", "--ntasks-per-node=1", "--cpus-per-task=1", *options, str(LAUNCH / "slurm.sbatch")]
    done = lab.run(*words, *job.words, folder=job.folder.parent, RECIPE="smoke", RUN_DIR=str(job.folder))
    assert done.returncode == 0, done.stderr
    number = done.stdout.strip()
    return SlurmRun(lab, job, number, job.folder.parent / f"bigtrain-{number}.out")


@pytest.fixture(scope="module")
def straight(project: Path, data: str) -> Job:
    """The run that nothing ever happens to."""
    return Job(project / "straight", data, go=True)


def assert_as_unbroken(run: SlurmRun, straight: Job) -> None:
    """Step by step, to the last digit."""
    assert run.job.lines() == straight.lines()
    assert [line["step"] for line in straight.lines() if line["split"] == "train"] == list(range(1, STEPS + 1))


@pytest.mark.timeout(400)
def test_preempted_and_warned_runs_are_as_the_unbroken_one(
    slurm: SlurmLab, project: Path, straight: Job, data: str
) -> None:
    warned = submit(slurm, Job(project / "warned", data), "launcher.partition=high", "launcher.time=2",
                    "launcher.warn_s=60", "launcher.start=deepspeed", "launcher.preflight=false")  # fmt: skip
    preempted = submit(slurm, Job(project / "preempted", data), "launcher.partition=lab", "launcher.gpus=1",
                       "launcher.time=10")  # fmt: skip
    preempted.wait_until_trains()
    unbroken = sbatch(slurm, straight, "--partition=high", "--gpus-per-node=2", "--time=10")  # wants preempted's GPUs
    wait_for("the preempted job to be queued again", 60, lambda: preempted.restarts() == 1)
    stopped_at = preempted.job.step()
    assert preempted.job.saved() == stopped_at < STEPS, "no checkpoint of the step at which it was stopped"
    preempted.job.order("go")
    unbroken.wait_until_done()
    assert "2 ranks" in unbroken.said() and slurm.job(unbroken.number)["NodeList"] == "n[1-2]"

    preempted.wait_until_done()
    assert preempted.restarts() == 1
    assert f"step_{stopped_at:08d}" in preempted.said(), "it did not go on from that checkpoint"
    assert_as_unbroken(preempted, straight)

    wait_for("the warned job to be queued again", 120, lambda: warned.restarts() > 0)
    assert "TIME LIMIT" not in warned.said()
    warned.job.order("go")
    warned.wait_until_done()
    assert_as_unbroken(warned, straight)
    for column in ("real run", "2 hosts", "stopped, goes on"):
        ran("slurm", column)


@pytest.mark.timeout(400)
def test_a_node_without_power_is_one_restart(slurm: SlurmLab, project: Path, straight: Job, data: str) -> None:
    runs = [
        submit(slurm, Job(project / f"lost-under-{start}", data), f"launcher.start={start}", "launcher.preflight=false")
        for start in ("srun", "torchrun")
    ]
    for run in runs:
        run.wait_until_trains()
    slurm.crash("n2")
    took = wait_for("the jobs to be queued again", 90, lambda: all(run.restarts() == 1 for run in runs))
    print(f"queued again {took:.1f} s after the power cut")
    for run in runs:
        run.job.order("go")
    slurm.boot("n2")
    if not straight.lines():  # this test alone was asked for
        sbatch(slurm, straight, "--gpus-per-node=0", "--time=10").wait_until_done()
    for run in runs:
        run.wait_until_done()
        assert run.restarts() == 1
        assert_as_unbroken(run, straight)
    ran("slurm", "lost host")


def test_a_partition_that_does_not_exist(slurm: SlurmLab, project: Path, data: str) -> None:
    job = Job(project / "nowhere", data)
    done = slurm.run("bigtrain", "submit", *job.words, *NODES, "launcher.partition=hihg", folder=project)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hihg" in done.stderr and "high" in done.stderr
    assert not job.folder.exists()


def test_no_sbatch(slurm: SlurmLab, project: Path, data: str) -> None:
    job = Job(project / "no-slurm", data)
    words = ["env", "PATH=/nonexistent", sys.executable, "-m", "bigtrain", "submit", *job.words, *NODES]
    done = slurm.run(*words, folder=project)
    assert done.returncode == 2 and "sbatch" in done.stderr and "Traceback" not in done.stderr
    assert not job.folder.exists()
