"""Batches: which samples a rank gets in a step, fetched ahead in a thread or processes. The position is one integer."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bigtrain.data.order import Integers, Order
from bigtrain.data.sets import IGNORE
from bigtrain.errors import RunError, UserError

Batch = dict[str, Tensor]

ORDERED = 16384
"""Positions whose samples are told at once."""
TOGETHER_S, TOGETHER_BYTES = 1e-3, 1 << 20
"""Steps that are read within this time, of so many bytes, go from thread to thread together: else the waking would take
longer than the reading."""


class Dataset(Protocol):
    """A map-style set: a sample is a mapping from names to arrays, tensors or numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def batches(
    dataset: Dataset,
    *,
    seed: int,
    position: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    prefetch: int = 2,
    workers: int = 0,
) -> Batches:
    """The training batches of one rank from `position` on, without end.

    A step that starts at position p is made of the samples `order(p) … order(p + G - 1)`, G = `global_batch_size`, on
    however many ranks: micro-batch m of rank r takes positions p + m·(micro·world) + r·micro + j, 0 <= j < micro.

    Args:
        dataset: the samples; every sample of a micro-batch has the same shapes.
        seed: with the epoch, chooses the permutation.
        position: index of the next global sample: 0 at the start, later what the last step yielded.
        global_batch_size: samples a step over all ranks; a multiple of micro_batch_size · world_size.
        micro_batch_size: samples at once on one rank.
        rank: this rank, in [0, world_size).
        world_size: data-parallel ranks.
        pin_memory: put the batches where a GPU can copy them from without waiting.
        prefetch: steps fetched ahead.
        workers: processes that read the samples, for a set whose samples take long to make; 0: a thread does.

    Returns:
        An iterator of (micro-batches, position after the step); close it, or use it in a `with`.

    Raises:
        UserError: the set is empty.
        ValueError: the batch does not divide, or the rank is none.
    """
    if len(dataset) == 0:
        raise UserError("The training set has no sample.")
    if global_batch_size < 1 or global_batch_size % (micro_batch_size * world_size) or not 0 <= rank < world_size:
        raise ValueError(f"{global_batch_size=} over {micro_batch_size=} and {rank=} of {world_size=}")
    own = getattr(dataset, "order", None)  # a set that is no plain one
    order = own(seed) if own is not None else Order(len(dataset), seed)
    soon = getattr(dataset, "prefetch", None)  # shards that come from afar
    mine = np.arange(global_batch_size, dtype=np.int64).reshape(-1, world_size, micro_batch_size)[:, rank]
    # The order of many steps at once: a call takes a millisecond however few its positions are, and one more an epoch.
    ordered = max(1, min(ORDERED, max(len(dataset), 512)) // global_batch_size)
    ahead = mine + global_batch_size * np.arange(ordered, dtype=np.int64)[:, None, None]

    def micro_batches() -> Iterator[Integers]:
        for start in itertools.count(position, global_batch_size * len(ahead)):
            if soon is not None:
                soon(order, start)
            yield from order(start + ahead).reshape(-1, micro_batch_size)

    read = _read(dataset, micro_batches(), workers)

    def steps() -> Iterator[tuple[list[Batch], int]]:
        for after in itertools.count(position + global_batch_size, global_batch_size):
            step = list(itertools.islice(read, len(mine)))
            yield [pinned(batch) for batch in step] if pin_memory else step, after

    return Batches(steps(), prefetch)


def eval_batches(
    dataset: Dataset,
    *,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_samples: int | None = None,
    pin_memory: bool = False,
    workers: int = 0,
) -> Iterator[Batch]:
    """One pass over a held-out set, in its own order: each sample once over all ranks, as many batches on each rank.

    Batch b of rank r holds samples b·(micro·world) + r·micro + j. Where samples run out, a batch is filled up with
    copies whose labels are all -100 (NaN where they are no integers), so that each has `micro_batch_size` samples.

    Args:
        dataset: the samples.
        micro_batch_size: samples a batch.
        rank: this rank, in [0, world_size).
        world_size: data-parallel ranks.
        max_samples: only the first so many, over all ranks.
        pin_memory: as in `batches`.
        workers: as in `batches`.

    Raises:
        UserError: samples have to be filled up, but have no `labels` to say that they do not count.
    """
    a_round = micro_batch_size * world_size
    count = len(dataset) if max_samples is None else min(len(dataset), max_samples)
    starts = range(rank * micro_batch_size, -(-count // a_round) * a_round, a_round)
    full = [np.arange(start, start + micro_batch_size) for start in starts if start + micro_batch_size <= count]
    for batch in _read(dataset, full, workers):
        yield pinned(batch) if pin_memory else batch
    for start in starts[len(full) :]:
        there = max(0, count - start)
        batch = take(dataset, np.append(np.arange(start, start + there), np.zeros(micro_batch_size - there, np.int64)))
        _blank(batch, there)
        yield pinned(batch) if pin_memory else batch


class Batches:
    """Runs an iterator of (micro-batches, position) ahead in a thread. An error of it is raised where it is due."""

    def __init__(self, steps: Iterator[tuple[list[Batch], int]], prefetch: int) -> None:
        self._ready: queue.SimpleQueue[list[tuple[list[Batch], int]] | BaseException] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        """True for each time that there is room; False: no more."""
        self._next: Iterator[tuple[list[Batch], int]] = iter(())
        self._closed = False
        for _ in range(max(1, prefetch)):
            self._wanted.put(True)
        self._thread = threading.Thread(target=self._fetch, args=(steps,), name="bigtrain-data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[list[Batch], int]:
        if self._closed:
            raise StopIteration
        step = next(self._next, None)
        while step is None:
            steps = self._ready.get()
            if isinstance(steps, BaseException):
                self.close()
                raise steps
            self._wanted.put(True)
            self._next = iter(steps)
            step = next(self._next, None)
        return step

    def close(self) -> None:
        """Ends the thread, after the step that it is reading."""
        self._closed = True
        self._wanted.put(False)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _fetch(self, steps: Iterator[tuple[list[Batch], int]]) -> None:
        while self._wanted.get() and not self._closed:
            together: list[tuple[list[Batch], int]] = []
            size, began = 0, time.monotonic()
            try:
                while not together or (size < TOGETHER_BYTES and time.monotonic() - began < TOGETHER_S):
                    together.append(next(steps))
                    size += sum(values.nbytes for batch in together[-1][0] for values in batch.values())
            except BaseException as error:  # whatever ends the thread, the loop must hear of it
                self._ready.put(together)
                self._ready.put(error)
                return
            self._ready.put(together)


def _read(dataset: Dataset, indices: Iterable[Integers], workers: int) -> Iterator[Batch]:
    """The batch of each of `indices`, in their order."""
    if not workers:
        return (take(dataset, of) for of in indices)
    loader: DataLoader[Any] = DataLoader(_Taken(dataset), sampler=indices, batch_size=None, num_workers=workers)
    # Not by the main thread: there torch would raise the death of a process wherever the training is just then.
    with ThreadPoolExecutor(1) as other:
        return _raised(other.submit(iter, loader).result())


class _Taken(torch.utils.data.Dataset[Any]):
    """Batches by their samples' indices, for processes."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Integers) -> Batch | UserError | RunError:
        try:
            return take(self.dataset, indices)
        except (UserError, RunError) as error:  # raised in there, their words would drown in those of the DataLoader
            return error


def _raised(read: Iterator[Batch | UserError | RunError]) -> Iterator[Batch]:
    try:
        for batch in read:
            if isinstance(batch, UserError | RunError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise RunError(
            f"A process that reads data (trainer.loader_workers) died: {error}. Out of memory, or of /dev/shm?"
        ) from error


def take(dataset: Dataset, indices: Integers) -> Batch:
    """The samples of a batch: at once where the set can (`batch(indices)`: names to arrays), else one by one."""
    at_once = getattr(dataset, "batch", None)
    if at_once is not None:
        return {name: torch.from_numpy(values) for name, values in at_once(indices).items()}
    return collate([dataset[int(index)] for index in indices])


def collate(samples: Sequence[Mapping[str, Any]]) -> Batch:
    """Samples of equal shapes, stacked: each value gets a first dimension of len(samples).

    Raises:
        UserError: names or shapes differ between samples.
    """
    first = samples[0]
    if any(sample.keys() != first.keys() for sample in samples):
        raise UserError(f"The samples of one batch have different names: {sorted({*map(tuple, samples)})}.")
    return {name: _stack(name, [sample[name] for sample in samples]) for name in first}


def _stack(name: str, values: list[Any]) -> Tensor:
    try:
        if isinstance(values[0], Tensor):
            return torch.stack(values)
        return torch.from_numpy(np.stack([np.asarray(value) for value in values]))
    except (ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"The samples of one batch cannot be stacked: '{name}': {error}") from error


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def _blank(batch: Batch, there: int) -> None:
    """Takes the targets from the samples that fill a batch up, those from `there` on."""
    if "labels" not in batch:
        raise UserError(
            "The held-out samples do not divide evenly over the ranks and have no 'labels' that could be set to -100 "
            "to fill up. Add labels, or make their number a multiple of micro_batch_size x ranks."
        )
    labels = batch["labels"]
    labels[there:] = torch.nan if labels.is_floating_point() else IGNORE
