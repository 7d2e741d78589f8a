"""metrics.jsonl and environment.json: what a resume keeps, what a kill may leave, what never goes in."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.telemetry.environment import command_line, describe, git_state, write_environment
from bigtrain.telemetry.metrics import JsonlLog, numbers, read_lines


def _train(run_dir: Path, first: int, last: int, resume_step: int | None) -> None:
    log = JsonlLog(run_dir, resume_step=resume_step)
    for step in range(first, last + 1):
        log.log(step, "train", {"loss": 9 / (step + 1), "tokens": step * 2048, "mfu": None})
        if step % 5 == 0:
            log.log(step, "eval", {"loss": 10 / (step + 1), "perplexity": math.exp(10 / (step + 1))})
    log.close()


def test_resumed_file_equals_the_straight_one(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    resumed.mkdir()
    _train(straight, 1, 30, None)
    _train(resumed, 1, 17, None)  # killed at 17, its checkpoint was at 10
    with (resumed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 18, "split": "tra')
    _train(resumed, 11, 30, 10)
    assert (resumed / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert [path.name for path in resumed.iterdir()] == ["metrics.jsonl"]


def test_a_start_from_nothing_forgets_everything(tmp_path: Path) -> None:
    _train(tmp_path, 0, 7, None)
    JsonlLog(tmp_path).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_only_a_whole_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train", "loss": 2.0}\n{"step": 2, "split": "train", "loss": 1.0}')
    assert [line["step"] for line in read_lines(path)] == [1]
    log = JsonlLog(tmp_path, resume_step=2)
    log.log(2, "train", {"loss": 1.5})
    log.close()
    assert [line["loss"] for line in read_lines(path)] == [2.0, 1.5]


def test_not_finite_numbers_are_valid_json_and_come_back(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path)
    log.log(3, "train", {"loss": math.nan, "grad_norm": math.inf, "lr": -math.inf, "mfu": None, "tokens": 12})
    log.close()
    (raw,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line["loss"] is None and line["not_finite"] == {"loss": "nan", "grad_norm": "inf", "lr": "-inf"}
    back = numbers(line)
    assert math.isnan(back.pop("loss"))  # type: ignore[arg-type]
    assert back == {"grad_norm": math.inf, "lr": -math.inf, "mfu": None, "tokens": 12}


def test_every_line_is_there_after_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from bigtrain.telemetry.metrics import JsonlLog\n"
        "log = JsonlLog(pathlib.Path(sys.argv[1]))\n"
        "for step in range(50): log.log(step, 'train', {'loss': 1.0})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert done.returncode == -9
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(50))


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = JsonlLog.__new__(JsonlLog)
    log.path = tmp_path / "metrics.jsonl"
    log._file = log.path.open("ab", buffering=0)
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device"):
        log.log(1, "train", {"loss": 1.0})
    log._file.close()


def test_missing_run_folder_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        JsonlLog(tmp_path / "absent")


def test_environment_has_what_the_contract_names_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    argv = ["bigtrain", "train", "recipe=quickstart", "tracker.wandb.api_key=hunter2", "trainer.max_tokens=5", "x=a b"]
    path = write_environment(tmp_path, argv)
    environment = json.loads(path.read_text())
    assert {"host", "platform", "python", "packages", "cpu", "devices", "git", "command_line", "time"} <= set(
        environment
    )
    assert environment["packages"]["torch"] and environment["cpu"]["cores"] >= 1
    assert environment["variables"].items() >= {
        "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "WARN", "SLURM_JOB_ID": "77",
    }.items()  # fmt: skip
    assert "hunter2" not in path.read_text()
    assert environment["command_line"].endswith("'tracker.wandb.api_key=***' trainer.max_tokens=5 'x=a b'")


def test_environment_keeps_the_earlier_sessions(tmp_path: Path) -> None:
    for word in ("one", "two", "three"):
        write_environment(tmp_path, ["bigtrain", word])
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["command_line"] == "bigtrain three"
    assert [session["command_line"] for session in environment["earlier"]] == ["bigtrain one", "bigtrain two"]


def test_git_state_tells_dirty_from_clean(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run(git + command, check=True)
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_describing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bigtrain.telemetry.environment import describe; import json; json.dumps(describe());"
        "assert not {'torch', 'numpy', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=os.environ | {"PYTHONNOUSERSITE": "1"})


def test_command_line_is_quoted_for_a_shell() -> None:
    assert command_line(["bigtrain", "run.dir=my runs"]) == "bigtrain 'run.dir=my runs'"
    assert "s3cret" not in command_line(["bigtrain", "hub.token=s3cret", "a.PASSWORD=s3cret", "api-key=s3cret"])
    assert describe(["x"])["command_line"] == "x"
