"""Checkpoints of several ranks: written together, read by any number, and a fault on one of them known to all."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.checkpoint.find import Checkpoint, find
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.load import load
from bigtrain.checkpoint.save import save
from bigtrain.distributed import Ranks
from tests.distributed.ranks import run_on_ranks

ONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
SHAPE = (73, 137)
TOTAL = 73 * 137
SOURCE = torch.arange(TOTAL, dtype=torch.float32)


def newest(run: str | Path) -> Checkpoint:
    found = find(run, lambda message: pytest.fail(message))
    assert found is not None
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shares(ranks: Ranks, source: torch.Tensor) -> list[Fragment]:
    """A tensor that is cut over the ranks, and one that all hold and the last one writes."""
    edges = [TOTAL * i // ranks.world_size for i in range(ranks.world_size + 1)]
    start, end = edges[ranks.rank], edges[ranks.rank + 1]
    return [
        Fragment("cut", SHAPE, start, end - start, {"weight": source[start:end].clone()}, {"step": 3}),
        Fragment("same", (2, 3), 0, 6, {"weight": source[:6].clone()}, owner=ranks.rank == ranks.world_size - 1),
    ]


def read(ranks: Ranks, run: str) -> list[Any]:
    """Are all numbers right; this rank's random states; how often it was said that they start anew."""
    live, said = shares(ranks, torch.zeros(TOTAL)), list[str]()
    state, rng = load(newest(run), live, ranks, warn=said.append)
    expected = shares(ranks, SOURCE)
    right = all(torch.equal(a.tensors["weight"], b.tensors["weight"]) for a, b in zip(live, expected, strict=True))
    return [right and state == {"tokens": 8}, rng and rng["mine"].item(), len(said)]


def write(ranks: Ranks, run: str, step: int) -> Path:
    return save(run, step, shares(ranks, SOURCE), {"tokens": 8}, {"mine": torch.tensor([ranks.rank])}, ranks)


def two_ranks(ranks: Ranks, run: str, written_by_one: str) -> Any:
    """Everything that two ranks are asked in this file, in one job: starting them takes longest."""
    elsewhere = read(ranks, written_by_one)
    assert write(ranks, run, 1).name == "step_00000001"
    return elsewhere, read(ranks, run), faults(ranks, run)


def faults(ranks: Ranks, run: str) -> list[str]:
    """One kind of fault after another on rank 1 alone: nobody may be left waiting by it."""
    told = []

    def attempt(action: Callable[[], object]) -> None:
        try:
            action()
            told.append("done")
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")

    if ranks.rank == 1:  # its disk, or its quota, ends after 1000 bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    attempt(lambda: write(ranks, run, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    broken, strange = shares(ranks, SOURCE), shares(ranks, SOURCE)
    if ranks.rank == 1:
        broken[0].numel -= 1
        strange[1].name = "unknown"
    attempt(lambda: save(run, 3, broken, {}, {}, ranks))
    attempt(lambda: load(newest(run), strange, ranks))
    attempt(lambda: write(ranks, run, 4))
    return told


def test_two_ranks(tmp_path: Path) -> None:
    run, written_by_one = tmp_path / "two", tmp_path / "one"
    write(ONE, str(written_by_one), 7)
    answers = run_on_ranks(two_ranks, 2, str(run), str(written_by_one))

    assert [elsewhere for elsewhere, _, _ in answers] == [[True, None, 1], [True, None, 0]]
    assert [again for _, again, _ in answers] == [[True, 0, 0], [True, 1, 0]]
    limit = os.strerror(errno.EFBIG)
    for told in (told for _, _, told in answers):
        assert told[0].startswith(f"UserError: The checkpoint of step 2 could not be written: rank 1: {limit}"), told
        assert "rank_00001.safetensors" in told[0] and "It needs 40.0 kB" in told[0]
        assert told[1].startswith("RuntimeError: ") and "the engine offers cut with tensors of other sizes" in told[1]
        assert "rank 1: it is a checkpoint of another model: unknown are not in it" in told[2]
        assert told[3] == "done"
    assert names(run / "checkpoints") == ["step_00000001", "step_00000004"]
    files = ["manifest.json", "rank_00000.safetensors", "rank_00001.safetensors"]
    assert names(run / "checkpoints/step_00000001") == files
    assert read(ONE, str(run)) == [True, None, 1]
    assert run_on_ranks(read, 3, str(run)) == [[True, None, 1], [True, None, 0], [True, None, 0]]
