"""Plan against actual: what a run writes, and what the next plan quotes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigtrain.cli import main
from bigtrain.config.compose import compose
from bigtrain.plan.past import compare, known, quote
from bigtrain.plan.plan import plan
from bigtrain.plan.subject import Cluster, shape_of

WORDS = ["recipe=pretrain/gpt2_124m", "data.path=x", "hardware=h100x8", "engine=zero1"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def trained(run: Path, step_s: float, peak: int) -> None:
    """A run's metrics: the first step is slow, as it warms up."""
    lines = [
        {"step": step, "split": "train", "step_time_s": seconds, "memory_peak_bytes": peak, "loss": 1.0, "tokens": 1}
        for step, seconds in ((1, 50 * step_s), (10, step_s), (20, step_s))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_writes_it_and_the_next_plan_quotes_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose([*WORDS, f"run.dir={run}"]).config
    shape, found = shape_of(config), plan(config)
    assert found.pace is not None
    trained(run, found.pace.step * 1.1, round(found.memory.total * 0.98))
    assert quote(config.hardware) is None
    told = compare(config, shape, Cluster(1, 8), "NVIDIA H100 80GB HBM3")
    assert told is not None and told == json.loads((run / "plan.json").read_text())
    assert told["error"] == pytest.approx({"step_s": 0.1, "memory_bytes": -0.02}, abs=1e-6)
    with (run.parent / "cache" / "bigtrain" / "plans.jsonl").open("a") as past:
        past.write('{"hardware": "NVIDIA H1')  # a writer that was killed
    assert main(["plan", *WORDS]) == 0
    said = capsys.readouterr().out
    assert "past runs on NVIDIA H100 80GB HBM3, median: steps took +10.0% of the plan (1); memory was -2.0%" in said


def test_a_known_device_needs_no_hardware_setting(run: Path) -> None:
    config = compose([*[word for word in WORDS if "hardware" not in word], f"run.dir={run}"]).config
    trained(run, 1.0, 10**9)
    told = compare(config, shape_of(config), Cluster(1, 1), "NVIDIA H200")
    assert told is not None and told["hardware"] == "NVIDIA H200" and set(told["error"]) == {"step_s", "memory_bytes"}


def test_nothing_is_said_of_an_unknown_device(run: Path) -> None:
    config = compose([*[word for word in WORDS if "hardware" not in word], f"run.dir={run}"]).config
    trained(run, 1.0, 10**9)
    assert known("CPU") is None and known("Mystery 9000") is None
    assert compare(config, shape_of(config), Cluster(1, 1), "Mystery 9000") is None
    assert not (run / "plan.json").exists()
