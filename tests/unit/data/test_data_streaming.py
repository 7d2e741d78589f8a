"""Prepared data in an object store: the same batches, a bounded cache, and its faults named."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bigtrain.data
from bigtrain.data import remote, streaming
from bigtrain.data.loader import batches
from bigtrain.data.order import WindowedOrder
from bigtrain.data.streaming import SHARDS, ShardCache
from bigtrain.data.text_data import TextData
from bigtrain.errors import RunError, UserError

from .conftest import python
from .s3_server import serve

SETTINGS: dict[str, Any] = {"sequence_length": 64, "vocab_size": 512, "held_out": 0.1}


@pytest.fixture(scope="module")
def sharded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TextData:
    """The corpus in shards of 2,000 tokens, of 4,000 bytes that is."""
    cache = str(tmp_path_factory.mktemp("sharded"))
    data = bigtrain.data.text(path=str(corpus), cache=cache, shard_tokens=2000, shuffle_shards=4, **SETTINGS)
    data.prepare()
    return data


@pytest.fixture(scope="module")
def s3(sharded: TextData) -> Iterator[tuple[str, Any]]:
    """It, uploaded to s3://whales/prepared."""
    with serve() as running:
        running[1].put(str(sharded.folder), "whales/prepared", recursive=True)
        yield running


@pytest.fixture
def memory(sharded: TextData) -> Iterator[Any]:
    """It, uploaded to memory://prepared."""
    store = fsspec.filesystem("memory")
    store.put(str(sharded.folder), "/prepared", recursive=True)
    streaming.mirror.cache_clear()
    yield store
    store.rm("/prepared", recursive=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.02))


def streamed(url: str, cache: Path, **given: Any) -> TextData:
    data = bigtrain.data.text(path=url, cache=str(cache), sequence_length=64, **{"shuffle_shards": 4, **given})
    data.prepare()
    return data


def some(data: TextData, steps: int) -> list[Any]:
    with batches(data.train, seed=5, position=40, global_batch_size=16, micro_batch_size=8) as ahead:
        return [[batch["input_ids"].tolist() for batch in next(ahead)[0]] for _ in range(steps)]


def held(cache: Path) -> int:
    """Bytes in the cache of shards, at a moment when none is made or deleted to make room."""
    with streaming._locked(cache / SHARDS / ".room.lock"):
        return sum(file.stat().st_size for file in (cache / SHARDS).glob("*"))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_batches_from_s3_are_those_from_the_disk(
    s3: tuple[str, Any], sharded: TextData, corpus: Path, packing: str, tmp_path: Path
) -> None:
    far = streamed("s3://whales/prepared/", tmp_path, packing=packing)
    near = bigtrain.data.text(
        path=str(sharded.folder), cache=str(tmp_path), sequence_length=64, packing=packing, shuffle_shards=4
    )
    near.prepare()
    assert len(near.train.shards.names) > 10
    assert not (tmp_path / SHARDS).exists(), "a shard was fetched before it was needed"
    assert far.fingerprint == near.fingerprint and far.vocab_size == near.vocab_size
    steps = len(near.train) // 16 + 5  # into the next epoch
    assert some(far, steps) == some(near, steps)
    assert far.eval is not None and near.eval is not None
    for index in range(len(near.eval)):
        assert (far.eval[index]["labels"] == near.eval[index]["labels"]).all()
    far.verify()


def test_a_store_has_windows_by_default_and_the_order_is_in_the_fingerprint(memory: Any, tmp_path: Path) -> None:
    default, four = (streamed("memory://prepared", tmp_path, shuffle_shards=k) for k in (None, 4))
    sixteen = streamed("memory://prepared", tmp_path, shuffle_shards=16)
    assert isinstance(default.train.order(0), WindowedOrder)
    assert default.fingerprint == sixteen.fingerprint != four.fingerprint


