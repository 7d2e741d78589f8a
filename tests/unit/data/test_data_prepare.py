"""Raw text to shards: the right tokens, once, whole, whoever prepares and however many."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.prepare import divide
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError

from .conftest import CHAPTER, Make, gpt2_files, left_in, python


def stream(data: TextData, split: str) -> list[int]:
    """All tokens of a split, in order, read from the files as they are."""
    manifest = json.loads((data.folder / "manifest.json").read_text())
    files = [data.folder / shard["file"] for shard in manifest["splits"][split]["shards"]]
    return [int(i) for file in files for i in np.fromfile(file, manifest["token_type"])]


def documents(data: TextData, split: str) -> list[str]:
    """The texts of a split, decoded by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer_path))
    assert tokenizer.eos_token_id is not None
    parts: list[list[int]] = [[]]
    for token in stream(data, split):
        if token == tokenizer.eos_token_id:
            parts.append([])
        else:
            parts[-1].append(token)
    assert parts.pop() == []  # the end of text closes the last document too
    return [str(tokenizer.decode(part)) for part in parts]


def test_every_document_comes_out_again_in_one_split_closed_by_the_end_of_text(
    prepared: TextData, chapters: list[str]
) -> None:
    train, held = documents(prepared, "train"), documents(prepared, "eval")
    assert sorted(train + held) == sorted(chapters)
    assert 1 <= len(held) <= 9  # 10 % of 30
    assert [text for text in chapters if text in train] == sorted(train, key=chapters.index)


def test_the_manifest_tells_the_truth(prepared: TextData) -> None:
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    for split in ("train", "eval"):
        entry = manifest["splits"][split]
        assert entry["tokens"] == len(stream(prepared, split))
        ends = np.fromfile(prepared.folder / entry["index"]["file"], "<u8")
        assert entry["documents"] == len(ends) == len(documents(prepared, split))
        tokens = np.array(stream(prepared, split))
        assert np.flatnonzero(tokens == manifest["eos_id"]).tolist() == (ends - 1).tolist()
    assert manifest["token_type"] == "uint16" and manifest["vocab_size"] == prepared.vocab_size == 512
    assert len(manifest["sources"]) == 30 and manifest["settings"]["held_out"] == 0.1
    prepared.verify()


def test_the_sets_are_those_tokens(prepared: TextData) -> None:
    tokens = stream(prepared, "train")
    assert len(prepared.train) == (len(tokens) - 1) // 64
    last = len(prepared.train) - 1
    assert prepared.train[last]["input_ids"].tolist() == tokens[last * 64 : last * 64 + 64]
    assert prepared.eval is not None
    targets = [int(i) for sample in prepared.eval for i in sample["labels"] if i != -100]
    assert targets == stream(prepared, "eval")[1:]


