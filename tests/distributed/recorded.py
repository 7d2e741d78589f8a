"""Runs that write down the tokens of every batch, to be compared with what `bigtrain data trace` computes."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch import Tensor

from bigtrain.objectives.causal import CausalLM
from tests.distributed import ledger
from tests.distributed.test_elastic import rank_main

WORDS = [
    "recipe=smoke", "engine=ddp", "model.width=16", "model.layers=1", "model.heads=2", "trainer.device=cpu",
    "objective._target_=tests.distributed.recorded.objective", "schedule._target_=tests.distributed.ledger.schedule",
    "trainer.global_batch_size=8", "trainer.micro_batch_size=2", "trainer.log_every=1", "trainer.eval_every=null",
    "trainer.eval_batches=null", "data.held_out=0", "evaluation.report=false", "data.vocab_size=400",
    "data.sequence_length=48", "data.document_separator=null", "run.dir=run", "data.cache=prepared",
]  # fmt: skip
GLOBAL, MICRO = 8, 2


class Recording(CausalLM):
    """Writes the tokens of each sample that the loop is about to train on."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def count(self, batch: Mapping[str, Tensor]) -> int:
        if self.folder:
            rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
            ledger.write(self.folder, {"samples": [tokens(inputs, labels) for inputs, labels in rows]})
        return super().count(batch)


def tokens(inputs: list[int], labels: list[int]) -> list[int]:
    """A sample's tokens without padding: up to the input that has the last target, and this."""
    last = max((at for at, label in enumerate(labels) if label != -100), default=-1)
    return [*inputs[: last + 1], labels[last]] if last >= 0 else []


def objective(folder: str = "") -> Recording:
    return Recording(folder)


def start(cwd: Path, name: str, ranks: int, words: Sequence[str]) -> list[int]:
    """Trains (or goes on) in `cwd`/run; the exit codes of the ranks."""
    book = cwd / name
    book.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    words = [*WORDS, f"objective.folder={book}", f"schedule.folder={book}", *words]
    processes: list[Any] = [
        context.Process(target=rank_main, args=(rank, ranks, port, str(cwd), words)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def run(cwd: Path, name: str, ranks: int, words: Sequence[str]) -> dict[int, list[list[int]]]:
    """Trains (or goes on) in `cwd`/run; the samples of each step from 1 on, in the order of the global batch."""
    codes, book = start(cwd, name, ranks, words), cwd / name
    assert not any(codes), f"{name}: {codes}\n{(cwd / 'output.txt').read_text()[-4000:]}"
    books = ledger.read(book)
    steps: dict[int, list[list[int]]] = {}
    for step in books[0]:
        # A rank's k-th sample is the j-th of its m-th micro-batch, m, j = divmod(k, MICRO).
        placed = {
            k // MICRO * (MICRO * ranks) + rank * MICRO + k % MICRO: sample
            for rank, of in enumerate(books)
            for k, sample in enumerate(of[step])
        }
        steps[step + 1] = [placed[number] for number in range(GLOBAL)]  # type: ignore[misc]
    return steps
