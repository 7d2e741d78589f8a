"""Real processes, one a rank, forked from a server that has imported everything: a function runs on all of them."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, Literal

from bigtrain.errors import UserError
from bigtrain.launchers.local import free_port

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a set-up gave no result. `refused`: bigtrain says that this cannot be asked for, here or at all."""

    kind: Literal["refused", "failed"]
    message: str


def start_server(device: Literal["cpu", "cuda"]) -> None:
    """Let the server import while this process goes on; needed once, before the first `run`."""
    os.environ["DS_ACCELERATOR"] = device  # DeepSpeed chooses when it is imported
    get_context("forkserver").set_forkserver_preload(["bigtrain.verify.preload"])
    ensure_running()


def run(
    function: Function, world_size: int, *arguments: Any, device: str, threads: int, timeout_s: float, log: Path
) -> list[Any] | Fault:
    """`function(ranks, *arguments)` on every rank: the results in the order of ranks, or the first fault.

    `log` is the beginning of the path of each rank's output: `<log>-rank_0.log`.
    """
    context = get_context("forkserver")
    port = free_port()
    workers: list[ForkServerProcess] = []
    pipes: list[Connection] = []
    for rank in range(world_size):
        mine, theirs = context.Pipe(duplex=False)
        place = (rank, world_size, port, device, threads, timeout_s, f"{log}-rank_{rank}.log")
        worker = context.Process(target=_rank, args=(theirs, place, function, arguments))
        worker.start()
        theirs.close()
        workers.append(worker)
        pipes.append(mine)
    try:
        return _collect(workers, pipes, time.monotonic() + timeout_s, timeout_s)
    finally:
        for worker, pipe in zip(workers, pipes, strict=True):
            worker.join(0.5)
            if worker.is_alive():
                worker.kill()
                worker.join()
            pipe.close()


def _collect(
    workers: list[ForkServerProcess], pipes: list[Connection], deadline: float, timeout_s: float
) -> list[Any] | Fault:
    answers: dict[int, Any] = {}
    while len(answers) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in answers}
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = ", ".join(str(rank) for rank in waiting.values())
            return Fault("failed", f"rank {silent} gave no answer in {timeout_s:g} s (--timeout)")
        faults: list[Fault] = []
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting[pipe]
            try:
                kind, answer = pickle.loads(pipe.recv_bytes())  # from a process of our own
            except EOFError:
                workers[rank].join(5)
                kind, answer = "failed", f"ended with exit code {workers[rank].exitcode}"
            if kind == "done":
                answers[rank] = answer
            else:
                faults.append(Fault(kind, answer if kind == "refused" else f"rank {rank}: {answer}"))
        if faults:  # a refusal explains the others' lost connections
            return next((fault for fault in faults if fault.kind == "refused"), faults[0])
    return [answers[rank] for rank in range(len(pipes))]


def _rank(
    pipe: Connection, place: tuple[int, int, int, str, int, float, str], function: Function, arguments: Any
) -> None:
    rank, world_size, port, device, threads, timeout_s, log = place
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS=str(threads),
    )
    try:
        import torch

        from bigtrain.distributed import setup, teardown

        torch.set_num_threads(threads)
        ranks = setup("cuda" if device == "cuda" else "cpu", timeout_s)
        answer = function(ranks, *arguments)
        pipe.send_bytes(pickle.dumps(("done", answer)))
        teardown()
    except UserError as error:
        pipe.send_bytes(pickle.dumps(("refused", str(error))))
    except BaseException as error:
        traceback.print_exc()
        said = (str(error).strip().splitlines() or [""])[0]
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(pickle.dumps(("failed", f"{type(error).__name__}: {said} (see {log})")))
