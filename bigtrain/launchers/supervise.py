"""Start the processes of a plan, pass signals on, and end them together: the first failure is named.

On each host of `launcher=ssh` it runs as a program of its own (`host`): the ranks of that host in, exit code out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from bigtrain.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER
from bigtrain.launchers.base import Process
from bigtrain.launchers.report import ask_to_stop, recorded

GRACE_S = 10.0
"""How long the others may take to end by themselves once one rank has failed."""


def _start(process: Process) -> subprocess.Popen[bytes]:
    """In a process group of its own: a Ctrl-C of the terminal reaches the ranks once, passed on by us."""
    environment = os.environ | process.environment
    stdin = subprocess.PIPE if process.reached == "stdin" else None
    if process.output is None:
        return subprocess.Popen(process.command, env=environment, stdin=stdin, process_group=0)
    process.output.parent.mkdir(parents=True, exist_ok=True)
    with process.output.open("ab") as log:
        return subprocess.Popen(process.command, env=environment, stdin=stdin, stdout=log, stderr=log, process_group=0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started and did not put into a session of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(running: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Wait, then kill."""
    deadline = time.monotonic() + grace_s
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in running:
        if process.poll() is None:
            if process.stdin is not None:  # the far end of an ssh kills its ranks when this is closed
                with suppress(OSError):
                    process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(2.0)
            _kill(process)


def run(processes: Sequence[Process], run_dir: Path | None = None) -> int:
    """Run every process to its end; the exit code of the contract.

    `run_dir` is the run's folder, for those that are `reached` through it.
    """
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        insists = asked.count(signal.SIGINT) > 1
        for process, plan in zip(started, processes, strict=False):
            if process.poll() is None:
                _kill(process) if insists and plan.reached != "stdin" else _ask(process, plan, number, run_dir)
        if len(asked) == 1:
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            print(f"bigtrain: stop requested: after this step and a checkpoint{again}", file=sys.stderr)

    passed = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in passed}
    try:
        started.extend(_start(process) for process in processes)
        while True:
            codes = [process.poll() for process in started]
            stopped = (EXIT_STOPPED, *(-number for number in asked))  # a rank that did not listen yet had done nothing
            failed = [rank for rank, code in enumerate(codes) if code not in (None, EXIT_DONE, *stopped)]
            if failed or None not in codes:
                break
            time.sleep(0.05)
        _end(started, GRACE_S)
        if asked.count(signal.SIGINT) > 1:
            for running in started:
                running.wait()
            print("bigtrain: ended at once; what was saved before stands", file=sys.stderr)
            return EXIT_FAILED
        return _verdict([running.wait() for running in started], failed, processes, run_dir)
    finally:
        _end(started, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask(process: subprocess.Popen[bytes], plan: Process, number: int, run_dir: Path | None) -> None:
    if plan.reached == "signal":
        process.send_signal(number)
    elif plan.reached == "folder":
        assert run_dir is not None
        ask_to_stop(run_dir)
    elif process.stdin is not None:
        with suppress(OSError, ValueError):
            process.stdin.write(f"{number}\n".encode())
            process.stdin.flush()


def _verdict(codes: Sequence[int], failed: Sequence[int], processes: Sequence[Process], run_dir: Path | None) -> int:
    if run_dir is not None and any(process.reached == "folder" for process in processes):
        told = recorded(run_dir)
        if told in (EXIT_USER, EXIT_STOPPED):
            return told
    if not failed:
        return EXIT_DONE if all(code == EXIT_DONE for code in codes) else EXIT_STOPPED
    first = failed[0]
    code = codes[first]
    if codes[0] == EXIT_USER:
        return EXIT_USER  # rank 0 has said why on the terminal
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    others = "; the others were stopped" if len(processes) > 1 else ""
    print(f"bigtrain: {processes[first].name or f'rank {first}'} {how}{others}.", file=sys.stderr)
    log = processes[first].output
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:] if log and log.is_file() else []
    if tail:
        print("\n".join([f"The end of {log}:", *(f"  {line}" for line in tail)]), file=sys.stderr)
    return EXIT_USER if code == EXIT_USER else EXIT_FAILED


def host(description: str) -> int:
    """The ranks of this host, as `launcher=ssh` describes them in JSON.

    Standard input is the line to the command: a number is a signal to pass on; its end means that the command is gone.
    """
    processes = [
        Process(item["command"], item["environment"], Path(item["output"]) if item["output"] else None, item["name"])
        for item in json.loads(description)
    ]

    def listen() -> None:
        for line in sys.stdin:
            os.kill(os.getpid(), int(line))
        os.kill(os.getpid(), signal.SIGKILL)  # the ranks die with us

    threading.Thread(target=listen, daemon=True).start()
    return run(processes)


if __name__ == "__main__":
    sys.exit(host(sys.argv[1]))
