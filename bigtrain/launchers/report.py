"""Small files in the run folder that carry what foreign launchers lose on the way.

torchrun, deepspeed and horovodrun pass no SIGUSR1 on, give ranks 30 seconds after SIGTERM, turn every exit code into 1,
and train on when the command that started them is killed. So `.stop` asks the ranks to end after their step, `.exit`
says how rank 0 ended, and `.command-HOST` says whose ranks they are.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bigtrain.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER

STOP, EXIT = ".stop", ".exit"
FAILURES = ".failures"
"""Where a job script notes how far the run was at each failure."""
LOOK_S, FIRST_S = 1.0, 3.0


def _command(run_dir: Path) -> Path:
    return run_dir / f".command-{socket.gethostname()}"


def _alive(pid: str) -> str | None:
    """When the process began, in ticks since the machine did: another with the same number began later."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return fields[19] if fields[0] != "Z" else None


@contextmanager
def in_charge(run_dir: Path) -> Iterator[None]:
    """In the command: while it lives, the ranks on this host live."""
    with suppress(OSError):
        _command(run_dir).write_text(str(os.getpid()))
    try:
        yield
    finally:
        with suppress(OSError):
            _command(run_dir).unlink(missing_ok=True)


def clear(run_dir: Path) -> None:
    """Forget what an earlier start of the run left."""
    for name in (STOP, EXIT, FAILURES):
        (run_dir / name).unlink(missing_ok=True)


def ask_to_stop(run_dir: Path) -> None:
    """Ask every rank of the run to end after its step and a checkpoint."""
    with suppress(OSError):
        (run_dir / STOP).touch()


def listen(run_dir: Path) -> None:
    """In a rank: turn `.stop` into a SIGUSR1 of its own, and die with the command that started it on this host."""
    command = _command(run_dir).read_text() if _command(run_dir).exists() else ""
    since = _alive(command)  # None: there is none (a job script), or it cannot be seen from a container

    def look() -> None:
        while not (run_dir / STOP).exists():
            time.sleep(LOOK_S)
            if since and _alive(command) != since:
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=look, name="stop", daemon=True).start()


def record(run_dir: Path, rank: int, code: int) -> int:
    """In a rank: keep its exit code (rank 0 speaks for all), and return what to tell the launcher: a stop after a
    checkpoint is no failure."""
    if rank == 0:
        with suppress(OSError):
            (run_dir / EXIT).write_text(str(code))
    return EXIT_DONE if code == EXIT_STOPPED else code


def may_speak(run_dir: Path, rank: int) -> bool:
    """In a rank that has met wrong input: is it the one to say so? Rank 0 is, where it has met it too."""
    deadline = time.monotonic() + (FIRST_S if rank else 0.0)
    while not (run_dir / EXIT).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    try:
        with (run_dir / EXIT).open("x") as file:
            file.write(str(EXIT_USER))
    except FileExistsError:
        return False
    except OSError:
        return rank == 0
    return True


def recorded(run_dir: Path) -> int | None:
    """How the run ended, as its ranks tell."""
    try:
        return int((run_dir / EXIT).read_text())
    except (OSError, ValueError):
        return None
