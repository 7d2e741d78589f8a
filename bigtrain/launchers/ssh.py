"""`launcher=ssh`: one ssh a host; a small supervisor there starts that host's ranks (`supervise.host`).

ssh passes no signal on, so their numbers are written to its standard input; when that ends, the far side ends too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from bigtrain.config.launchers import Hosts
from bigtrain.launchers.base import Job, Plan, Process
from bigtrain.launchers.local import ranks

FORWARDED = ("BIGTRAIN_", "CUDA_", "DS_", "FI_", "GLOO_", "HF_", "LD_LIBRARY_PATH", "MLFLOW_", "NCCL_", "OMP_",
             "PYTHONPATH", "TOKENIZERS_", "TORCH_", "UCX_", "VIRTUAL_ENV", "WANDB_")  # fmt: skip
"""Beginnings of the names of variables that go along to other hosts."""

OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
"""ssh asks nothing, and notices within 20 seconds that a host is gone."""


def plan(job: Job) -> Plan:
    """An ssh for each host, with the numbers of its ranks."""
    launcher = job.config.launcher
    assert isinstance(launcher, Hosts)
    world_size, first = sum(host.slots for host in job.hosts), 0
    processes = []
    for host in job.hosts:
        theirs = ranks(job, host.slots, first, world_size, master_addr(job, launcher))
        if not launcher.threads:  # this machine's cores say nothing about theirs
            for rank in theirs:
                rank.environment.pop("OMP_NUM_THREADS")
        described = json.dumps(
            [
                {
                    "name": f"{rank.name} on {host.name}",
                    "command": rank.command,
                    "environment": rank.environment,
                    "output": rank.output and str(rank.output),
                }
                for rank in theirs
            ]
        )
        command = remote(job, [job.python, "-m", "bigtrain.launchers.supervise", described])
        processes.append(Process(ssh(launcher, host.name, command), {}, None, f"host {host.name}", "stdin"))
        first += host.slots
    return Plan(processes)


def master_addr(job: Job, launcher: Hosts) -> str:
    """The first host, as the others reach it."""
    return launcher.master_addr or job.hosts[0].name.rpartition("@")[2]


def forwarded(job: Job) -> dict[str, str]:
    """The variables that other hosts are to have: what the libraries read, and the user's own, which win."""
    kept = {key: value for key, value in job.env.items() if key.startswith(FORWARDED) and "\n" not in value}
    return dict(sorted(kept.items())) | job.config.launcher.environment


def remote(job: Job, command: Sequence[str]) -> str:
    """`command` for another host's shell: in the same folder, with the same variables."""
    words = [f"{key}={shlex.quote(value)}" for key, value in forwarded(job).items()]
    return " ".join([f"cd {shlex.quote(str(job.cwd))} &&", "exec env", *words, shlex.join(command)])


def ssh(launcher: Hosts, host: str, command: str, timeout_s: float | None = None) -> list[str]:
    """ssh that asks nothing, and notices a host that is gone."""
    options = list(OPTIONS)
    if timeout_s:
        options += ["-o", f"ConnectTimeout={max(1, int(timeout_s))}"]
    port = ["-p", str(launcher.ssh_port)] if launcher.ssh_port else []
    return ["ssh", *options, *port, host, command]
