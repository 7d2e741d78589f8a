"""What the ledger says to paths, steps and runs that it can do nothing with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigtrain.cli import main
from bigtrain.config.compose import compose, freeze


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said by a command that ends with 2."""
    assert main(["data", *words]) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err and not told.out
    return told.err


def run_folder(folder: Path, *words: str) -> str:
    """A run that has been configured and not begun."""
    folder.mkdir()
    freeze(compose(["recipe=smoke", f"run.dir={folder}", *words]).raw, folder / "config.yaml")
    return str(folder)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'trace'" in refused(capsys, "trac", "run")
    assert "--step N" in refused(capsys, "trace", run_folder(tmp_path / "run"))
    assert "no option --stop" in refused(capsys, "trace", "--stop", "3", "run")
    assert "invalid int value: 'three'" in refused(capsys, "blame", "--step", "three", "run")
    assert "--top must be at least 1" in refused(capsys, "blame", "--top", "0", "run")
    assert "needs a PATH" in refused(capsys, "verify")
    assert main(["data", "--help"]) == main(["data"]) == 0
    assert "blame RUN" in capsys.readouterr().out


@pytest.mark.parametrize("action", [("trace", "--step", "1"), ("blame",)])
def test_what_is_no_run_of_text(action: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no " in refused(capsys, *action, str(tmp_path / "gone"))
    (tmp_path / "export").mkdir()
    (tmp_path / "export/config.json").write_text("{}")
    assert "what it was trained on is not known" in refused(capsys, *action, str(tmp_path / "export"))
    own = run_folder(tmp_path / "own", "data._target_=tests.distributed.ledger.data", "model.sequence_length=12")
    assert "is tests.distributed.ledger.data, whose samples" in refused(capsys, *action, own)
    moved = run_folder(tmp_path / "moved", f"data.path={tmp_path}/moved.txt")
    assert "moved.txt: no such file" in refused(capsys, *action, moved)


def test_verify_of_what_was_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no " in refused(capsys, "verify", str(tmp_path / "gone"))
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "another's"}))
    assert "checkpoint" in refused(capsys, "verify", str(tmp_path))


def test_verify_names_the_file_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Call me Ishmael. " * 500)
    data = ["data.path=text.txt", "data.vocab_size=300", "data.document_separator=null", "data.held_out=0"]
    assert main(["prepare", "recipe=smoke", *data, "data.cache=cache"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    run = run_folder(tmp_path / "run", *data, "data.cache=cache")
    for path in (str(folder), "cache", run):
        assert main(["data", "verify", path]) == 0
        assert f"intact   {folder}" in capsys.readouterr().out
    shard = min(folder.glob("train-*.bin"))
    right = shard.read_bytes()
    shard.write_bytes(bytes([right[0] ^ 1]) + right[1:])
    for path in (str(folder), "cache", run):
        assert main(["data", "verify", path]) == 1
        assert shard.name in capsys.readouterr().out
    shard.unlink()
    assert main(["data", "verify", run]) == 1
    assert shard.name in capsys.readouterr().out
