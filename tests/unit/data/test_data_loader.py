"""Which samples a rank gets, and how the thread behind it behaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import loader as loader_module
from bigtrain.data.loader import Batch, batches, collate, eval_batches
from bigtrain.data.order import Order
from bigtrain.errors import RunError, UserError


class Numbers:
    """A user's own set: sample i is the number i, told in all types that a sample may have."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": np.array([i, i]), "labels": torch.tensor([i]), "id": i, "weight": 0.5}


def take(n: int, world: int, micro: int, size: int, steps: int, position: int = 0) -> list[list[list[Batch]]]:
    """[rank][step] -> micro-batches"""
    ranks = []
    for rank in range(world):
        with batches(
            Numbers(n),
            seed=5,
            position=position,
            global_batch_size=size,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
        ) as loader:
            ranks.append([next(loader)[0] for _ in range(steps)])
    return ranks


@settings(max_examples=25, deadline=None)
@given(world=st.integers(1, 4), micro=st.integers(1, 3), accumulation=st.integers(1, 3), n=st.integers(1, 50))
def test_a_steps_samples_do_not_depend_on_ranks_or_micro_batches(
    world: int, micro: int, accumulation: int, n: int
) -> None:
    size = world * micro * accumulation
    ranks = take(n, world, micro, size, steps=3, position=4)
    for step in range(3):
        positions = np.arange(4 + step * size, 4 + (step + 1) * size).reshape(accumulation, world, micro)
        for rank in range(world):
            assert len(ranks[rank][step]) == accumulation
            for m, batch in enumerate(ranks[rank][step]):
                assert batch["id"].tolist() == Order(n, 5)(positions[m, rank]).tolist()


def test_position_counts_samples_and_resumes_anywhere() -> None:
    common: Any = {"seed": 1, "global_batch_size": 6, "micro_batch_size": 2}
    with batches(Numbers(10), position=0, **common) as loader:
        whole = [next(loader) for _ in range(5)]
    assert [position for _, position in whole] == [6, 12, 18, 24, 30]
    with batches(Numbers(10), position=whole[2][1], **common) as loader:
        again = [next(loader) for _ in range(2)]
    for (before, _), (after, _) in zip(whole[3:], again, strict=True):
        assert [b["id"].tolist() for b in before] == [b["id"].tolist() for b in after]
    epoch = [i for micro_batches, _ in whole for b in micro_batches for i in b["id"].tolist()][:10]
    assert sorted(epoch) == list(range(10))


