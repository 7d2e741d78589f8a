"""Bad input: one clear message, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bigtrain.data
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError

from .conftest import Make, left_in, python


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "no/such/corpus.txt"}, "no such file or folder"),
        ({"held_out": 1.0}, "data.held_out=1.0"),
        ({"held_out": -0.1}, "data.held_out=-0.1"),
        ({"vocab_size": 256}, "data.vocab_size=256: .* at least 257"),
        ({"sequence_length": 0}, "data.sequence_length=0"),
        ({"packing": "bestfit"}, "data.packing=bestfit"),
        ({"workers": 0}, "data.workers=0"),
        ({"shard_tokens": 0}, "data.shard_tokens=0"),
        ({"document_separator": "(CHAPTER"}, "not a regular expression"),
    ],
)
def test_settings(make: Make, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**change).prepare()
    assert left_in(make().cache) == []


def test_a_fault_in_the_last_file_leaves_nothing(make: Make, tmp_path: Path, chapters: list[str]) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(chapters):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(text)
    (tmp_path / "texts/zz.txt").write_bytes(b"caf\xe9")
    for tokenizer_workers in (1, 2):
        with pytest.raises(UserError, match=r"zz\.txt is not UTF-8: byte 3"):
            make(path=str(tmp_path / "texts"), workers=tokenizer_workers).prepare()
    assert left_in(make().cache) == []


def test_a_fault_found_while_other_processes_tokenise(make: Make, prepared: TextData, tmp_path: Path) -> None:
    """With a given tokenizer the first reading is the tokenising one."""
    (tmp_path / "a.jsonl").write_text('{"text": "one whale"}\n' * 20_000 + "{broken\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 20001: not JSON"):
        make(path=str(tmp_path / "a.jsonl"), tokenizer=str(prepared.tokenizer_path), workers=2).prepare()
    assert left_in(make().cache) == []


def test_no_text_at_all(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "  "}\n{"text": null}\n')
    with pytest.raises(UserError, match="holds no text: 2 empty documents, 1 broken records"):
        make(path=str(tmp_path / "a.jsonl"), skip_broken=True).prepare()
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt is empty"):
        make(path=str(tmp_path / "a.txt")).prepare()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no file of a known kind"):
        make(path=str(tmp_path / "folder")).prepare()
    assert left_in(make().cache) == []


def test_shorter_than_one_sequence(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Call me Ishmael.")
    with pytest.raises(UserError, match=r"has \d+ tokens, too short for one sequence of data.sequence_length=64"):
        make(path=str(tmp_path / "a.txt")).prepare()
    data = make(path=str(tmp_path / "a.txt"), packing="none")  # padded, one document is enough
    data.prepare()
    assert len(data.train) == 1


def big_tokenizer(folder: Path) -> Path:
    """70,001 entries, more than 16 bits count."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from bigtrain.data.tokenizer import END_OF_TEXT, save

    words = {word: i for i, word in enumerate([*(f"w{i}" for i in range(70_000)), END_OF_TEXT])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_TEXT])
    save(tokenizer, folder)
    return folder


def test_a_vocabulary_larger_than_the_shards_integers(make: Make, tmp_path: Path) -> None:
    given = str(big_tokenizer(tmp_path / "big"))
    (tmp_path / "a.txt").write_text(" ".join(f"w{i}" for i in range(69_000, 70_000)))
    settings: dict[str, Any] = {"path": str(tmp_path / "a.txt"), "tokenizer": given, "sequence_length": 999}
    with pytest.raises(UserError, match=r"70,001 does not fit into data.token_type=uint16, which counts to 65,535"):
        make(**settings, token_type="uint16").prepare()
    assert left_in(make().cache) == []
    data = make(**settings)
    data.prepare()
    assert data.train[0]["input_ids"].tolist() == list(range(69_000, 69_999))  # uint32: nothing wrapped
    assert data.train[0]["labels"].tolist()[-1] == 69_999


