"""Start the ranks of this machine, pass signals on, and end them together: the first failure is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from bigtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER
from bigtrain.launchers.local import Rank

GRACE_S = 10.0
"""How long the others may take to end by themselves once one rank has failed."""


def _start(rank: Rank) -> subprocess.Popen[bytes]:
    """In a process group of its own: a Ctrl-C of the terminal reaches the ranks once, passed on by us."""
    environment = os.environ | rank.environment
    if rank.output is None:
        return subprocess.Popen(rank.command, env=environment, process_group=0)
    rank.output.parent.mkdir(parents=True, exist_ok=True)
    with rank.output.open("ab") as log:
        return subprocess.Popen(rank.command, env=environment, stdout=log, stderr=log, process_group=0)


def _end(running: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Wait, then terminate, then kill."""
    deadline = time.monotonic() + grace_s
    for step in (None, signal.SIGKILL):
        for process in running:
            if step is not None and process.poll() is None:
                process.send_signal(step)
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(0.05)


def run(ranks: Sequence[Rank]) -> int:
    """Run every rank to its end; the exit code of the contract."""
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        insists = asked.count(signal.SIGINT) > 1
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if insists else number)
        if len(asked) == 1:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            print(f"bigtrain: stop requested: after this step and a checkpoint{again}", file=sys.stderr)

    passed = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in passed}
    try:
        started.extend(_start(rank) for rank in ranks)
        while True:
            codes = [process.poll() for process in started]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, EXIT_DONE, EXIT_STOPPED)]
            if failed or None not in codes:
                break
            time.sleep(0.05)
        _end(started, GRACE_S)
        if asked.count(signal.SIGINT) > 1:
            for process in started:
                process.wait()
            print("bigtrain: ended at once; what was saved before stands", file=sys.stderr)
            return EXIT_FAILED
        return _verdict([process.wait() for process in started], failed, ranks)
    finally:
        _end(started, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _verdict(codes: Sequence[int], failed: Sequence[int], ranks: Sequence[Rank]) -> int:
    if not failed:
        return EXIT_STOPPED if EXIT_STOPPED in codes else EXIT_DONE
    first = failed[0]
    code = codes[first]
    if codes[0] == EXIT_USER:
        return EXIT_USER  # rank 0 has said why on the terminal
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    print(f"bigtrain: rank {first} {how}; the other ranks were stopped.", file=sys.stderr)
    log = ranks[first].output
    if log is not None and log.is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        print("\n".join([f"The end of {log}:", *(f"  {line}" for line in tail)]), file=sys.stderr)
    return EXIT_USER if code == EXIT_USER else EXIT_FAILED
