"""`launcher=horovod`: `horovodrun` with gloo, on this machine or over ssh; it hands the whole environment on."""

from __future__ import annotations

from bigtrain.config.hosts import Host
from bigtrain.config.launchers import Horovod
from bigtrain.config.launching import processes
from bigtrain.launchers.base import Job, Plan, Process
from bigtrain.launchers.ssh import master_addr


def plan(job: Job) -> Plan:
    """One horovodrun."""
    launcher = job.config.launcher
    assert isinstance(launcher, Horovod)
    hosts = job.hosts or (Host("localhost", processes(job.config)),)
    command = [job.python, "-m", "horovod.runner.launch", "--gloo", "-np", str(sum(host.slots for host in hosts))]
    command += ["-H", ",".join(f"{host.name}:{host.slots}" for host in hosts)]
    if launcher.ssh_port:
        command += ["-p", str(launcher.ssh_port)]
    environment = {
        "MASTER_ADDR": master_addr(job, launcher) if job.hosts else "127.0.0.1",
        "MASTER_PORT": str(job.port),
        **({} if job.hosts and not launcher.threads else {"OMP_NUM_THREADS": job.threads(hosts[0].slots)}),
        **launcher.environment,
    }
    command += [job.python, "-m", *job.worker(reports=True)]
    return Plan([Process(command, environment, None, "horovodrun", "folder")])
