"""Labs, data prepared once, and runs that a test can watch: with a real Slurm, ssh and deepspeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab, alone, install, lacks_here
from tests.cluster.slurm import SlurmLab
from tests.cluster.ssh import SshLab
from tests.recipes.conftest import TINY

USER = Path(__file__).parent / "user"
STEPS = 240

RECIPE = [
    "recipe=smoke",
    *TINY,
    "engine=zero1",
    "model.dropout=0.1",
    f"trainer.max_steps={STEPS}",
    "trainer.global_batch_size=4",
    "trainer.micro_batch_size=2",
    "trainer.log_every=1",
    "trainer.eval_every=null",
    "trainer.eval_batches=1",
    "checkpoint.every=10",
    "checkpoint.keep_last=2",
    "evaluation.report=false",
]
"""Two ranks; slow (see `user/paced.py`) until a test says go, then a matter of seconds."""

WITHOUT_TIME = ("step", "split", "loss", "lr", "grad_norm", "tokens")


class Job:
    """One training run as a test sees it: its folder, its overrides, what it has written so far."""

    def __init__(self, folder: Path, data: str, go: bool = False):
        self.folder, self.orders = folder, folder.with_name(f"{folder.name}.orders")
        paced = ["schedule._target_=paced.schedule", f"schedule.orders={self.orders}"]
        self.words = [*RECIPE, data, *paced, f"run.dir={folder}"]
        if go:
            self.order("go")

    def order(self, what: str) -> None:
        """See `user/paced.py`."""
        written = self.orders.with_suffix(".new")
        written.write_text(what)
        written.rename(self.orders)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without what is measured in time or bytes."""
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return []
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [{key: line[key] for key in WITHOUT_TIME if key in line} for line in lines]

    def step(self) -> int:
        """The last step that it has logged."""
        return max((line["step"] for line in self.lines()), default=0)

    def saved(self) -> int:
        """The step of its newest checkpoint."""
        folders = (self.folder / "checkpoints").glob("step_*")
        return max((int(path.name.removeprefix("step_")) for path in folders), default=0)


@pytest.fixture(scope="session")
def possible(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skips, with the reason, where no lab can be made; else waits for its turn."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"lab: {line}")

    if reason := lacks_here() or install(say):
        pytest.skip(reason)
    with alone(say):
        yield


@pytest.fixture(scope="session")
def data(possible: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the prepared data, for all runs of the session."""
    setting = f"data.cache={tmp_path_factory.mktemp('prepared')}"
    recipe = [word for word in RECIPE if word.startswith(("recipe=", "data."))]
    subprocess.run([sys.executable, "-m", "bigtrain", "prepare", *recipe, setting], check=True, capture_output=True)
    return setting


def _lab(lab: Lab) -> Iterator[Any]:
    lab.environment |= {
        "PYTHONPATH": os.pathsep.join([str(USER), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def slurm(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    """Slurm with two nodes."""
    yield from _lab(SlurmLab(tmp_path_factory.mktemp("slurm")))


@pytest.fixture(scope="module")
def ssh(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    """Two hosts with sshd."""
    yield from _lab(SshLab(tmp_path_factory.mktemp("ssh")))
