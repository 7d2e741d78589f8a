"""Trackers: one record of a run across kills and resumes, and none that can stop it."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bigtrain import telemetry
from bigtrain.errors import UserError
from bigtrain.telemetry.metrics import JsonlLog
from bigtrain.telemetry.trackers import Trackers

SESSION = """
import json, os, signal, sys
from pathlib import Path
from bigtrain import telemetry
from bigtrain.telemetry.metrics import JsonlLog
run_dir, kind, ending = Path(sys.argv[1]), sys.argv[2], sys.argv[5]
resume, last = json.loads(sys.argv[3]), int(sys.argv[4])
run_dir.mkdir(parents=True, exist_ok=True)
lines = JsonlLog(run_dir, resume_step=resume)
tracker = getattr(telemetry, kind)(run_dir, {"seed": 1, "model": {"layers": 2}})
for step in range((resume or 0) + 1, last + 1):
    metrics = {"loss": 1 / step if step != 3 else float("nan"), "mfu": None}
    lines.log(step, "train", metrics)
    tracker.log(step, "train", metrics)
    if step % 5 == 0:
        lines.log(step, "eval", {"loss": 2 / step})
        tracker.log(step, "eval", {"loss": 2 / step})
if ending == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
tracker.close()
"""


def _session(run_dir: Path, kind: str, resume: int | None, last: int, ending: str = "closed") -> None:
    command = [sys.executable, "-c", SESSION, str(run_dir), kind, json.dumps(resume), str(last), ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-9 if ending == "killed" else 0), done.stderr
    assert not done.stdout and not done.stderr, "a tracker is quiet"


def _scalars(run_dir: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_over_a_resume(tmp_path: Path) -> None:
    _session(tmp_path / "run", "tensorboard", None, 20)
    _session(tmp_path / "run", "tensorboard", 10, 25)
    scalars = _scalars(tmp_path / "run")
    assert set(scalars) == {"train/loss", "eval/loss"}
    assert list(scalars["train/loss"]) == list(range(1, 26))  # each step once: what came after step 10 was purged
    assert math.isnan(scalars["train/loss"][3]) and scalars["train/loss"][25] == pytest.approx(1 / 25)
    assert scalars["eval/loss"] == pytest.approx({step: 2 / step for step in (5, 10, 15, 20, 25)})


def _wandb_steps(run_dir: Path) -> list[int]:
    (folder,) = run_dir.glob("wandb/offline-run-*")
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    found = re.finditer(rb"_step\x82\x01(.)", data, re.DOTALL)  # protobuf: the key, then the length and its digits
    steps = [int(data[match.end() : match.end() + match[1][0]]) for match in found]
    assert steps == sorted(steps), "wandb's step may only grow"
    return sorted(set(steps))


def test_wandb_offline_is_one_run_over_kills_and_resumes(tmp_path: Path) -> None:
    run_dir = tmp_path / "quickstart" / "one"
    _session(run_dir, "wandb", None, 20, "killed")  # wandb's own file has next to nothing of this session
    identity = json.loads((run_dir / "wandb.json").read_text())["id"]
    _session(run_dir, "wandb", 10, 30)
    assert json.loads((run_dir / "wandb.json").read_text())["id"] == identity
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert folder.name.endswith(identity)
    assert _wandb_steps(run_dir) == list(range(1, 31))
    _session(run_dir, "wandb", None, 5)  # from nothing: another run
    assert json.loads((run_dir / "wandb.json").read_text())["id"] != identity


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['wandb'] = sys.modules['tensorboard'] = None\n"
        "import pathlib; from bigtrain import telemetry; from bigtrain.errors import UserError\n"
        "for kind in ('wandb', 'tensorboard'):\n"
        "    try: getattr(telemetry, kind)(pathlib.Path(sys.argv[1]), {})\n"
        "    except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "tracker=wandb needs a package: pip install 'bigtrain[wandb]'",
        "tracker=tensorboard needs a package: pip install 'bigtrain[tensorboard]'",
    ]


def test_wandb_online_without_an_account_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    JsonlLog(tmp_path).close()
    with pytest.raises(UserError, match=r"tracker\.wandb\.mode=offline"):
        telemetry.wandb(tmp_path, {}, mode="online")


class _Broken:
    """A tracker whose network has gone for a while."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def log(self, step: int, split: str, metrics: Mapping[str, float | int | None]) -> None:
        if step in (2, 3):
            raise ConnectionError("no route to host")
        self.seen.append(step)

    def close(self) -> None:
        raise ConnectionError("still none")


def test_a_tracker_that_fails_is_warned_about_once_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    broken = _Broken()
    trackers = Trackers({"mine": broken})
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            trackers.log(step, "train", {"loss": 1.0})
        trackers.close()
    assert broken.seen == [1, 4, 5]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3 and "mine failed at step 2 (ConnectionError: no route to host)" in messages[0]
    assert "did not close cleanly" in messages[1] and "missed 2 log points" in messages[2]


def test_the_door_is_light_and_names_what_a_configuration_may_target() -> None:
    assert telemetry.__all__ == ["tensorboard", "wandb"]
    code = (
        "import time; t = time.perf_counter(); import bigtrain.telemetry, sys; t = time.perf_counter() - t\n"
        "assert not {'torch', 'numpy', 'wandb', 'rich', 'tensorboard'} & set(sys.modules)\n"
        "assert t < 0.2, t"  # 15 ms on an idle core
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_option_of_the_group_fits_its_signature() -> None:
    import inspect

    import yaml

    group = Path(__file__).parents[2] / "conf" / "tracker"
    for path in group.glob("*.yaml"):
        first = path.read_text().splitlines()[0]
        assert first.startswith("# bigtrain train ") and f"tracker={path.stem}" in first
        for name, component in (yaml.safe_load(path.read_text()) or {}).items():
            target = component.pop("_target_")
            assert target == f"bigtrain.telemetry.{name}" and path.stem == name
            signature = inspect.signature(getattr(telemetry, name))
            settings = {k: p.default for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
            assert component == settings, "every setting is listed, with its default"
