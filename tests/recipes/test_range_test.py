"""Real range tests: one to its end, and one whose loss is not a number any more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recipes.conftest import TINY, Run, metrics

QUICK = [*TINY, "model.layers=1", "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "debug=lr_range"]


def test_the_quickstart_says_a_rate_and_keeps_nothing(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    done = bigtrain("train", "recipe=quickstart", *QUICK, prepared, "launcher.cpu_processes=1", "run.dir=run")
    lines = metrics(tmp_path / "run")
    assert [lines[0]["lr"], lines[-1]["lr"]] == pytest.approx([1e-7, 1.0]) and len(lines) == 100
    assert not metrics(tmp_path / "run", "eval") and not (tmp_path / "run" / "checkpoints").exists()
    *_, said, last = done.stdout.splitlines()
    found = re.match(r"suggested optimizer\.lr=(\S+), where", said)
    assert last == "run" and found and 1e-4 < float(found[1]) < 1e-1, done.stdout
    assert said[:30] in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_an_explosion_is_the_end_and_no_error(clip: str, bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    words = ["optimizer=sgd", "optimizer.lr=1e30", "schedule.min_factor=1e-36", f"trainer.grad_clip={clip}"]
    done = bigtrain("train", "recipe=smoke", *QUICK, prepared, *words, "run.dir=run")
    lines = metrics(tmp_path / "run")
    assert 20 < len(lines) < 100 and (lines[-1]["loss"] is None or lines[-1]["loss"] > 4 * lines[0]["loss"])
    assert all(line["loss"] <= 4 * lines[0]["loss"] for line in lines[:-1])
    assert "suggested optimizer.lr=" in done.stdout.splitlines()[-2] and "stopped early" not in done.stdout
