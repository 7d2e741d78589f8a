"""The package as it is shipped: one version, doors that open without torch, a wheel that carries all it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import bigtrain
from tests import support

ROOT = Path(__file__).parents[2]
ROOMS = ["bigtrain", "bigtrain.config", "bigtrain.models", "bigtrain.data", "bigtrain.objectives", "bigtrain.optim"]
ROOMS += ["bigtrain.telemetry", "bigtrain.launchers"]
HEAVY = {"torch", "transformers", "datasets", "numpy", "deepspeed", "tokenizers"}


def test_version_is_the_same_everywhere() -> None:
    assert bigtrain.__version__ == metadata.version("bigtrain")
    assert f"## [{bigtrain.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_support_matrix_is_the_tests_own() -> None:
    assert support.render(json.loads(support.KEPT.read_text(encoding="utf-8"))) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_doors_open_without_heavy_imports(room: str) -> None:
    code = f"import sys, {room}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    shipped = {file.relative_to(installed / "bigtrain") for file in (installed / "bigtrain").rglob("*.yaml")}
    assert {Path("conf") / file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")} <= shipped
    assert {path.name for path in installed.iterdir()} == {"bigtrain", f"bigtrain-{bigtrain.__version__}.dist-info"}

    empty = tmp_path / "empty"
    empty.mkdir()
    words = ["prepare", "recipe=smoke", f"data.cache={tmp_path / 'prepared'}"]
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import bigtrain; print(bigtrain.__file__); "
    code += f"from bigtrain.cli import main; sys.argv = ['bigtrain', *{words}]; sys.exit(main())"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert list((tmp_path / "prepared").glob("moby-dick-*/manifest.json"))
    assert list(empty.iterdir()) == []
