"""The bare worker under every launcher that a user's cluster may have, and the whole quickstart at a small size."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigtrain.errors import EXIT_STOPPED
from tests.recipes.conftest import ENVIRONMENT, TINY, Run, metrics
from tests.support import ran

QUICK = [*TINY, "trainer.max_steps=4", "checkpoint.every=2", "trainer.log_every=1", "trainer.eval_every=null"]


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().splitlines()[-1]


def test_plain_python_is_one_process(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    bigtrain("recipe=smoke", *QUICK, prepared, "run.dir=run", "--local_rank=0", module="bigtrain.train")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "-m", "bigtrain.train"],
        ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29731", "--module", "bigtrain.train"],
    ],
    ids=["torchrun", "deepspeed"],
)
def test_two_ranks_share_one_run_folder(launcher: list[str], prepared: str, tmp_path: Path) -> None:
    if "--master-port" in launcher:
        launcher = [*launcher[:2], "--standalone", *launcher[2:4], *launcher[6:]]
    command = [sys.executable, *launcher, "recipe=smoke", *QUICK, prepared]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    (run,) = (tmp_path / "runs" / "smoke").iterdir()
    assert {path.name for path in (run / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}
    manifest = json.loads((run / "checkpoints/step_00000004/manifest.json").read_text())
    assert manifest["world_size"] == 2
    assert "2 ranks x 4 samples x 1 micro-batches" in done.stdout
    assert f"\nruns/smoke/{run.name}\n" in done.stdout


@pytest.mark.parametrize("launcher", ["deepspeed", "horovod"])
def test_bigtrain_starts_it_with_the_launcher(launcher: str, bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    if launcher == "horovod" and importlib.util.find_spec("horovod") is None:
        pytest.skip("horovod is not installed (make horovod)")
    words = ["train", "recipe=smoke", *QUICK, prepared, "run.dir=run", f"launcher={launcher}", "launcher.processes=2"]
    done = bigtrain(*words)
    assert last_line(done) == "run" and done.stdout.count("train  step 4/4") == 1
    manifest = json.loads((tmp_path / "run/checkpoints/step_00000004/manifest.json").read_text())
    assert manifest["world_size"] == 2
    left = {path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")}
    assert left <= {".lock"}, left
    ran(launcher, "real run")


def test_torchrun_is_stopped_and_goes_on(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    """torchrun passes no SIGUSR1 on and makes every exit code a 1: the command says 75 all the same."""
    words = ["train", "recipe=smoke", *QUICK, prepared, "run.dir=run", "launcher=torchrun", "launcher.processes=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtrain", *words, "trainer.max_steps=100000", "checkpoint.every=null"],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=100)
    assert process.returncode == EXIT_STOPPED, err
    assert out.splitlines()[-1] == "run" and "Traceback" not in err and "ChildFailedError" not in err
    stopped_at = metrics(tmp_path / "run")[-1]["step"]
    done = bigtrain("train", "run.dir=run", f"trainer.max_steps={stopped_at + 2}")
    assert f"going on from run/checkpoints/step_{stopped_at:08d}" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, stopped_at + 3))
    ran("torchrun", "real run")
    ran("torchrun", "stopped, goes on")


def test_a_requeued_worker_goes_on_from_the_run_folder_alone(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    bigtrain("train", "recipe=smoke", *QUICK, prepared, "run.dir=run", "trainer.max_steps=2")
    assert not (tmp_path / "run/.pending.yaml").exists()
    done = bigtrain("--run-dir", "run", module="bigtrain.train")
    assert "going on from run/checkpoints/step_00000002" in done.stdout


def test_wrong_data_under_torchrun_is_said_once(bigtrain: Run, tmp_path: Path) -> None:
    words = ["train", "recipe=smoke", *QUICK, "launcher=torchrun", "launcher.processes=2", "run.dir=run"]
    done = bigtrain(*words, "data.path=nonsuch.txt", code=2)
    assert done.stderr.count("bigtrain: ") == 1 and "nonsuch.txt" in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_runs_print_and_leave_nothing(bigtrain: Run, tmp_path: Path) -> None:
    done = bigtrain("submit", "recipe=smoke", "launcher=slurm", "launcher.nodes=2", "--dry-run")
    assert done.stdout.startswith("# runs/smoke/") and "\n#SBATCH --nodes=2\n" in done.stdout
    assert re.search(r"\nsbatch runs/smoke/[0-9-]+/job.sbatch\n$", done.stdout)
    done = bigtrain("submit", "recipe=smoke", "launcher=torchrun", "--dry-run")
    assert "-m torch.distributed.run --nnodes 1" in done.stdout
    assert not list(tmp_path.iterdir())


def test_no_slurm_and_no_answer_are_said_before_anything_is_made(bigtrain: Run, tmp_path: Path) -> None:
    done = bigtrain("submit", "recipe=smoke", "launcher=slurm", code=2, PATH="/nowhere")
    assert "there is no sbatch on this machine (looked in /nowhere)" in done.stderr
    assert "launcher=local" in done.stderr and "launch/slurm.sbatch" in done.stderr
    done = bigtrain("submit", "recipe=smoke", "launcher=torchrun", code=2)
    assert "bigtrain train … launcher=torchrun" in done.stderr
    words = ["launcher=ssh", "launcher.hosts=[localhost.invalid,127.0.0.1]", "launcher.ssh_port=9"]
    done = bigtrain("train", "recipe=smoke", *words, code=2)
    assert "localhost.invalid: " in done.stderr and "127.0.0.1: " in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["launcher=deepspeed", f"launcher.master_port={port}"]
        done = bigtrain("train", "recipe=smoke", *words, code=2)
    assert f"launcher.master_port={port} is taken by process {os.getpid()}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_training_outlives_the_reader_of_its_output(prepared: str, tmp_path: Path) -> None:
    words = ["train", "recipe=smoke", *QUICK, prepared, "run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtrain", *words], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_early_stopping_says_so_and_stays_stopped(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    stop = ["trainer.eval_every=1", "trainer.eval_batches=1", "trainer.early_stopping={patience: 2, min_delta: 9.0}"]
    done = bigtrain("train", "recipe=smoke", *QUICK, prepared, "trainer.eval_every=1", *stop, "run.dir=run")
    assert "stopped early: 2 evaluations without a better" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    bigtrain("train", "run.dir=run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_wrong_input_ends_every_launcher_with_exit_2(bigtrain: Run) -> None:
    done = bigtrain("recipe=smoke", "trainer.max_stepz=1", code=2, module="bigtrain.train")
    assert done.stderr.count("bigtrain:") == 1 and "Traceback" not in done.stderr


def test_the_quickstart_from_text_to_export(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    done = bigtrain("train", "recipe=quickstart", *QUICK, prepared, "trainer.device=cpu")
    run = tmp_path / last_line(done)
    assert re.fullmatch(r"runs/quickstart/\d{8}-\d{6}", last_line(done))
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "report.html", "sample.txt", "logs/rank_1.log"):
        assert (run / name).stat().st_size or name.startswith("logs"), name
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_00000002", "step_00000004"}
    train, held_out = metrics(run), metrics(run, "eval")
    wanted = {"step", "split", "loss", "tokens", "lr", "grad_norm", "step_time_s", "tokens_per_s", "data_wait_s",
              "memory_peak_bytes", "mfu"}  # fmt: skip
    assert all(wanted <= line.keys() for line in train) and train[0]["mfu"] is None
    assert all({"step", "split", "loss", "tokens", "perplexity"} <= line.keys() for line in held_out)
    assert train[-1]["tokens"] == 4 * 16 * 32
    assert not (run / ".pending.yaml").exists()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    assert len(tokenizer) <= model.config.vocab_size

    again = bigtrain("train", f"run.dir={last_line(done)}")  # nothing left to do: says so, and changes nothing
    assert metrics(run) == train and "going on from" in again.stdout


def test_data_errors_reach_the_user_once_from_two_ranks(bigtrain: Run, tmp_path: Path) -> None:
    done = bigtrain("train", "recipe=quickstart", *QUICK, "data.path=nonsuch.txt", code=2)
    assert "nonsuch.txt" in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("bigtrain:") == 1


@pytest.mark.parametrize("word", ["optimizer.betas=[2,3]", "schedule.warmup_steps=-5"])
def test_bad_values_are_refused_before_the_data_are_prepared(word: str, bigtrain: Run, tmp_path: Path) -> None:
    done = bigtrain("train", "recipe=smoke", *QUICK, word, "run.dir=run", code=2)
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_model_with_fewer_tokens_than_the_text_is_refused(bigtrain: Run) -> None:
    done = bigtrain("train", "recipe=smoke", *QUICK, "model.vocab_size=5", "run.dir=run", code=2)
    assert "the model has 5 token embeddings and the data's tokenizer" in done.stderr


def test_an_unwritable_run_folder_is_refused(bigtrain: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = bigtrain("train", "recipe=smoke", *QUICK, "run.dir=file/run", code=2)
    assert "file/run" in done.stderr and "Traceback" not in done.stderr


def test_a_gpu_asked_for_where_there_is_none(bigtrain: Run) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = bigtrain("train", "recipe=smoke", "trainer.device=cuda", code=2)
    assert "no GPU" in done.stderr
    done = bigtrain("recipe=smoke", "trainer.device=cuda", code=2, module="bigtrain.train")
    assert "no GPU" in done.stderr


def test_a_failed_change_leaves_the_run_as_it_was(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    bigtrain("train", "recipe=smoke", *QUICK, prepared, "run.dir=run")
    before = (tmp_path / "run/config.yaml").read_text()
    done = bigtrain("train", "run.dir=run", "model.width=64", "trainer.max_steps=6", code=2)
    assert "another model" in done.stderr
    assert (tmp_path / "run/config.yaml").read_text() == before
    done = bigtrain("train", "run.dir=run", "data.vocab_size=600", "trainer.max_steps=6", code=2)
    assert "other data" in done.stderr
    bigtrain("train", "run.dir=run", "trainer.max_steps=6")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_rank_that_still_waits_for_the_others_stops_when_asked(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-m", "bigtrain.train", "recipe=smoke", "trainer.device=cpu"]
    rank = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT | place)
    try:
        while True:  # until it listens for rank 1, in C, where no handler of Python's runs
            assert rank.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        rank.send_signal(signal.SIGUSR1)
        assert rank.wait(60) == EXIT_STOPPED
    finally:
        rank.kill()
