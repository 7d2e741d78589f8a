"""Killed writers, full disks, several ranks, the run folder's lock: real processes, real disks."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.checkpoint.find import Checkpoint, find, verify
from bigtrain.checkpoint.folder import lock, prepare
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.load import load_weights
from bigtrain.checkpoint.save import save
from bigtrain.distributed import Ranks
from bigtrain.errors import UserError

ONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
SIZE = 1000


def whole(value: float, size: int = SIZE) -> list[Fragment]:
    return [Fragment("a", (size,), 0, size, {"weight": torch.full((size,), float(value))}, {"step": 1})]


def newest(run: Path) -> Checkpoint | None:
    """The newest one; a killed writer may leave nothing that needs a warning."""

    def warn(message: str) -> None:
        raise AssertionError(message)

    return find(run, warn)


def value_of(checkpoint: Checkpoint) -> float:
    (weight,) = load_weights(checkpoint).values()
    assert bool((weight == weight[0]).all())
    return float(weight[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def visible(run: Path) -> list[str]:
    return [name for name in names(run / "checkpoints") if not name.startswith(".")]


# -------------------------------------------------------------------------------------------------- killed writers

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}


def die_at(count: int, action: Callable[[], object]) -> bool:
    """Run `action` in a forked process that kills itself at its `count`-th touch of the disk; True: it was killed."""
    child = os.fork()
    if child == 0:
        left = count

        def watch(event: str, arguments: Any) -> None:
            nonlocal left
            if event in TOUCHES:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("step", [30, 20], ids=["next", "again"])
def test_killed_at_each_touch_of_the_disk(tmp_path: Path, step: int) -> None:
    """Old or new, never half: while the next step is written, and while an existing one is replaced."""
    outcomes = []
    for count in range(1, 500):
        run = tmp_path / str(count)
        save(run, 10, whole(10), {}, {}, ONE)
        save(run, 20, whole(20), {}, {}, ONE)
        killed = die_at(count, lambda: save(run, step, whole(99), {}, {}, ONE, keep_last=1))  # noqa: B023
        found = newest(run)
        assert found is not None
        assert value_of(found) in (20, 99)
        assert all(verify(run / "checkpoints" / name) == [] for name in visible(run))
        outcomes.append(value_of(found))
        save(run, 40, whole(40), {}, {}, ONE, keep_last=1)  # the next one works, and clears up
        assert names(run / "checkpoints") == ["step_00000040"]
        if not killed:
            break
    assert outcomes[0] == 20 and outcomes[-1] == 99 and len(outcomes) > 15
    assert outcomes == sorted(outcomes)  # there is one moment at which the new one counts


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """In a process without other threads: what they hold while it forks would be held in its children for good."""
    process = get_context("spawn").Process(target=kill_at_random_moments, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def kill_at_random_moments(run: Path) -> None:
    chance = random.Random()
    save(run, 1, whole(1, 300_000), {}, {}, ONE)
    started = time.monotonic()
    save(run, 2, whole(2, 300_000), {}, {}, ONE)
    takes = time.monotonic() - started
    last, kills = 2, 0
    # On a loaded machine the first children may all die before their first rename, and a slow disk need not be tried as
    # often as a fast one.
    while (kills < 25 and time.monotonic() - started < 60) or last == 2:
        kills += 1
        child = os.fork()
        if child == 0:
            for step in range(last + 1, last + 100):
                save(run, step, whole(step, 300_000), {}, {}, ONE, keep_last=2)
            os._exit(0)
        time.sleep(chance.uniform(0, 3 * takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = newest(run)
        assert found is not None and found.step >= last and value_of(found) == found.step
        assert all(verify(run / "checkpoints" / name) == [] for name in visible(run))
        last = found.step


# --------------------------------------------------------------------------------------------- full and broken disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a disk of our own takes the right to mount one (root)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def test_full_disk(disk: Path) -> None:
    save(disk, 1, whole(1, 50_000), {}, {}, ONE)
    with pytest.raises(UserError) as caught:
        save(disk, 2, whole(2, 300_000), {}, {}, ONE)
    message = str(caught.value)
    assert "checkpoint of step 2" in message and "No space left on device" in message
    assert "rank_00000.safetensors" in message and "It needs 1.2 MB, " in message and "kB were free" in message
    assert names(disk / "checkpoints") == ["step_00000001"]
    found = newest(disk)
    assert found is not None and found.step == 1
    save(disk, 3, whole(3, 50_000), {}, {}, ONE)  # there is room again


def test_disk_full_at_any_byte(disk: Path) -> None:
    """Wherever it runs full (header, tensors, manifest): one message, no traces."""
    save(disk, 1, whole(1, 1), {}, {}, ONE)
    page = resource.getpagesize()
    failures = 0
    for pages in range(30):
        filler = disk / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"x" * (os.statvfs(disk).f_bavail * page - pages * page))
        try:
            save(disk, 2, whole(2, 2 * page), {"note": "x" * page}, {}, ONE)
        except UserError as error:
            failures += 1
            assert "No space left" in str(error)
            assert names(disk / "checkpoints") == ["step_00000001"]
        else:
            assert pages > 8
            break
    assert failures > 8
    assert verify(disk / "checkpoints/step_00000002") == []


def test_read_only_disk(disk: Path) -> None:
    save(disk, 1, whole(1), {}, {}, ONE)
    remount_read_only(disk)
    with pytest.raises(UserError, match="Read-only file system"):
        save(disk, 2, whole(2), {}, {}, ONE)
    with pytest.raises(UserError, match=r"cannot be written: Read-only file system.*run\.dir="):
        prepare(disk / "run")
    with pytest.raises(UserError, match="cannot be written: Read-only"), lock(disk):
        pass
    assert newest(disk) is not None  # reading needs no writing


def test_full_disk_is_said_before_training(disk: Path) -> None:
    (disk / "filler").write_bytes(b"x" * 2**20)
    with pytest.raises(UserError, match="No space left"):
        prepare(disk)
    assert names(disk) == ["filler"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: give another"):
        prepare(tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        prepare(tmp_path / "file/run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("mine")
    with pytest.raises(UserError, match="checkpoints"):
        save(tmp_path / "run", 1, whole(1), {}, {}, ONE)
    assert (tmp_path / "file").read_text() == (tmp_path / "run/checkpoints").read_text() == "mine"


# --------------------------------------------------------------------------------------------------------- the lock

HOLD = """
import sys, time
from bigtrain.checkpoint.folder import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


