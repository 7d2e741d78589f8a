"""Real sweeps: here, one run after another; and on the road that Slurm takes, through submitit's own local executor."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from bigtrain import sweep
from bigtrain.launchers.sweep import Part, read_ledger
from tests.recipes.conftest import TINY, Run, metrics
from tests.support import ran

QUICK = [*TINY, "trainer.log_every=1", "trainer.eval_every=null", "evaluation.report=false"]


def test_a_part_that_fails_stops_no_other_and_the_sweep_goes_on(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    words = ["recipe=smoke", *QUICK, prepared, "trainer.max_steps=3", "optimizer.lr=1e30,1e-3"]
    done = bigtrain("train", "-m", *words, "run.dir=sweep", code=1)
    bad, good = (tmp_path / part.folder for part in read_ledger(tmp_path / "sweep")[1])
    assert (bad.name, good.name) == ("0_optimizer.lr-1e-30", "1_optimizer.lr-0.001")
    assert [line["step"] for line in metrics(good)] == [1, 2, 3]
    assert json.loads((bad / "outcome.json").read_text()) == {"code": 1}
    table = [line.split() for line in done.stdout.splitlines() if "optimizer.lr=" in line][-2:]
    assert [row[2] for row in table] == ["failed", "done"]
    assert done.stdout.strip().splitlines()[-1] == "sweep"

    again = bigtrain("train", "--multirun", "run.dir=sweep", "trainer.max_steps=1")
    assert "1 of 2 are done already" in again.stdout and "[2/2]" not in again.stdout
    assert [line["step"] for line in metrics(good)] == [1, 2, 3]
    assert json.loads((bad / "outcome.json").read_text()) == {"code": 0}
    ran("sweep (-m)", "real run")


def test_a_preempted_job_of_a_sweep_queues_itself_again_and_resumes(
    prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitit's local executor starts a requeued job again, as Slurm does."""
    monkeypatch.chdir(tmp_path)
    small = ["model.layers=1", "trainer.global_batch_size=1", "trainer.micro_batch_size=1", "checkpoint.every=null"]
    shared = ["recipe=smoke", *QUICK, prepared, *small]
    ends = {"trainer.max_steps=40": 40, "trainer.max_steps=2": 2}
    parts = [Part(n, [word], f"sweep/{n}") for n, word in enumerate(ends)]
    made = sweep.executor(Path("sweep"), {"timeout_min": 20}, cluster="local")
    jobs = sweep.submit_parts(made, shared, parts)
    try:
        assert [part.job for part in parts] == [str(job.job_id) for job in jobs]
        file, deadline = Path(parts[0].folder) / "metrics.jsonl", time.monotonic() + 200
        while not (file.exists() and '"train"' in file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        (task,) = Path(f"/proc/{jobs[0].job_id}/task/{jobs[0].job_id}/children").read_text().split()
        os.kill(int(task), signal.SIGUSR1)  # what submitit's controller sends before the time limit
        assert [job.result() for job in jobs] == [0, 0]
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
    assert "Requeued job" in jobs[0].stderr() + jobs[0].stdout()
    for part, steps in zip(parts, ends.values(), strict=True):
        assert part.outcome() == 0
        assert [line["step"] for line in metrics(Path(part.folder))] == list(range(1, steps + 1))
    checkpoints = sorted(folder.name for folder in Path(parts[0].folder, "checkpoints").iterdir())
    assert len(checkpoints) == 2 and checkpoints[-1] == "step_00000040"  # the other: where it was stopped
    ran("sweep (-m)", "stopped, goes on")