def test_a_tokenizer_other_than_the_shards(make: Make, prepared: TextData, tmp_path: Path) -> None:
    other = make(vocab_size=400)
    other.prepare()
    with pytest.raises(UserError, match="is not the tokenizer of the shards"):
        make(path=str(prepared.folder), tokenizer=str(other.tokenizer_path)).prepare()
    saved = other.folder / "tokenizer/tokenizer.json"
    saved.write_bytes((prepared.tokenizer_path / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="is not the tokenizer that the shards in"):
        _ = make(vocab_size=400).train


def test_a_cache_that_cannot_be_written(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="data.cache=.*file/cache cannot be written"):
        make(cache=str(tmp_path / "file/cache")).prepare()
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(UserError, match="data.cache=.*closed cannot be written"):
            make(cache=str(tmp_path / "closed")).prepare()


def attempt(make: Make, cache: Path, limit: int | None, **settings: Any) -> str:
    """Prepares in a process of its own, where no file may grow beyond `limit` bytes; returns what it raised."""
    data = make(cache=str(cache), **settings)
    code = f"""
import resource, bigtrain.data
from bigtrain.errors import UserError
limit = {limit!r}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    bigtrain.data.text(path={data.preparation.corpus.path[0]!r}, sequence_length=64,
                       vocab_size={data.preparation.vocab_size}, tokenizer={data.preparation.tokenizer!r}, held_out=0.1,
                       cache={str(cache)!r}, workers={data.workers!r}).prepare()
except UserError as error:
    print(error)
"""
    process = python(code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Exception ignored" not in err and "Traceback" not in err, err
    return out


@pytest.mark.parametrize("limit", [1 << 10, 40 << 10, 100 << 10])
@pytest.mark.parametrize("workers", [1, 2])
def test_no_room_for_a_file(make: Make, tmp_path: Path, limit: int, workers: int) -> None:
    """The limit strikes in the tokenizer's file or in a shard."""
    said = attempt(make, tmp_path / "cache", limit, workers=workers)
    assert "The disk of data.cache=" in said and "is full" in said
    assert attempt(make, tmp_path / "cache", None) == ""  # what was finished is kept, and nothing of it is broken


@pytest.mark.parametrize(("kilobytes", "given"), [(8, False), (60, False), (200, False), (20, True)])
def test_a_full_disk(make: Make, prepared: TextData, tmp_path: Path, kilobytes: int, given: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root, to mount a small disk")
    try:
        tokenizer = {"tokenizer": str(prepared.tokenizer_path)} if given else {}
        said = attempt(make, disk / "cache", None, **tokenizer)
        assert "The disk of data.cache=" in said and "is full (No space left on device)" in said
        assert not [name for name in left_in(disk / "cache") if (disk / "cache" / name / "manifest.json").exists()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_disk(make: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root, to mount a disk")
    try:
        with pytest.raises(UserError, match="cannot be written: .*Read-only file system"):
            make(cache=str(disk)).prepare()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_command_ends_with_2_and_the_message_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    words = ["prepare", "data=text", f"data.path={tmp_path / 'a.jsonl'}", f"data.cache={tmp_path / 'cache'}"]
    command = [sys.executable, "-m", "bigtrain", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "line 2: not JSON" in done.stderr and "Traceback" not in done.stderr
    assert left_in(tmp_path / "cache") == []


def test_the_door_is_light() -> None:
    rows = {"Conversations", "Images", "LabelledTexts", "Pairs", "Preferences", "TaggedWords"}
    assert set(bigtrain.data.__all__) == {"text", *rows}
    assert all(getattr(bigtrain.data, name).__name__ == name for name in rows)
    code = "import sys, bigtrain.data; print(sorted({'torch', 'numpy', 'rich', 'tokenizers'} & set(sys.modules)))"
    out, err = python(code).communicate(timeout=60)
    assert out.strip() == "[]", err
