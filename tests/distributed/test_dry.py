"""`bigtrain plan --dry`: every recipe's step on rank 0 of 1,024, and messages beside those that are planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.tasks import small_llama, tasks, write_rows

SIZES = [
    "recipe=pretrain/llama_8b", "model.vocab_size=256", "model.layers=8", "model.width=64", "model.heads=8",
    "model.mlp_width=192", "data.sequence_length=32", "trainer.micro_batch_size=1", "data.path=none", "precision=fp32",
    "trainer.activation_checkpointing=none",
]  # fmt: skip


def dry(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bigtrain", "plan", *words, "--dry", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["dry"]
    return found


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
def test_the_messages_are_those_that_are_planned(engine: str) -> None:
    found = dry(*SIZES, f"engine={engine}", "launcher.processes=8", "trainer.global_batch_size=16")
    assert found["micro_batches"] == 2
    close = 0.05 if engine == "fsdp" else 0.02  # its last unit is gathered once
    assert sum(found["sent"].values()) == pytest.approx(found["planned"], rel=close)
    whole = found["trained"]
    assert found["held"] == whole if engine == "ddp" else whole / 8 <= found["held"] < whole / 8 + 64


@pytest.mark.parametrize("recipe", ["bert_classification", "t5_translation", "vit", "llama_lora", "dpo"])
def test_a_recipe_takes_a_step_among_1024_ranks(recipe: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    words = tasks(tmp_path, small_llama(tmp_path))[recipe]
    words = ["trainer.global_batch_size=4096" if "global_batch" in word else word for word in words]
    found = dry(*words, "engine=zero2", "launcher.processes=8", "nodes=128")
    assert found["ranks"] == 1024 and found["micro_batches"] == 1
    assert 0 < found["held"] < 64 + found["trained"] / 100


def test_what_is_too_large_for_this_machine_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from bigtrain.cli import main

    assert main(["plan", "recipe=pretrain/llama_8b", "model=llama_70b", "hardware=h100x8", "nodes=16", "--dry"]) == 2
    shown, said = capsys.readouterr()
    assert "70.6 B parameters" in shown, "the plan itself is shown"
    assert "--dry builds the model here: 70,553,706,496 parameters" in said and "model.layers=2" in said
