"""`launcher=local`: one process a rank on this machine."""

from __future__ import annotations

import socket

from bigtrain.config.launching import processes
from bigtrain.launchers.base import Job, Plan, Process


def plan(job: Job) -> Plan:
    """The ranks themselves; all but the first write to their own log."""
    count = processes(job.config)
    return Plan(ranks(job, count, first=0, world_size=count, master="127.0.0.1"))


def ranks(job: Job, count: int, first: int, world_size: int, master: str) -> list[Process]:
    """The `count` ranks of one machine, from rank `first` on."""
    shared = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(job.port),
        "OMP_NUM_THREADS": job.threads(count),
        **job.config.launcher.environment,
    }
    return [
        Process(
            [job.python, "-m", *job.worker()],
            shared | {"RANK": str(first + local), "LOCAL_RANK": str(local)},
            job.run_dir / "logs" / f"rank_{first + local}.log" if first + local else None,
            f"rank {first + local}",
        )
        for local in range(count)
    ]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
