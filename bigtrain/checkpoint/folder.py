"""The run folder: that it can be written, that one process at a time trains in it, and how its disk faults read."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bigtrain.errors import UserError

LOCK = ".lock"
_log = logging.getLogger(__name__)
_held: set[int] = set()
"""Descriptors of the locks of this process: a forked child closes them, else it would hold the lock after us."""


def _drop_in_child() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_drop_in_child)


def prepare(run_dir: str | Path) -> Path:
    """Make the run folder where it is missing and prove that files can be written in it.

    Proved by writing one: permission bits say nothing about a read-only disk, a quota, or to root. Raises UserError.
    """
    folder = Path(run_dir)
    probe = folder / f".probe.{socket.gethostname()}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"bigtrain")
        probe.unlink()
    except FileExistsError as error:
        raise UserError(f"The run folder {folder} is a file: give another with run.dir=") from error
    except OSError as error:
        with suppress(OSError):
            probe.unlink()
        raise UserError(
            f"The run folder {folder} cannot be written: {reason(error)}. Give another with run.dir="
        ) from error
    return folder


@contextmanager
def lock(run_dir: str | Path) -> Iterator[None]:
    """Hold the run folder for training. UserError where another process trains in it.

    The kernel gives the lock (flock) back when its holder ends, however it ends: a killed run leaves no obstacle. What
    the file holds (host, process, since when) is only for the message.
    """
    folder = prepare(run_dir)
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be locked: {reason(error)}") from error
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{folder} is being trained by {_holder(descriptor)}. Wait for it, or give another run.dir="
            raise UserError(message) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise UserError(f"The run folder {folder} cannot be locked: {reason(error)}") from error
            _log.warning("%s: this file system has no locks (%s); start only one training in it", folder, reason(error))
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:
            raise UserError(f"The run folder {folder} cannot be written: {reason(error)}") from error
        yield
    finally:
        if descriptor in _held:  # not so in a forked child, which has closed its copy
            _held.remove(descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on host {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # it has the lock and has not yet written its name
        return "another process"


def reason(error: OSError) -> str:
    """`No space left on device: /runs/a/file`, from an OSError."""
    return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")


def free(folder: Path) -> int:
    """Free bytes on the disk of `folder`, or of its nearest parent that exists; 0 where the disk does not say."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def human(size: float) -> str:
    """Bytes as people read them: `1.3 GB` (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it; what is not there is no fault."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