FORK = """
import os, sys, time
from bigtrain.checkpoint.folder import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def holder(run: Path, code: str = HOLD) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_one_process_at_a_time_and_a_killed_one_is_no_obstacle(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    child = holder(run)
    try:
        with pytest.raises(UserError) as caught, lock(run):
            pass
        message = str(caught.value)
        assert f"{run} is being trained by process {child.pid} on host {socket.gethostname()} since 20" in message
    finally:
        child.kill()
        child.wait()
    with lock(run), pytest.raises(UserError, match=f"process {os.getpid()} "), lock(run):
        pass
    with lock(run):
        pass
    assert names(run) == [".lock"]


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_run(tmp_path: Path) -> None:
    """A data loader's process may outlive the run for a while."""
    child = holder(tmp_path, FORK)
    assert child.stdout is not None
    worker = int(child.stdout.readline())
    try:
        child.kill()
        child.wait()
        with lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_many_at_once_only_one_gets_it(tmp_path: Path) -> None:
    got, refused = [], []
    gate, leave = threading.Barrier(8), threading.Barrier(8)

    def enter() -> None:
        gate.wait()
        try:
            with lock(tmp_path):
                got.append(1)
                leave.wait()
        except UserError:
            refused.append(1)
            leave.wait()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7


def test_a_lock_file_of_nonsense_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff\x00 not json")
    with lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_bytes())["pid"] == os.getpid()