def test_no_work_is_done_twice_and_nothing_heavy_is_imported_for_it(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    first = make()
    first.prepare()
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    code = f"""
import sys, bigtrain.data
data = bigtrain.data.text(path={first.preparation.corpus.path[0]!r}, sequence_length=32, vocab_size=512, held_out=0.1,
                          cache={str(first.cache)!r})
assert not {{'numpy', 'torch'}} & set(sys.modules), 'the door is heavy'
data.prepare()
assert not {{'torch', 'tokenizers', 'transformers', 'datasets', 'rich', 'pyarrow'}} & set(sys.modules)
print(len(data.train))
"""
    process = python(code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "prepared already" in err, err
    assert int(out) == (len(stream(first, "train")) - 1) // 32  # another length, the same shards
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_what_changes_the_tokens_prepares_anew_and_what_does_not_does_not(make: Make, corpus: Path) -> None:
    data = make()
    same: list[dict[str, Any]] = [{"sequence_length": 9}, {"packing": "none"}, {"workers": 2}]
    other: list[dict[str, Any]] = [{"vocab_size": 600}, {"seed": 1}, {"held_out": 0.2}, {"document_separator": "x"}]
    assert all(make(**change).folder == data.folder for change in same)
    assert len({data.folder, *(make(**change).folder for change in other)}) == 1 + len(other)
    before = (corpus / "00.txt").stat()
    os.utime(corpus / "00.txt", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert make().folder != data.folder
    os.utime(corpus / "00.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert make().folder == data.folder


def test_the_same_shards_whatever_the_workers_and_the_shard_size(make: Make, prepared: TextData) -> None:
    import bigtrain.data.tokenising as module

    before, module.BATCH_CHARACTERS = module.BATCH_CHARACTERS, 20_000  # many batches
    try:
        for number, change in enumerate(({"workers": 1}, {"workers": 3}, {"workers": 2, "shard_tokens": 5_000})):
            data = make(cache=f"{make().cache}{number}", **change)
            data.prepare()
            assert stream(data, "train") == stream(prepared, "train")
            assert stream(data, "eval") == stream(prepared, "eval")
    finally:
        module.BATCH_CHARACTERS = before
    assert len(list(data.folder.glob("train-0*.bin"))) == -(-len(stream(prepared, "train")) // 5_000)
    assert data.train[70]["labels"].tolist() == prepared.train[70]["labels"].tolist()  # token 4,480 … 5,000 … 4,545
    data.verify()


def test_the_fingerprint_is_of_the_content(make: Make, prepared: TextData, corpus: Path, tmp_path: Path) -> None:
    """The same text elsewhere, prepared anew: a run may go on. Another length or packing: it may not."""
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in corpus.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = make(path=str(copy))
    data.prepare()
    assert data.folder.name != prepared.folder.name and data.fingerprint == prepared.fingerprint
    changes: list[dict[str, Any]] = [{"sequence_length": 65}, {"packing": "none"}]
    changed = {make(path=str(data.folder), **change).fingerprint for change in changes}
    assert len(changed | {data.fingerprint}) == 3


def test_prepared_data_can_be_named_as_the_path(make: Make, prepared: TextData) -> None:
    data = make(path=str(prepared.folder))
    data.prepare()
    assert data.fingerprint == prepared.fingerprint and data.tokenizer_path == prepared.tokenizer_path
    given = make(path=str(prepared.folder), tokenizer=str(prepared.tokenizer_path))
    given.prepare()
    assert given.vocab_size == 512


def test_one_file_cut_into_documents(make: Make, chapters: list[str], tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(chapters), encoding="utf-8")
    data = make(path=str(tmp_path / "book.txt"), document_separator=CHAPTER)
    data.prepare()
    assert sorted(documents(data, "train") + documents(data, "eval")) == sorted(chapters)


def test_without_a_separator_a_file_is_one_document_and_that_is_said(
    make: Make, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = make(path=str(corpus / "02.txt"))
    data.prepare()
    assert data.eval is None and len(documents(data, "train")) == 1
    assert "nothing is held out" in capfd.readouterr().err.replace("\n", " ")


def test_broken_records_are_counted_and_told(make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "one whale " * 50 + '"}\n{"text": \n{"text": "two whales"}\nnot json\n')
    data = make(path=str(path), skip_broken=True, vocab_size=260)
    data.prepare()
    manifest = json.loads((data.folder / "manifest.json").read_text())
    assert manifest["broken_records"] == 2 and "line 2" in manifest["first_broken"]
    told = " ".join(capfd.readouterr().err.split())
    assert "2 broken records left out, the first:" in told and "line 2" in told


START = """
import bigtrain.data
data = bigtrain.data.text(path={path!r}, sequence_length=64, vocab_size=2048, held_out=0.1, cache={cache!r})
data.prepare()
print(data.fingerprint)
"""


def shards_in(cache: Path) -> list[str]:
    """What lies in the cache beside the tokenizer that was trained."""
    return left_in(cache)


def test_two_processes_that_want_the_same(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    processes = [python(START.format(path=str(corpus), cache=str(cache))) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert sum("tokens to train on" in " ".join(err.split()) for _, err in ends) == 1  # one did the work
    assert len(shards_in(cache)) == 1


def test_the_one_that_waits_says_so(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    import fcntl
    import threading

    data = make()
    data.cache.mkdir(parents=True)
    with (data.cache / f".{data.folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=data.prepare)
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and "another process is preparing" in capfd.readouterr().err
    thread.join(60)
    assert len(data.train) > 0


def test_killed_at_any_moment_nothing_half_is_taken_for_whole(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for wait in (0.02, 0.1, 0.3):
        process = python(START.format(path=str(corpus), cache=str(cache)))
        end = time.monotonic() + 60
        while process.poll() is None and not any(".work" in name for name in left_in(cache)):
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = python(START.format(path=str(corpus), cache=str(cache)))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(shards_in(cache)) == 1 and ".work" not in left_in(cache)[0]
    assert len(out.strip()) == 16


def children(of: int) -> set[int]:
    """Processes that `of` started."""
    tasks = Path(f"/proc/{of}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def alive(process: int) -> bool:
    """Neither gone nor dead and waiting to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_that_tokenise_end_with_the_one_that_is_killed(prepared: TextData, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one whale after the other"}\n' * 300_000)
    tokenizer = gpt2_files(prepared, tmp_path / "gpt2")
    code = f"""
import bigtrain.data
if __name__ == "__main__":
    bigtrain.data.text(path={str(path)!r}, sequence_length=64, tokenizer={str(tokenizer)!r}, workers=2,
                       cache={str(tmp_path / "cache")!r}).prepare()
"""
    process = python(code)
    end = time.monotonic() + 60
    while len(pool := children(process.pid)) < 3:  # two, and Python's resource tracker
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # they hold its output open
    while any(alive(child) for child in pool):
        assert time.monotonic() < end, [child for child in pool if alive(child)]
        time.sleep(0.05)


def test_memory_does_not_grow_with_the_corpus(prepared: TextData, chapters: list[str], tmp_path: Path) -> None:
    """Three times the text (4 MB more, and 8 MB of tokens) in less than 4 MB more memory."""
    peaks = []
    tokenizer = gpt2_files(prepared, tmp_path / "gpt2")
    for copies in (8, 24):
        path = tmp_path / f"{copies}.jsonl"
        with path.open("w") as file:
            for copy in range(copies):
                for text in chapters:
                    file.write(json.dumps({"text": f"{copy} {text}"}) + "\n")
        code = f"""
import resource, bigtrain.data
bigtrain.data.text(path={str(path)!r}, sequence_length=64, tokenizer={str(tokenizer)!r}, workers=1,
                   cache={str(tmp_path / "cache")!r}).prepare()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""  # its tokenizer on one thread: the arenas of several are not ours to bound
        process = python(code)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        peaks.append(int(out) / 1024)
    assert path.stat().st_size > 6e6
    assert peaks[1] - peaks[0] < 4, peaks


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=5), max_size=12), held_out=st.floats(0, 0.99), seed=st.integers(-5, 5))
def test_each_side_gets_a_document_and_copies_stay_together(texts: list[str], held_out: float, seed: int) -> None:
    divided = list(divide(iter(texts), held_out, seed))
    assert divided == list(divide(iter(texts), held_out, seed))
    assert sorted(text for _, text in divided) == sorted(texts)
    splits = {split for split, _ in divided}
    if held_out == 0 or len(texts) == 1:
        assert splits <= {"train"}
    elif len(texts) >= 2:
        assert splits == {"train", "eval"}
    # Who stands alone at the end may have been moved over to the empty side; all others go by their text.
    alone = [text for split, text in divided if [s for s, _ in divided].count(split) == 1]
    for text in set(texts) - set(alone):
        assert len({split for split, other in divided if other == text}) == 1


def test_the_share_held_out_is_the_share_asked_for() -> None:
    texts = [f"document {i}" for i in range(20_000)]
    held = [text for split, text in divide(iter(texts), 0.1, 0) if split == "eval"]
    assert abs(len(held) - 2000) < 6 * (20_000 * 0.1 * 0.9) ** 0.5
    more = {text for split, text in divide(iter(texts), 0.2, 0) if split == "eval"}
    assert set(held) < more
    other = {text for split, text in divide(iter(texts), 0.1, 1) if split == "eval"}
    assert len(other & set(held)) < 400  # 200 by chance
    without = {text for split, text in divide(iter(texts[::-1][:10_000]), 0.1, 0) if split == "eval"}
    assert without == {text for text in held if int(text.split()[1]) >= 10_000}  # its own text decides, no neighbour


@pytest.mark.parametrize("name", ["train-00000-000.bin", "eval-documents.bin", "tokenizer/tokenizer.json"])
def test_damage_is_found(make: Make, name: str) -> None:
    data = make()
    data.prepare()
    path = data.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit
    with pytest.raises(UserError, match=name.partition("/")[2] or name):
        make().verify()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"prepare again"):
        make().prepare()
    path.unlink()
    with pytest.raises(UserError, match=r"prepare again"):
        _ = make().train
    path.write_bytes(whole)
    make().verify()


def test_opened_before_it_is_prepared(make: Make) -> None:
    with pytest.raises(UserError, match="run `bigtrain prepare` first"):
        _ = make().train


def test_a_manifest_of_another_version(make: Make, prepared: TextData, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(prepared.folder, tmp_path / "copy")
    manifest = json.loads((tmp_path / "copy/manifest.json").read_text())
    (tmp_path / "copy/manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(UserError, match="version 99"):
        _ = make(path=str(tmp_path / "copy")).train
    (tmp_path / "copy/manifest.json").write_text(json.dumps(manifest)[:-9])
    with pytest.raises(UserError, match="damaged"):
        _ = make(path=str(tmp_path / "copy")).train
