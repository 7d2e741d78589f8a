"""Look at the machines before anything is started: all that is wrong is named at once, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bigtrain.config.launchers import Horovod, Hosts, Kubernetes, Slurm, Torchrun
from bigtrain.errors import UserError
from bigtrain.launchers import cluster, kubernetes
from bigtrain.launchers.base import Job
from bigtrain.launchers.probe import MARKER, facts, listener
from bigtrain.launchers.ssh import remote, ssh

CLOCK_S = 5.0
"""Seconds that two machines' clocks may differ."""


def look(job: Job) -> Job:
    """Look at the hosts, or at the cluster; the job comes back with a port that is free on its first host.

    Raises:
        UserError: names every machine that is not fit, and why.
    """
    launcher = job.config.launcher
    if isinstance(launcher, Horovod) and importlib.util.find_spec("horovod") is None:
        raise UserError("launcher=horovod: horovod is not installed here; `make horovod` builds it.")
    if isinstance(launcher, Slurm) and "SLURM_JOB_ID" not in job.env:
        cluster.look(launcher)
    if isinstance(launcher, Kubernetes) and launcher.preflight:
        kubernetes.preflight(job.config)
    if isinstance(launcher, Torchrun) and launcher.rendezvous and launcher.node_rank == 0:
        port = int(launcher.rendezvous.rpartition(":")[2])
        if other := listener(port):
            raise UserError(f"launcher.rendezvous={launcher.rendezvous}: port {port} is taken by {other}.")
    if not isinstance(launcher, Hosts) or not job.hosts:
        return _free_here(job)
    if launcher.name == "deepspeed" and shutil.which("pdsh") is None:
        raise UserError("launcher=deepspeed reaches hosts with pdsh, which is not here; launcher=ssh needs none.")
    if not launcher.preflight:
        return job
    answers = _ask_hosts(job, launcher)
    _refuse(_differences(answers, facts(job.run_dir, None)))
    first = answers[job.hosts[0].name]
    if launcher.master_port is None:
        return replace(job, port=int(first["free_port"]))
    if first["in_the_way"]:
        raise UserError(
            f"launcher.master_port={job.port} is taken on {job.hosts[0].name} by {first['in_the_way']}: leave it out, "
            "and a free one is found."
        )
    return job


def look_at_folder(job: Job) -> None:
    """Is the run folder, now made, the same one on the other machines?

    Raises:
        UserError: names the machines that do not see it.
    """
    launcher = job.config.launcher
    slurm = isinstance(launcher, Slurm) and "SLURM_JOB_ID" not in job.env
    if not getattr(launcher, "preflight", False) or not (slurm or job.hosts):
        return
    marker = job.run_dir / MARKER
    token = f"{socket.gethostname()} {secrets.token_hex(8)}"
    marker.write_text(token, encoding="utf-8")
    try:
        if isinstance(launcher, Slurm):
            answer = cluster.ask_a_node(job, launcher)
            answers = {answer["host"]: answer} if answer else {}
            _refuse(_differences(answers, facts(job.run_dir, None)))
        else:
            assert isinstance(launcher, Hosts)
            answers = _ask_hosts(job, launcher)
        blind = [name for name, answer in answers.items() if answer["marker"] != token]
        if blind:
            raise UserError(
                f"{' and '.join(blind)} cannot see the run folder {job.cwd / job.run_dir} of this machine: set run.dir "
                "to a folder on a file system that all of them share."
            )
    finally:
        marker.unlink(missing_ok=True)


def _free_here(job: Job) -> Job:
    wanted = getattr(job.config.launcher, "master_port", None)
    if wanted and (other := listener(wanted)):
        raise UserError(f"launcher.master_port={wanted} is taken by {other}: leave it out, and a free one is found.")
    return job


def _ask_hosts(job: Job, launcher: Hosts) -> dict[str, dict[str, Any]]:
    """What every host says of itself, asked all at once; a UserError names those that do not answer."""
    words = [job.python, "-m", "bigtrain.launchers.probe", str(job.run_dir), str(job.port)]
    command = remote(job, words)

    def ask(name: str) -> dict[str, Any] | str:
        return answer_of(ssh(launcher, name, command, launcher.preflight_s), launcher.preflight_s)

    with ThreadPoolExecutor(max_workers=64) as pool:
        names = [host.name for host in job.hosts]
        answers = dict(zip(names, pool.map(ask, names), strict=True))
    _refuse([f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str)])
    return {name: answer for name, answer in answers.items() if not isinstance(answer, str)}


def answer_of(command: Sequence[str], timeout_s: float) -> dict[str, Any] | str:
    """The JSON that a probe prints, or in a few words why there is none."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s + 5, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout_s:g} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    for line in reversed(done.stdout.splitlines()):  # a shell's start-up files may say something before
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (said[-1] if said else f"ended with code {done.returncode} and said nothing").removeprefix("bash: line 1: ")


def _differences(answers: dict[str, dict[str, Any]], here: dict[str, Any]) -> list[str]:
    faults = []
    for name, answer in answers.items():
        for package, version in here["versions"].items():
            if answer["versions"][package] != version:
                faults.append(f"{name} has {package} {answer['versions'][package]}, and this machine {version}")
        apart = answer["time"] - here["time"]
        if abs(apart) > CLOCK_S:
            faults.append(f"the clock of {name} is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}")
    return faults


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise UserError("nothing was started: " + "; ".join(faults) + ". (launcher.preflight=false does not look.)")
