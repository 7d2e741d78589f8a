"""Killed and resumed is bit-identical to never killed: weights, optimizer state, losses, order, with dropout on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bigtrain.errors import EXIT_STOPPED
from tests.recipes.conftest import ENVIRONMENT, TINY, Run, metrics
from tests.support import ran

STEPS = 14
BASE = [
    "recipe=quickstart",
    *TINY,
    "model.dropout=0.1",
    f"trainer.max_steps={STEPS}",
    "trainer.global_batch_size=8",
    "trainer.micro_batch_size=2",
    "trainer.log_every=1",
    "trainer.eval_every=null",
    "trainer.eval_batches=2",
    "schedule.warmup_steps=3",
    "checkpoint.every=3",
    "checkpoint.keep_last=null",
    "evaluation.generate=null",
    "evaluation.export=false",
    "evaluation.report=false",
]
WITHOUT_TIME = ("step", "loss", "lr", "grad_norm", "tokens")


def start_and_kill(cwd: Path, words: list[str], run_dir: Path, after: int) -> None:
    """Start a run and SIGKILL the command that the user typed once `after` steps are logged; its ranks die with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtrain", *words],
        cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > after):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def checkpoints_equal(one: Path, other: Path) -> None:
    """Every tensor of every file of the last checkpoint, to the bit; and the loop's own state."""
    for path in sorted(one.glob("*.safetensors")):
        mine, theirs = load_file(path), load_file(other / path.name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert tensor.equal(theirs[key]), f"{path.name}: {key} differs"
    states = [json.loads((folder / "manifest.json").read_text())["state"] for folder in (one, other)]
    assert states[0] == states[1]


@pytest.mark.parametrize("engine", ["local", "ddp", "fsdp", "zero1", "zero2", "zero3", "zero2_offload"])
def test_killed_and_resumed_equals_never_killed(engine: str, bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    processes = 1 if engine == "local" else 2
    words = ["train", *BASE, prepared, f"engine={engine}", f"launcher.processes={processes}"]
    bigtrain(*words, "run.dir=straight")
    kill_after = random.randint(4, STEPS - 2)
    start_and_kill(tmp_path, [*words, "run.dir=killed"], tmp_path / "killed", kill_after)
    bigtrain(*words, "run.dir=killed")

    last = f"checkpoints/step_{STEPS:08d}"
    checkpoints_equal(tmp_path / "straight" / last, tmp_path / "killed" / last)
    straight, killed = metrics(tmp_path / "straight"), metrics(tmp_path / "killed")
    assert [line["step"] for line in straight] == list(range(1, STEPS + 1))
    for a, b in zip(straight, killed, strict=True):
        assert {key: a[key] for key in WITHOUT_TIME} == {key: b[key] for key in WITHOUT_TIME}, (
            f"killed after {kill_after}"
        )
    ran(engine, "killed, resumed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_and_exits_75(number: int, bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    words = ["train", *BASE, prepared, "trainer.max_steps=100000", "checkpoint.every=null", "run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtrain", *words], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED
    assert out.splitlines()[-1] == "run"
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    stopped_at = int(checkpoint.name.removeprefix("step_"))
    done = bigtrain("train", "run.dir=run", f"trainer.max_steps={stopped_at + 2}")
    assert f"going on from run/checkpoints/{checkpoint.name}" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, stopped_at + 3))
    ran("local", "real run")
    ran("local", "stopped, goes on")


def test_a_flipped_byte_is_named_and_the_checkpoint_before_it_used(
    bigtrain: Run, prepared: str, tmp_path: Path
) -> None:
    words = ["train", *BASE, prepared, "engine=ddp", "launcher.processes=1", "run.dir=run"]
    bigtrain(*words, "trainer.max_steps=6")
    file = tmp_path / "run/checkpoints/step_00000006/rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    done = bigtrain(*words, "trainer.max_steps=8")
    assert "run/checkpoints/step_00000006: rank_00000.safetensors" in done.stdout
    assert "going on from run/checkpoints/step_00000003" in done.stdout


def test_a_second_process_in_the_same_run_folder_is_refused(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    words = ["train", *BASE, prepared, "trainer.max_steps=100000", "engine=ddp", "launcher.processes=1", "run.dir=run"]
    first = subprocess.Popen([sys.executable, "-m", "bigtrain", *words], cwd=tmp_path, env=ENVIRONMENT)
    log = tmp_path / "run" / "metrics.jsonl"
    try:
        while not (log.exists() and log.read_text()):
            assert first.poll() is None
            time.sleep(0.02)
        second = bigtrain(*words, code=2)
        assert "is being trained by process" in second.stderr and "Traceback" not in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == EXIT_STOPPED


def test_another_engine_goes_on_with_the_run_folder_alone(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    words = ["train", *BASE, prepared, "engine=ddp", "launcher.processes=1", "run.dir=run"]
    bigtrain(*words, "trainer.max_steps=4")
    done = bigtrain("train", "run.dir=run", "engine=fsdp", "launcher.processes=2", "trainer.max_steps=5")
    changed = [line for line in done.stdout.splitlines() if line.startswith("changed since the run began: engine")]
    assert changed == ["changed since the run began: engine.name: ddp -> fsdp"]
    assert "was written by 1 ranks and read by 2: the random states of the ranks (dropout) start anew" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
