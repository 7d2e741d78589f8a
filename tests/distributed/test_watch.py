"""A rank that dies ends the run on every rank within seconds, and every rank says which one it was and why."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from bigtrain.rollcall import compare

HOST = socket.gethostname()


def life(rank: int, port: int, what: str, who: int, folder: str) -> None:
    """Three ranks that reduce for ever; `who` does `what`."""
    sys.stderr = Path(folder, f"{rank}.err").open("w", buffering=1)  # noqa: SIM115 - as long as the process lives
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from bigtrain.errors import guarded

    sys.exit(guarded(lambda _: work(what.partition(" while ")[0 if rank == who else 2]), []))


def work(what: str) -> int:
    import torch

    from bigtrain import distributed
    from bigtrain.errors import UserError
    from bigtrain.watch import Watch

    ranks = distributed.setup("cpu", timeout_s=60)
    watch = Watch(ranks)
    try:
        for step in range(10**9 if what != "done" else 3):
            if step == 2 and what.startswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 2 and what.startswith("raises"):
                raise ValueError("a planted fault")
            if step == 2 and what.startswith("refuses"):
                raise UserError("a planted refusal")
            if step == 2 and what.startswith("stops"):
                raise SystemExit(75)
            if step == 2 and what == "asleep":
                time.sleep(100)
            distributed.sum_over_ranks(torch.ones(4))
    except BaseException as error:
        raise watch.failed(error) from None
    watch.leave()
    return 0


def run(what: str, who: int, folder: Path) -> tuple[list[int | None], list[str], float]:
    """Exit codes, what each said, seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: list[Any] = [context.Process(target=life, args=(rank, port, what, who, str(folder))) for rank in range(3)]
    for process in ranks:
        process.start()
    began = time.monotonic()
    for process in ranks:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
    said = [(folder / f"{rank}.err").read_text() for rank in range(3)]
    return [process.exitcode for process in ranks], said, time.monotonic() - began


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("what", "code", "own", "reason"),
    [
        ("killed", 1, -9, "its process is gone"),
        ("killed while asleep", 1, -9, "its process is gone"),
        ("raises", 1, 1, "ValueError: a planted fault"),
        ("raises while asleep", 1, 1, "ValueError: a planted fault"),
        ("refuses", 2, 2, "a planted refusal"),
        ("stops", 75, 75, "stopped on request"),
    ],
)
def test_the_cause_is_named_on_every_rank(
    who: int, what: str, code: int, own: int, reason: str, tmp_path: Path
) -> None:
    codes, said, seconds = run(what, who, tmp_path)
    assert codes == [own if rank == who else code for rank in range(3)], said
    for rank in range(3):
        if rank != who:
            assert f"rank {who} on {HOST}: {reason}" in said[rank]
            assert "Traceback" not in said[rank]
    assert ("a planted" in said[who]) == ("planted" in reason)
    assert seconds < 30


def test_ranks_that_are_done_are_not_missed(tmp_path: Path) -> None:
    codes, said, _ = run("done while done", 0, tmp_path)
    assert codes == [0, 0, 0], said
    assert said == ["", "", ""]


def rank(host: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "host": host, "Python": "3.11", "bigtrain": "0.2", "torch": "2.13.0", "deepspeed": "0.19.8",
        "transformers": "5.17", "recipe": "x", "sees": True, "clock": 1000.0, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch": "2.12.0"}, ["rank 1 on b has torch 2.12.0", "rank 0 on a has 2.13.0"]),
        ({"bigtrain": "0.1"}, ["rank 1 on b has bigtrain 0.1"]),
        ({"recipe": "y"}, ["rank 1 on b composed another configuration"]),
        ({"sees": False}, ["rank 1 on b does not see run.dir=runs/x"]),
    ],
)
def test_ranks_that_differ_are_named(change: dict[str, Any], words: list[str]) -> None:
    from bigtrain.errors import UserError

    with pytest.raises(UserError) as error:
        compare([rank(), rank("b", **change)], Path("runs/x"), print)
    assert all(word in str(error.value) for word in words)


def test_a_clock_that_is_off_is_told() -> None:
    said: list[str] = []
    compare([rank(), rank("b", clock=1100.0)], Path("runs/x"), said.append)
    assert "the clock of b is +100 s off" in said[0]
    compare([rank(), rank("b", clock=1003.0)], Path("runs/x"), lambda text: pytest.fail(text))
