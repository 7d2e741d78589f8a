"""Real runs: `bigtrain` in processes of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = [
    "trainer.device=cpu",
    "model.layers=2",
    "model.width=32",
    "model.heads=2",
    "data.sequence_length=32",
    "data.vocab_size=512",
]
"""Overrides that make a run of any recipe on the toy model a matter of seconds."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One folder of prepared data for all runs of the session."""
    return f"data.cache={tmp_path_factory.mktemp('prepared')}"


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bigtrain(tmp_path: Path) -> Run:
    """`bigtrain WORD…` in an empty folder; asserts the exit code that is expected."""

    def run(
        *words: str, code: int = 0, module: str = "bigtrain", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT | environment, timeout=240
        )
        assert done.returncode == code, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done

    return run


def metrics(run_dir: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]
