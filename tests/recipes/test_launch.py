"""The bare worker under every launcher that a user's cluster may have, and the whole quickstart at a small size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.conftest import ENVIRONMENT, TINY, Run, metrics

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
