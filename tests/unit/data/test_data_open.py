"""A set of 10^11 tokens in 2,000 shards, which are sparse files: what opening it, and going to a place in it, takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bigtrain.data
from bigtrain.data.loader import batches
from bigtrain.data.order import Order
from bigtrain.data.text_data import TextData

from .conftest import python

TOKENS, SHARDS, LENGTH, BATCH = 10**11, 2_000, 2048, 8
SHARD = TOKENS // SHARDS
FAR = 40_000_000
MOST_MIB = 150

OPEN = """
import json, os, sys
import torch
import bigtrain.data
from bigtrain.data.loader import batches
def resident(key):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))
before = resident("VmRSS")
data = bigtrain.data.text(path=sys.argv[1], sequence_length=int(sys.argv[2]))
data.prepare()
steps = batches(data.train, seed=0, position=int(sys.argv[3]), global_batch_size=8, micro_batch_size=8, prefetch=1)
next(steps)
steps.close()
opened = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if number.isdigit()
          and os.path.exists(f"/proc/self/fd/{number}")]
print(json.dumps({"mib": resident("VmHWM") - before, "shards": sum(name.endswith(".bin") for name in set(opened))}))
"""


@pytest.fixture(scope="module")
def sparse(prepared: TextData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder whose shards hold zeros, but for the first sample of the order, which counts up."""
    folder = tmp_path_factory.mktemp("sparse") / "data"
    shutil.copytree(prepared.folder, folder)
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    train, size = manifest["splits"]["train"], np.dtype(manifest["token_type"]).itemsize
    train["tokens"], train["shards"] = TOKENS, []
    wanted = {position: int(Order((TOKENS - 1) // LENGTH, 0)(position)) * LENGTH for position in (0, FAR)}
    for number in range(SHARDS):
        path = folder / f"sparse-{number:04d}.bin"
        with path.open("wb") as file:
            file.truncate(SHARD * size)
            for start in wanted.values():
                if number == start // SHARD:
                    file.seek(start % SHARD * size)
                    file.write(np.arange(1, LENGTH + 2).astype(manifest["token_type"]).tobytes())
        train["shards"].append({"file": path.name, "bytes": SHARD * size, "sha256": f"{number:064x}",
                                "mtime_ns": path.stat().st_mtime_ns})  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def opened(folder: Path) -> TextData:
    data = bigtrain.data.text(path=str(folder), sequence_length=LENGTH)
    data.prepare()
    return data


@pytest.mark.parametrize("position", [0, FAR])
def test_the_first_batch_comes_from_its_place(sparse: Path, position: int) -> None:
    data = opened(sparse)
    assert len(data.train) == (TOKENS - 1) // LENGTH
    with batches(data.train, seed=0, position=position, global_batch_size=BATCH, micro_batch_size=BATCH) as steps:
        [batch], after = next(steps)
    assert after == position + BATCH
    assert torch.equal(batch["input_ids"][0], torch.arange(1, LENGTH + 1))
    assert torch.equal(batch["labels"][0], torch.arange(2, LENGTH + 2))
    assert not batch["input_ids"][1:].any()
    assert len(json.dumps({"position": after, "data": data.state()})) < 1024


def test_resuming_far_away_reads_what_going_there_reads(sparse: Path) -> None:
    train = opened(sparse).train
    sizes = {"global_batch_size": BATCH, "micro_batch_size": BATCH}
    with batches(train, seed=0, position=FAR - 2 * BATCH, **sizes) as going:
        going_there = [next(going) for _ in range(4)][2:]
    with batches(train, seed=0, position=FAR, **sizes) as resumed:
        for [there], at in going_there:
            [batch], after = next(resumed)
            assert after == at
            assert all(torch.equal(batch[name], there[name]) for name in there)
    assert going_there[0][0][0]["input_ids"].any()  # it was the sample that is not of zeros


def test_opening_reads_the_index_and_the_shards_of_a_batch_alone(sparse: Path) -> None:
    """Memory does not hold the set (200 GB), and the shards that are open are those of the few steps fetched."""
    for position in (0, FAR):
        process = python(f"import sys; sys.argv[1:] = {[str(sparse), str(LENGTH), str(position)]!r}\n{OPEN}")
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        found = json.loads(out.splitlines()[-1])
        assert found["mib"] < MOST_MIB
        assert 0 < found["shards"] <= 5 * 2 * BATCH  # a sample lies in one shard or two