def test_the_cache_never_holds_more_than_it_may(
    s3: tuple[str, Any], sharded: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, most, stop = 14_000, 0, threading.Event()
    far = streamed("s3://whales/prepared", tmp_path, cache_gb=limit / 1e9)
    (tmp_path / SHARDS).mkdir()

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, held(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for index in np.random.default_rng(0).permutation(len(far.train))[:150].tolist():
            assert (far.train[index]["input_ids"] == sharded.train[index]["input_ids"]).all()
            most = max(most, held(tmp_path))
        some(far, 20)  # with a thread that fetches ahead
    finally:
        stop.set()
        watcher.join()
    assert 8000 < most <= limit


def test_the_least_recently_used_shard_goes(memory: Any, sharded: TextData, tmp_path: Path) -> None:
    manifest = json.loads((sharded.folder / "manifest.json").read_text())
    a, b, c, d = manifest["splits"]["train"]["shards"][:4]
    cache = ShardCache("memory://prepared", tmp_path, 12_500, [a, b, c, d])
    first = cache.open(a["file"])
    for entry in (b, c, a, d):
        time.sleep(0.002)  # file systems' clocks tick
        cache.open(entry["file"])
    there = {path.stem for path in tmp_path.glob("*.bin")}
    assert there == {entry["sha256"] for entry in (a, c, d)}
    cache.open(b["file"])
    cache.open(c["file"])
    assert not (tmp_path / f"{a['sha256']}.bin").exists()
    assert len(first.read()) == a["bytes"], "an open file stays readable"


def test_shards_are_fetched_ahead_as_far_as_they_fit(memory: Any, sharded: TextData, tmp_path: Path) -> None:
    shards = json.loads((sharded.folder / "manifest.json").read_text())["splits"]["train"]["shards"][:6]
    cache = ShardCache("memory://prepared", tmp_path, 16_500, shards)
    cache.open(shards[5]["file"])
    cache.prefetch([entry["file"] for entry in shards[:5]])

    def there() -> set[str]:
        return {path.stem for path in tmp_path.glob("*.bin")}

    until(lambda: there() == {entry["sha256"] for entry in shards[:4]})
    cache.prefetch([entry["file"] for entry in shards[2:6]])
    until(lambda: there() == {entry["sha256"] for entry in shards[2:6]})


def test_training_finds_the_next_window_fetched(memory: Any, tmp_path: Path) -> None:
    far = streamed("memory://prepared", tmp_path, shuffle_shards=2)
    order = far.train.order(0)
    assert isinstance(order, WindowedOrder)
    far.train.prefetch(order, 0)
    size = order.block * 2
    soon = {name for at in order(np.arange(2 * size)).tolist() for name in far.train._shards_of(at, at + 1)}
    sums = {shard["file"]: shard["sha256"] for shard in far._manifests["data"]["splits"]["train"]["shards"]}
    until(lambda: {path.stem for path in (tmp_path / SHARDS).glob("*.bin")} == {sums[name] for name in soon})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


READER = """
import sys, bigtrain.data
from bigtrain.data import streaming
fetched, real = 0, streaming.download
def download(*given):
    global fetched
    fetched += given[0].split("/")[-1].startswith("train-0")
    real(*given)
streaming.download = download
data = bigtrain.data.text(path="s3://whales/prepared", cache=sys.argv[1], sequence_length=64)
data.prepare()
total = sum(int(data.train[i]["input_ids"].sum()) for i in range(len(data.train)))
print(total, fetched)
"""


def test_two_processes_share_a_cache(s3: tuple[str, Any], sharded: TextData, tmp_path: Path) -> None:
    code = READER.replace("sys.argv[1]", repr(str(tmp_path)))
    readers = [python(code), python(code)]
    told = [reader.communicate(timeout=120) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], told
    sums, fetched = zip(*(map(int, out.split()) for out, _ in told), strict=True)
    expected = sum(int(sharded.train[i]["input_ids"].sum()) for i in range(len(sharded.train)))
    assert sums == (expected, expected)
    assert sum(fetched) == len(sharded.train.shards.names), "each shard is fetched once"
    assert not list(tmp_path.rglob("*.tmp"))


def test_small_files_are_mirrored_once(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = streamed("memory://prepared", tmp_path)
    streaming.mirror.cache_clear()
    monkeypatch.setattr(streaming, "download", None)  # a second download would fail
    again = streamed("memory://prepared", tmp_path)
    assert again.folder == first.folder and again.tokenizer_path.is_dir()
    assert len(list(tmp_path.glob("remote-*"))) == 1


def test_a_damaged_shard_is_named(memory: Any, tmp_path: Path, quick: None) -> None:
    far = streamed("memory://prepared", tmp_path)
    name = far.train.shards.names[1]
    data = bytearray(memory.cat_file(f"/prepared/{name}"))
    data[7] ^= 1
    memory.pipe_file(f"/prepared/{name}", bytes(data))
    far.train[0]
    with pytest.raises(RunError, match=f"{name} is damaged"):
        far.train.shards.read(2000, 2010)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        far.verify()
    assert not list((tmp_path / SHARDS).glob("*.tmp"))


def test_a_shard_that_goes_in_the_middle_is_named(
    memory: Any, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    far = streamed("memory://prepared", tmp_path)
    far.train[0]
    for name in far.train.shards.names[1:]:
        memory.rm(f"/prepared/{name}")
    with pytest.raises(RunError, match=r"memory://prepared/train-\d+.*\.bin cannot be read .*3 times"):
        some(far, 50)
    assert "trying again in" in capsys.readouterr().err


def test_a_shard_larger_than_the_cache_is_refused(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.cache_gb=3e-06 holds not even memory://prepared/train-"):
        streamed("memory://prepared", tmp_path, cache_gb=3e-6)


def test_a_folder_of_raw_text_is_still_raw_text(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/raw/a.txt", b"some text " * 500)
    data = bigtrain.data.text(path="memory://raw", cache=str(tmp_path), sequence_length=16, vocab_size=300)
    data.prepare()
    assert len(data.train) > 10
    store.rm("/raw", recursive=True)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 400),
    block=st.integers(1, 60),
    window=st.integers(1, 9),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
)
def test_an_epoch_in_windows_is_a_permutation(n: int, block: int, window: int, seed: int, epoch: int) -> None:
    order = WindowedOrder(n, seed, block, window)
    index = order(np.arange(epoch * n, (epoch + 1) * n))
    assert np.array_equal(np.sort(index), np.arange(n))
    assert [order(epoch * n + at) for at in (0, n // 2, n - 1)] == index[[0, n // 2, n - 1]].tolist()
    for first in range(0, n, block * window):
        inside = index[first : first + block * window]
        assert len(np.unique(inside // block)) <= window
        ranges = order.ranges(order.window_of(epoch * n + first))
        assert sorted(inside.tolist()) == sorted(i for start, stop in ranges for i in range(start, stop))


def test_windows_mix_and_differ_between_epochs_and_seeds() -> None:
    n = 4000
    one, other = WindowedOrder(n, 1, 100, 4), WindowedOrder(n, 2, 100, 4)
    orders = [one(np.arange(n)), one(np.arange(n, 2 * n)), other(np.arange(n))]
    for i, order in enumerate(orders):
        assert (np.abs(np.diff(order)) <= 1).mean() < 0.05
        for before in orders[:i]:
            assert (order == before).mean() < 0.01
    far = WindowedOrder(10**12, 1, 10**7, 16)
    assert len(np.unique(far(np.arange(10**11, 10**11 + 4096)))) == 4096
