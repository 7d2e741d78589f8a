"""A run that is killed again and again, and goes on each time with another engine on another number of ranks, sees the
samples and the losses of one that was never touched."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import ledger
from tests.support import ran

STEPS, GLOBAL_BATCH = 12, 24
WORDS = [
    "recipe=smoke",
    "model.width=32", "model.layers=2", "model.heads=2",
    "data._target_=tests.distributed.ledger.data",
    "objective._target_=tests.distributed.ledger.objective",
    "schedule._target_=tests.distributed.ledger.schedule",
    f"trainer.max_steps={STEPS}", f"trainer.global_batch_size={GLOBAL_BATCH}", "trainer.micro_batch_size=2",
    "trainer.log_every=1", "trainer.eval_every=null", "trainer.eval_batches=null", "trainer.grad_clip=0.5",
    "trainer.device=cpu", "optimizer.lr=1e-3", "checkpoint.every=1", "checkpoint.keep_last=3",
    "evaluation.report=false", "run.dir=run",
]  # fmt: skip
ENGINES = ["ddp", "fsdp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]
if importlib.util.find_spec("horovod"):
    ENGINES.append("horovod")


def rank_main(rank: int, size: int, port: int, cwd: str, words: Sequence[str]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    os.chdir(cwd)
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from bigtrain.train import main

    torch.set_num_threads(1)
    sys.exit(main(words))


def losses(cwd: Path) -> dict[int, float]:
    """Of each step, as logged last."""
    log = cwd / "run/metrics.jsonl"
    lines = [line for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def link(cwd: Path, name: str, engine: str, size: int, kill_after: int | None, only: int | None = None) -> None:
    """Train on `size` ranks; with `kill_after`, SIGKILL them (or `only` one of them) once that step is logged."""
    book = cwd / name
    book.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    words = [*WORDS, f"engine={engine}", f"objective.folder={book}", f"schedule.folder={book}"]
    ranks: list[Any] = [context.Process(target=rank_main, args=(r, size, port, str(cwd), words)) for r in range(size)]
    for process in ranks:
        process.start()
    deadline, killed = time.monotonic() + 120, False
    try:
        while any(process.is_alive() for process in ranks):
            assert time.monotonic() < deadline, f"{name} hangs: {(cwd / 'output.txt').read_text()[-3000:]}"
            if kill_after is not None and max(losses(cwd), default=0) >= kill_after:
                for process in ranks if only is None else [ranks[only]]:
                    os.kill(process.pid, signal.SIGKILL)
                killed = True
                kill_after = None
            time.sleep(0.01)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    codes = [process.exitcode for process in ranks]
    assert killed or not any(codes), f"{name}: {codes}\n{(cwd / 'output.txt').read_text()[-3000:]}"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], dict[int, list[int]]]:
    """Losses and samples of each step, on one process that was never touched."""
    cwd = tmp_path_factory.mktemp("straight")
    link(cwd, "one", "local", 1, None)
    return losses(cwd), {step: sorted(samples) for step, samples in ledger.read(cwd / "one")[0].items()}


@pytest.mark.parametrize("seed", range(30))
def test_a_chain_of_kills_and_changes(seed: int, straight: Any, tmp_path: Path) -> None:
    want_losses, want_samples = straight
    assert len(want_losses) == STEPS and len({tuple(s) for s in want_samples.values()}) == STEPS
    choose = random.Random(seed)
    chain = []
    at = 0
    while at < STEPS - 3 and len(chain) < 3:
        at = choose.randint(at + 2, min(at + 5, STEPS - 1))
        size = choose.choice([1, 2, 3, 4])
        only = choose.randrange(size) if choose.random() < 0.25 else None
        chain.append((choose.choice(ENGINES), size, at, only))
    chain.append((choose.choice(ENGINES), choose.choice([1, 2, 3, 4]), None, None))
    for index, (engine, size, kill_after, only) in enumerate(chain):
        link(tmp_path, str(index), engine, size, kill_after, only)
        books = ledger.read(tmp_path / str(index))
        for step in set.intersection(*map(set, books)):  # a step that one rank began and another did not is lost
            seen = sorted(sample for book in books for sample in book[step])
            assert seen == want_samples[step], (chain, index, step)
    got = losses(tmp_path)
    assert got.keys() == want_losses.keys(), chain
    apart = {step: abs(got[step] - want_losses[step]) for step in got}
    assert max(apart.values()) < 1e-6, (chain, apart)
    for engine, size, _, _ in chain:
        ran(engine, "elastic")
        ran(engine, f"{size} rank{'s' * (size > 1)}")