def test_samples_are_stacked_with_their_types() -> None:
    batch = collate([Numbers(9)[3], Numbers(9)[4]])
    assert batch["input_ids"].tolist() == [[3, 3], [4, 4]] and batch["input_ids"].dtype == torch.int64
    assert batch["labels"].tolist() == [[3], [4]] and batch["id"].tolist() == [3, 4]
    assert batch["weight"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([{"x": np.zeros(2)}, {"x": np.zeros(3)}], "'x'"),
        ([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], "'x'"),
        ([{"x": 1}, {"y": 1}], "different names"),
    ],
)
def test_samples_that_do_not_fit_together(samples: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        collate(samples)


class Breaks(Numbers):
    def __getitem__(self, i: int) -> dict[str, Any]:
        if i == 7:
            raise OSError("the disk went away")
        return super().__getitem__(i)


def test_an_error_while_reading_is_raised_where_its_batch_is_due() -> None:
    due = next(p for p in range(10) if Order(10, 1)(p) == 7)
    with batches(Breaks(10), seed=1, position=0, global_batch_size=1, micro_batch_size=1) as loader:
        for _ in range(due):
            next(loader)
        with pytest.raises(OSError, match="the disk went away"):
            next(loader)
        with pytest.raises(StopIteration):
            next(loader)


def threads() -> int:
    return sum(thread.name == "bigtrain-data" for thread in threading.enumerate())


def test_it_reads_ahead_a_little_and_its_thread_ends() -> None:
    read: list[int] = []

    class Watched(Numbers):
        def __getitem__(self, i: int) -> dict[str, Any]:
            read.append(i)
            time.sleep(2 * loader_module.TOGETHER_S)
            return super().__getitem__(i)

    before = threads()
    loader = batches(Watched(1000), seed=1, position=0, global_batch_size=2, micro_batch_size=2, prefetch=2)
    next(loader)
    time.sleep(0.3)
    assert 4 <= len(read) <= 10  # one step taken, two in the queue, one in the hand, not the whole set
    assert threads() == before + 1
    loader.close()
    loader.close()
    assert threads() == before
    with pytest.raises(StopIteration):
        next(loader)


class Faulty(Numbers):
    """Cannot read its sample 7."""

    def __init__(self, n: int, how: str) -> None:
        super().__init__(n)
        self.how = how

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i == 7 and self.how == "told":
            raise RunError("sample 7 is gone")
        if i == 7 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def test_processes_read_what_a_thread_reads() -> None:
    settings: dict[str, Any] = {"seed": 5, "position": 6, "global_batch_size": 6, "micro_batch_size": 2}
    with batches(Numbers(20), **settings) as one, batches(Numbers(20), **settings, workers=2) as several:
        for _ in range(8):  # into the third epoch
            (a, after), (b, after_too) = next(one), next(several)
            assert after == after_too
            assert [{k: v.tolist() for k, v in batch.items()} for batch in a] == [
                {k: v.tolist() for k, v in batch.items()} for batch in b
            ]
    held_out = [list(eval_batches(Numbers(11), micro_batch_size=3, workers=workers)) for workers in (0, 2)]
    assert [batch["labels"].tolist() for batch in held_out[0]] == [batch["labels"].tolist() for batch in held_out[1]]
    assert not multiprocessing.active_children(), "processes are left"


@pytest.mark.parametrize(
    ("how", "words"), [("told", "^sample 7 is gone$"), ("killed", "process that reads data.*loader_workers.*died")]
)
def test_a_fault_in_a_process_that_reads_is_told(how: str, words: str) -> None:
    settings: dict[str, Any] = {"seed": 5, "position": 0, "global_batch_size": 2, "micro_batch_size": 1}
    with batches(Faulty(10, how), **settings, workers=2) as ahead, pytest.raises(RunError, match=words):
        for _ in range(5):
            next(ahead)


@settings(max_examples=12, deadline=None)
@given(size=st.sampled_from([64, 96, 120]), accumulation=st.integers(1, 2), position=st.integers(0, 10**9))
def test_the_order_is_the_same_for_every_number_of_ranks_up_to_64(size: int, accumulation: int, position: int) -> None:
    n = 10**6
    wanted = Order(n, 5)(np.arange(position, position + 2 * size)).tolist()
    for world in (world for world in range(1, 65) if size % (world * accumulation) == 0):
        micro = size // (world * accumulation)
        ranks = take(n, world, micro, size, steps=2, position=position)
        seen = [
            number
            for step in range(2)
            for m in range(accumulation)
            for rank in range(world)
            for number in ranks[rank][step][m]["id"].tolist()
        ]
        assert seen == wanted


def test_a_batch_that_does_not_divide_or_an_empty_set() -> None:
    with pytest.raises(ValueError, match="global_batch_size=6"):
        batches(Numbers(9), seed=1, position=0, global_batch_size=6, micro_batch_size=4)
    with pytest.raises(UserError, match="no sample"):
        batches(Numbers(0), seed=1, position=0, global_batch_size=6, micro_batch_size=6)


@settings(deadline=None)
@given(n=st.integers(1, 40), world=st.integers(1, 5), micro=st.integers(1, 5), most=st.none() | st.integers(1, 50))
def test_evaluation_sees_each_sample_once_and_ranks_stay_in_step(
    n: int, world: int, micro: int, most: int | None
) -> None:
    """The same samples, however many ranks share them, and however many at once."""
    ranks = [
        list(eval_batches(Numbers(n), micro_batch_size=micro, rank=r, world_size=world, max_samples=most))
        for r in range(world)
    ]
    assert len({len(of) for of in ranks}) == 1
    assert all(len(batch["labels"]) == micro for of in ranks for batch in of)
    seen = [int(label) for of in ranks for batch in of for label in batch["labels"].flatten() if label != -100]
    assert sorted(seen) == list(range(n if most is None else min(n, most)))


def test_evaluation_cannot_fill_up_without_labels() -> None:
    class Bare(Numbers):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"x": i}

    assert len(list(eval_batches(Bare(4), micro_batch_size=2))) == 2
    with pytest.raises(UserError, match="no 'labels'"):
        list(eval_batches(Bare(5), micro_batch_size=2))
