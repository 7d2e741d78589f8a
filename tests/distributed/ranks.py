"""Run a function on N gloo ranks, each a process of its own, and bring back what it returns on each."""

from __future__ import annotations

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any


def run_on_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout_s: float = 240) -> list[Any]:
    """`function(ranks, *arguments)` on every rank; the results in the order of ranks.

    A failure on any rank is an AssertionError with that rank's traceback; the other ranks are ended by their pid.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers, pipes = [], []
    for rank in range(world_size):
        mine, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_rank, args=(theirs, function, rank, world_size, port, arguments))
        worker.start()
        theirs.close()
        workers.append(worker)
        pipes.append(mine)
    answers: dict[int, Any] = {}
    failures: list[str] = []
    deadline = time.monotonic() + timeout_s
    try:
        while len(answers) < world_size and not failures:
            ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers], deadline - time.monotonic())
            if not ready:
                failures.append(f"ranks {sorted(set(range(world_size)) - set(answers))} silent after {timeout_s} s")
            for pipe in ready:
                rank = pipes.index(pipe)
                try:
                    fault, answer = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    workers[rank].join()
                    fault, answer = f"ended with exit code {workers[rank].exitcode}", None
                answers[rank] = answer
                if fault:
                    failures.append(f"rank {rank} of {world_size}: {fault}")
    finally:
        for worker in workers:
            worker.join(5 if not failures else 0.2)
            if worker.is_alive():
                worker.kill()
                worker.join()
    assert not failures, "\n".join(failures)
    return [answers[rank] for rank in range(world_size)]


def _rank(pipe: Connection, function: Callable[..., Any], rank: int, size: int, port: int, arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    try:
        import torch

        from bigtrain.distributed import setup, teardown

        torch.set_num_threads(1)
        ranks = setup("cpu", timeout_s=120)
        answer = function(ranks, *arguments)
        pipe.send_bytes(pickle.dumps((None, answer)))  # by value: `send` would hand tensors over as files
        teardown()
    except BaseException:
        pipe.send_bytes(pickle.dumps((traceback.format_exc(), None)))
