"""A sweep as an array of jobs through submitit, under a real Slurm: one is warned, queues itself again and resumes."""

from __future__ import annotations

from pathlib import Path

from bigtrain.launchers.sweep import read_ledger
from tests.cluster.conftest import STEPS, Job
from tests.cluster.lab import wait_for
from tests.cluster.slurm import SlurmLab

ONE_RANK = ["launcher=slurm", "launcher.nodes=1", "launcher.processes=1", "launcher.time=60", "launcher.warn_s=20"]


def test_a_sweep_on_slurm(slurm: SlurmLab, data: str, tmp_path: Path) -> None:
    whole = Job(tmp_path / "sweep", data)
    words = [*whole.words, *ONE_RANK, "seed=1,2", "launcher.sweep_parallel=2"]
    done = slurm.run("bigtrain", "train", "-m", *words, folder=tmp_path, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == str(whole.folder)
    parts = read_ledger(whole.folder)[1]
    jobs = [Job(Path(part.folder), data) for part in parts]

    def said() -> str:
        logs = sorted((whole.folder / "submitit").glob("*_log.out"))
        return "\n".join(f"{log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    wait_for("both parts to train", 240, lambda: all(job.step() > 2 for job in jobs), lambda: None, said)
    slurm.run("scancel", "--signal=USR1", str(parts[0].job), folder=tmp_path, timeout=60)
    wait_for("the first to be queued again", 120,
             lambda: int(slurm.job(str(parts[0].job)).get("Restarts", 0)) == 1, lambda: None, said)  # fmt: skip
    again = slurm.run("bigtrain", "train", "-m", f"run.dir={whole.folder}", folder=tmp_path, timeout=150)
    assert again.stdout.count("in the queue already") == 2, again.stdout + again.stderr
    whole.order("go")
    wait_for("the end of both", 240, lambda: all(part.outcome() == 0 for part in parts), lambda: None, said)
    for job in jobs:
        assert [line["step"] for line in job.lines() if line["split"] == "train"] == list(range(1, STEPS + 1))
