"""Two hosts over ssh: the same losses from any launcher; a rank dies, and the run ends everywhere and says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import STEPS, Job
from tests.cluster.lab import wait_for
from tests.cluster.ssh import HOSTS, SshLab
from tests.support import ran

END_S = 30.0
"""A run has ended on both hosts within this time of a fault, and its user knows why."""


class SshRun:
    """A job under a launcher that the user started on the hub."""

    def __init__(self, lab: SshLab, job: Job, launcher: str):
        self.lab, self.job, self.launcher = lab, job, launcher
        self._log = job.folder.with_name(f"{job.folder.name}.terminal")
        hostfile = job.folder.with_name("hostfile")
        hostfile.write_text("".join(f"{host} slots=1\n" for host in HOSTS))
        if launcher == "bare deepspeed":
            words = ["deepspeed", "--hostfile", str(hostfile), "--module", "bigtrain.train", *job.words]
        else:
            words = ["bigtrain", "train", *job.words, f"launcher={launcher}", f"launcher.hostfile={hostfile}"]
        self._process = lab.start(words, job.folder.parent, self._log)

    def said(self) -> str:
        """What the user has read on the terminal."""
        return self._log.read_text(errors="replace")

    def left(self) -> dict[str, list[int]]:
        """Its processes on each host."""
        return {host: self.lab.processes(host, str(self.job.folder)) for host in HOSTS}

    def ended(self) -> bool:
        """The command has, and nothing of the run is left on a host."""
        return self._process.poll() is not None and not any(self.left().values())

    def code(self) -> int:
        """The exit code of the command."""
        return self._process.wait(1)

    def wait_until_trains(self) -> None:
        """Both ranks are in the loop."""
        wait_for(f"{self.launcher} to train", 180, lambda: self.job.step() > 2,
                 lambda: self.said()[-3000:] if self._process.poll() is not None else None)  # fmt: skip

    def stop(self) -> None:
        """Whatever is left of it goes with the hosts."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextmanager
def runs(lab: SshLab, folder: Path, data: str, *launchers: str, go: bool = False) -> Iterator[list[SshRun]]:
    """The same run under each launcher, at once."""
    started = [SshRun(lab, Job(folder / launcher.replace(" ", "-"), data, go), launcher) for launcher in launchers]
    try:
        yield started
    finally:
        for run in started:
            run.stop()


def assert_ended(runs: list[SshRun], *named: str) -> None:
    """Each within the time, with a code that says so, and with all of these words."""
    start, took = time.monotonic(), dict.fromkeys([run.launcher for run in runs], 0.0)

    def all_have() -> bool:
        took.update({run.launcher: time.monotonic() - start for run in runs if not took[run.launcher] and run.ended()})
        return all(took.values())

    def still() -> str:
        return "\n".join(f"{run.launcher}: left {run.left()}\n{run.said()[-3000:]}" for run in runs)

    wait_for("the end of the runs", 2 * END_S, all_have, so_far=still)
    print("ended after", ", ".join(f"{seconds:.1f} s ({launcher})" for launcher, seconds in took.items()))
    assert max(took.values()) <= END_S, still()
    for run in runs:
        assert run.code() != 0
        missing = [words for words in named if words not in run.said()]
        assert not missing, f"{run.launcher} does not say {missing}:\n{run.said()[-4000:]}"


@pytest.mark.timeout(300)
def test_each_launcher_gives_the_same_losses(ssh: SshLab, tmp_path: Path, data: str) -> None:
    with runs(ssh, tmp_path, data, "bare deepspeed", "ssh", go=True) as started:
        wait_for("both runs", 200, lambda: all(run.ended() for run in started))
        for run in started:
            assert run.code() == 0, run.said()[-3000:]
            steps = [line["step"] for line in run.job.lines() if line["split"] == "train"]
            assert steps == list(range(1, STEPS + 1))
        assert started[0].job.lines() == started[1].job.lines()
    for column in ("real run", "2 hosts"):
        ran("ssh", column)
        ran("deepspeed", column)


@pytest.mark.timeout(300)
def test_a_rank_that_is_killed_or_raises_is_named(ssh: SshLab, tmp_path: Path, data: str) -> None:
    with runs(ssh, tmp_path, data, "bare deepspeed", "ssh") as started:
        for run in started:
            run.wait_until_trains()
        killed, raising = started
        ssh.kill_rank("hostb", 1, str(killed.job.folder))
        raising.job.order("raise 1")
        assert_ended([killed], "rank 1", "hostb", "killed")
        assert_ended([raising], "rank 1", "hostb", "ZeroDivisionError: planted by the test")


@pytest.mark.timeout(300)
def test_a_host_without_power_is_named(ssh: SshLab, tmp_path: Path, data: str) -> None:
    with runs(ssh, tmp_path, data, "deepspeed", "ssh") as started:
        for run in started:
            run.wait_until_trains()
        ssh.crash("hostb")
        try:
            assert_ended(started, "rank 1", "hostb", "machine or the network to it is gone")
        finally:
            ssh.boot("hostb")
            ssh.wait_until_it_answers("hostb")
    for launcher in ("deepspeed", "ssh"):
        ran(launcher, "lost host")


@pytest.mark.timeout(300)
def test_a_host_without_network_is_named_and_its_ranks_end(ssh: SshLab, tmp_path: Path, data: str) -> None:
    with runs(ssh, tmp_path, data, "deepspeed", "ssh") as started:
        for run in started:
            run.wait_until_trains()
        ssh.cut("hostb")
        try:
            assert_ended(started, "rank 1", "hostb", "machine or the network to it is gone")
        finally:
            ssh.plug("hostb")
            ssh.wait_until_it_answers("hostb")


@pytest.mark.parametrize("launcher", ["deepspeed", "ssh"])
def test_an_unreachable_host_is_named_before_anything_starts(
    launcher: str, ssh: SshLab, tmp_path: Path, data: str
) -> None:
    job, hostfile = Job(tmp_path / "run", data), tmp_path / "hostfile"
    hostfile.write_text("hosta slots=1\nhostb slots=1\nhostz slots=1\n")
    words = ["bigtrain", "train", *job.words, "trainer.global_batch_size=6"]
    done = ssh.run(*words, f"launcher={launcher}", f"launcher.hostfile={hostfile}", folder=tmp_path)
    assert done.returncode == 2 and "hostz" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not job.folder.exists()
