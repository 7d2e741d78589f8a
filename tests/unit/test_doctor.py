"""The doctor on this machine, on planted locks, and on planted packages that clash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigtrain import doctor


def _by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_can_train_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in (
        "Python",
        "CPU",
        "memory",
        "disk",
        "/dev/shm",
        "open files",
        "packages",
        "torch",
        "JIT lock",
        "cluster",
    ):
        assert name in out
    assert "training works here." in out.splitlines()[-1] and " 0 in the way" in out.splitlines()[-1]


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["able"] is True
    assert all(set(finding) == {"name", "status", "found", "mend"} for finding in report["findings"])
    assert {finding["status"] for finding in report["findings"]} <= {"ok", "warn"}
    packages = next(finding["found"] for finding in report["findings"] if finding["name"] == "packages")
    assert "torch 2." in packages and "deepspeed 0.19" in packages


def _plant(root: Path, name: str, age_s: float) -> Path:
    folder = root / "py311_cpu" / name
    folder.mkdir(parents=True)
    for file in ("build.ninja", "lock"):
        (folder / file).write_text("")
        os.utime(folder / file, (time.time() - age_s, time.time() - age_s))
    return folder / "lock"


def test_a_stale_lock_is_found_and_a_live_one_is_left_alone(tmp_path: Path) -> None:
    stale = _plant(tmp_path, "cpu_adam", 3600)
    _plant(tmp_path, "just_begun", 5)
    at_work = _plant(tmp_path, "async_io", 3600)
    compiling = _plant(tmp_path, "transformer", 3600)
    (compiling.parent / "kernel.o").write_text("")  # another machine of a shared file system goes on building
    builder = subprocess.Popen([sys.executable, "-c", "input()"], cwd=at_work.parent, stdin=subprocess.PIPE)
    try:
        assert doctor.stale_locks([tmp_path, tmp_path / "absent"], older_than_s=600) == [stale]
    finally:
        builder.communicate(b"\n", timeout=30)
    assert doctor.stale_locks([tmp_path], older_than_s=600) == sorted([stale, at_work])
    assert doctor.stale_locks([tmp_path], older_than_s=1e6) == []


def test_a_planted_lock_is_a_warning_with_the_way_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    lock = _plant(tmp_path / "cache" / "bigtrain" / "torch_extensions", "cpu_adam", 7200)
    other = _plant(tmp_path / "set", "cpu_adam", 7200)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "set"))
    findings = list(doctor.jit_locks())
    assert [(finding.name, finding.status, finding.mend) for finding in findings] == [
        ("JIT lock", "warn", f"rm '{other}'"),
        ("JIT lock", "warn", f"rm '{lock}'"),
    ]
    assert "2.0 h old" in findings[0].found
    for path in (lock, other):
        path.unlink()
    assert [finding.status for finding in doctor.jit_locks()] == ["ok"]


def _distribution(site: Path, name: str, version: str, requires: list[str]) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n")


def test_versions_that_clash_or_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment of metadata: torch too old, numpy absent, and a clash one floor further down."""
    requires = ["torch<2.14,>=2.10", "numpy>=1.26", "rich>=13", "wandb>=0.19; extra == 'wandb'"]
    _distribution(tmp_path, "bigtrain", "0.1.0", requires)
    _distribution(tmp_path, "torch", "2.9.1", ["triton==3.5.1; platform_system == 'Nowhere'"])
    _distribution(tmp_path, "rich", "14.0.0", ["pygments<3,>=2.13", "absent; python_version < '3'"])
    _distribution(tmp_path, "pygments", "2.1", [])
    import packaging.requirements  # noqa: F401  # before the path is only ours

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    findings = list(doctor.packages())
    said = [(f.status, f.found.partition(";")[0], f.mend) for f in findings if f.name != "packages"]
    assert said == [
        ("fail", "torch is 2.9.1", "pip install 'torch<2.14,>=2.10'"),
        ("fail", "numpy is not installed", "pip install 'numpy>=1.26'"),
        ("warn", "rich needs pygments<3,>=2.13, which is 2.1", "pip install 'pygments<3,>=2.13'"),
    ]
    assert _by_name(findings)["packages"].found == "rich 14.0.0"


def test_extras_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import packaging.requirements  # noqa: F401

    _distribution(
        tmp_path, "bigtrain", "0.1.0", ["rich>=13", "wandb>=0.19; extra == 'wandb'", "peft; extra == 'finetune'"]
    )
    metadata = next(tmp_path.glob("bigtrain*")) / "METADATA"
    metadata.write_text(metadata.read_text() + "Provides-Extra: wandb\nProvides-Extra: finetune\nProvides-Extra: all\n")
    _distribution(tmp_path, "wandb", "0.31.0", [])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = {finding.name: (finding.status, finding.found, finding.mend) for finding in doctor.extras()}
    assert found == {
        "extra wandb": ("ok", "installed", ""),
        "extra finetune": ("ok", "peft is not installed", "pip install 'bigtrain[finetune]', if wanted"),
    }


def test_a_torch_that_cannot_be_imported_is_exit_1(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from bigtrain.doctor import main; sys.exit(main(['--json']))"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    failed = [finding for finding in report["findings"] if finding["status"] == "fail"]
    assert report["able"] is False and [finding["name"] for finding in failed] == ["torch"]
    assert "libcudart.so.13" in failed[0]["found"]


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "disk", _broken)
    findings = [finding for finding in doctor.diagnose() if "could not be checked" in finding.found]
    assert [(finding.name, finding.status) for finding in findings] == [("_broken", "warn")]
    assert findings[0].found == "could not be checked: PermissionError: no"


def _broken() -> list[doctor.Finding]:
    raise PermissionError("no")
