"""The package as it is shipped: one version, the files a wheel must carry, and doors that open without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import bigtrain

ROOT = Path(__file__).parents[2]
ROOMS = ["bigtrain", "bigtrain.config", "bigtrain.models", "bigtrain.data", "bigtrain.objectives", "bigtrain.optim"]
ROOMS += ["bigtrain.telemetry", "bigtrain.launchers"]
HEAVY = {"torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers"}


def test_version_is_the_same_everywhere() -> None:
    assert bigtrain.__version__ == metadata.version("bigtrain")
    assert f"## [{bigtrain.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_doors_open_without_heavy_imports(room: str) -> None:
    code = f"import sys, {room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
