"""Commands are pure; the supervisor ends ranks together and names the first failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bigtrain.config.compose import compose
from bigtrain.launchers import plan
from bigtrain.launchers.base import Job, Process
from bigtrain.launchers.supervise import run


def test_local() -> None:
    config = compose(["recipe=quickstart", "trainer.device=cpu", "run.dir=r", "launcher.processes=2"]).config
    ranks = plan(Job(config, trusted=("mine.Model",), port=1234, cores=8)).processes
    assert [rank.command for rank in ranks] == [
        ["python", "-m", "bigtrain.train", "--run-dir", "r", "--trust", "mine.Model"]
    ] * 2
    assert [rank.environment["RANK"] for rank in ranks] == ["0", "1"]
    assert ranks[0].environment == {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234", "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    assert [rank.output for rank in ranks] == [None, Path("r/logs/rank_1.log")]


def test_threads_of_the_users_own_stand_and_the_setting_stands_over_them() -> None:
    for words, threads in ([], "3"), (["launcher.threads=2"], "2"):
        config = compose(["recipe=quickstart", "trainer.device=cpu", *words]).config
        rank, *_ = plan(Job(config, cores=8, env={"OMP_NUM_THREADS": "3"})).processes
        assert rank.environment["OMP_NUM_THREADS"] == threads


def python(code: str, output: Path | None = None) -> Process:
    return Process([sys.executable, "-c", code], {}, output)


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((75, 75), 75), ((2, 0), 2), ((0, 3), 1), ((1, 0), 1)])
def test_exit_codes(codes: tuple[int, int], expected: int, tmp_path: Path) -> None:
    ranks = [python(f"raise SystemExit({codes[0]})"), python(f"raise SystemExit({codes[1]})", tmp_path / "rank_1.log")]
    assert run(ranks) == expected


def test_the_first_failure_is_named_with_the_end_of_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtrain.launchers.supervise.GRACE_S", 0.2)
    log = tmp_path / "logs" / "rank_1.log"
    start = time.monotonic()
    assert run([python("import time; time.sleep(60)"), python("print('boom'); raise SystemExit(7)", log)]) == 1
    assert time.monotonic() - start < 20
    message = capfd.readouterr().err
    assert "rank 1 ended with exit code 7" in message and "boom" in message


def test_a_killed_rank_is_named_by_its_signal(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")]) == 1
    assert "rank 0 was killed by SIGKILL" in capfd.readouterr().err


def test_signals_are_passed_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)"
    )

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    before = signal.getsignal(signal.SIGTERM)
    assert run([python(code)]) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_die_with_the_process_that_supervises_them(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    rank = (
        "from bigtrain.train import die_with_parent; import os, pathlib, time; die_with_parent();"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    code = (
        "import sys; from bigtrain.launchers.base import Process; from bigtrain.launchers.supervise import run\n"
        f"run([Process([sys.executable, '-c', {rank!r}], {{}}, None)])"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.02)
    supervisor.kill()
    supervisor.wait()
    status = Path(f"/proc/{pid_file.read_text()}/status")
    deadline = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline, "the rank outlived its supervisor"
        time.sleep(0.05)
