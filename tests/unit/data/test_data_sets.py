"""Packing, over real shards."""

from __future__ import annotations

import os
import time
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.sets import PackedSet, open_set
from bigtrain.data.shards import Shards, read_manifest
from bigtrain.data.text_data import TextData
from bigtrain.data.writing import SPLITS, SplitWriter, Work, join

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def shards(folder: Path, lengths: list[int], shard_tokens: int, token_type: str = "uint16") -> Shards:
    """Documents of these lengths; the tokens are 1, 2, 3, …"""
    work = Work(folder / "set")
    work.begin()
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    half = len(lengths) // 2  # in two calls, as batches come
    cut = sum(lengths[:half])
    places = np.stack([np.zeros(len(lengths)), np.cumsum([0, *lengths[:-1]])], axis=1).astype(np.uint64)
    with work.unit(0) as (unit, marker):
        writers = {split: SplitWriter(unit, split, 0, token_type, shard_tokens) for split in SPLITS}
        writers["train"].write(ids[:cut], np.array(lengths[:half], dtype=np.int64), places[:half])
        writers["train"].write(ids[cut:], np.array(lengths[half:], dtype=np.int64), places[half:])
        marker["splits"] = {split: writer.close() for split, writer in writers.items()}
    entry: Any = join(work, [marker])["train"]
    work.finish()
    return Shards(folder / "set", token_type, entry)


def packed(t: Shards, length: int, packing: str, cache: Path, pad_id: int = 0, **settings: Any) -> PackedSet:
    """`open_set` with what tests leave alone."""
    asked = {"document_masks": False, "remainder": False, **settings}
    return open_set(t, sequence_length=length, packing=packing, pad_id=pad_id, cache=cache, **asked)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, shard_tokens=st.integers(1, 50), length=st.integers(1, 15), wide=st.booleans())
def test_concat_reads_the_stream_wherever_shards_end(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_tokens: int, length: int, wide: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    t = shards(folder, lengths, shard_tokens, "uint32" if wide else "uint16")
    stream = np.arange(1, sum(lengths) + 1)
    assert len(list((folder / "set").glob("train-0*.bin"))) == -(-len(stream) // shard_tokens)
    train = packed(t, length, "concat", folder)
    assert len(train) == (len(stream) - 1) // length
    for k, sample in enumerate(train):  # ends by IndexError, as a sequence does
        assert sample["input_ids"].tolist() == stream[k * length : (k + 1) * length].tolist()
        assert sample["labels"].tolist() == stream[k * length + 1 : (k + 1) * length + 1].tolist()
    held = packed(t, length, "concat", folder, remainder=True)
    targets = np.concatenate([[0], *[sample["labels"] for sample in held]])
    assert targets[targets > 0].tolist() == stream[1:].tolist()  # every token but the first is a target once


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 15))
def test_without_packing_a_sample_is_a_document(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    documents = packed(shards(folder, lengths, 7), length, "none", folder, pad_id=99)
    assert len(documents) == len(lengths)
    starts = np.cumsum([0, *lengths])
    for (start, stop), sample in zip(pairwise(starts), documents, strict=True):
        tokens = np.arange(start + 1, stop + 1)[: length + 1]
        n = len(tokens) - 1
        assert sample["input_ids"].tolist() == [*tokens[:-1].tolist(), *[99] * (length - n)]
        assert sample["labels"].tolist() == [*tokens[1:].tolist(), *[-100] * (length - n)]
        assert sample["input_ids"].dtype == sample["labels"].dtype == np.int64


def test_reading_a_sample_takes_microseconds(tmp_path: Path) -> None:
    train = packed(shards(tmp_path, [1000] * 60, 9_999), 512, "concat", tmp_path)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for k in range(100):
            train[k]
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 50e-6


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    """Only so many may be open at once."""
    t = shards(tmp_path, [10] * 200, shard_tokens=2)  # 1,000 files
    train = packed(t, 4, "concat", tmp_path)
    assert sum(int(sample["input_ids"].sum()) for sample in train) == sum(range(1, len(train) * 4 + 1))
    opened = [str(number.resolve()) for number in Path("/proc/self/fd").iterdir()]
    mapped = Path("/proc/self/maps").read_text().splitlines()
    held = sum(f"{tmp_path}/set/train-0" in line for line in [*opened, *mapped])
    assert 0 < held <= 256 + 2  # what is kept, and what the last sample was cut from


@pytest.mark.parametrize("packing", ["concat", "best_fit", "none"])
def test_no_sample_outside(tmp_path: Path, packing: str) -> None:
    samples = packed(shards(tmp_path, [3, 2, 4], 7), 4, packing, tmp_path)
    for index in (-1, len(samples)):
        with pytest.raises(IndexError):
            samples[index]
        with pytest.raises(IndexError):
            samples.batch([0, index])


def test_a_file_is_held_while_it_is_read(prepared: TextData, tmp_path: Path) -> None:
    """A store's files are opened anew for each read: let go too early, their number may mean another file."""
    other = tmp_path / "other.bin"
    other.write_bytes(bytes(1 << 20))
    taken: list[int] = []

    class Opened(FileIO):
        def __del__(self) -> None:
            self.close()
            taken.append(os.open(other, os.O_RDONLY))  # the lowest number that is free: that of the file just closed

    manifest = read_manifest(prepared.folder)
    entry = manifest["splits"]["train"]
    plain = Shards(prepared.folder, manifest["token_type"], entry)
    anew = Shards(prepared.folder, manifest["token_type"], entry, lambda name: Opened(prepared.folder / name))
    try:
        assert (anew.read_many([0, 500], 64) == plain.read_many([0, 500], 64)).all()
        assert (anew.read(7, 90) == plain.read(7, 90)).all()
        assert taken
    finally:
        for number in taken:
            os.close(number)
