"""`launcher=torchrun`: torch's own launcher, on this machine or on each of several."""

from __future__ import annotations

from bigtrain.config.launchers import Torchrun
from bigtrain.config.launching import processes
from bigtrain.launchers.base import Job, Plan, Process


def plan(job: Job) -> Plan:
    """One torchrun here. On several nodes each has its own, typed with the same words but `launcher.node_rank`."""
    launcher = job.config.launcher
    assert isinstance(launcher, Torchrun)
    count = processes(job.config)
    host, _, port = (launcher.rendezvous or f"127.0.0.1:{job.port}").rpartition(":")
    command = torchrun(job.python, launcher.nodes or 1, count, str(launcher.node_rank), host, port)
    command += ["--max-restarts", str(launcher.max_restarts), "-m", *job.worker(reports=True)]
    environment = {"OMP_NUM_THREADS": job.threads(count), **launcher.environment}
    return Plan([Process(command, environment, None, "torchrun", "folder")])


def torchrun(python: str, nodes: int, processes: int, node_rank: str, host: str, port: str) -> list[str]:
    """torchrun with a fixed meeting point: no guess from names which machine it is, and ranks in the nodes' order."""
    command = [python, "-m", "torch.distributed.run", "--nnodes", str(nodes), "--nproc-per-node", str(processes)]
    return [*command, "--node-rank", node_rank, "--master-addr", host, "--master-port", port]
