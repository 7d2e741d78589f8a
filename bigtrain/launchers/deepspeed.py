"""`launcher=deepspeed`: DeepSpeed's own launcher, on this machine or with pdsh on every host.

Over ssh it forwards few variables (those that begin with NCCL, PYTHON, UCX and the like). The others go into a
`.deepspeed_env` in the run folder, which `DS_ENV_FILE` names: DeepSpeed joins that name to the home and the working
folder, and an absolute one stands for itself. The user's own files would then not be read: their lines are in ours.
"""

from __future__ import annotations

import re
from pathlib import Path

from bigtrain.config.hosts import parse_hosts
from bigtrain.config.launchers import DeepSpeed
from bigtrain.config.launching import processes
from bigtrain.errors import UserError
from bigtrain.launchers.base import Job, Plan, Process
from bigtrain.launchers.ssh import OPTIONS, forwarded, master_addr


def plan(job: Job) -> Plan:
    """DeepSpeed's runner; without hosts it starts its ranks here."""
    launcher = job.config.launcher
    assert isinstance(launcher, DeepSpeed)
    words, environment, files = _over_ssh(job, launcher) if job.hosts else _here(job, launcher)
    command = [job.python, "-m", "deepspeed.launcher.runner", *words]
    command += ["--master_port", str(job.port), "--module", *job.worker(reports=True)]
    return Plan([Process(command, environment, None, "deepspeed", "folder")], files)


def _here(job: Job, launcher: DeepSpeed) -> tuple[list[str], dict[str, str], dict[Path, str]]:
    count = processes(job.config)
    visible = job.env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    where = ["--num_gpus", str(count)]
    if len(visible) >= count and all(word.isdigit() for word in visible):  # --num_gpus forgets them and begins at 0
        where = ["--include", "localhost:" + ",".join(visible[:count])]
    return ["--hostfile", "", *where], {"OMP_NUM_THREADS": job.threads(count), **launcher.environment}, {}


def _over_ssh(job: Job, launcher: DeepSpeed) -> tuple[list[str], dict[str, str], dict[Path, str]]:
    for what, path in (("the working folder", str(job.cwd)), ("run.dir", str(job.run_dir))):
        if not re.fullmatch(r"[\w@%+=:,./-]+", path):  # handed to the hosts' shells as it is
            raise UserError(f"{what} is '{path}': DeepSpeed's launcher cannot pass spaces or such signs on.")
    env_file, hostfile = job.run_dir / ".deepspeed_env", str(job.run_dir / "hostfile")
    files = {env_file: "".join(_line(key, value) for key, value in forwarded(job).items()) + job.deepspeed_env}
    files[env_file] += "".join(_line(key, value) for key, value in launcher.environment.items())
    chosen = launcher.include or launcher.exclude
    if chosen and launcher.hostfile:
        hostfile = launcher.hostfile
    else:
        hosts = parse_hosts(launcher.hosts) if chosen else job.hosts
        files[job.run_dir / "hostfile"] = "".join(f"{host.name} slots={host.slots}\n" for host in hosts)
    words = ["--hostfile", hostfile, "--force_multi", "--master_addr", master_addr(job, launcher)]
    if chosen:
        words += ["--include" if launcher.include else "--exclude", chosen]
    if launcher.ssh_port:
        words += ["--ssh_port", str(launcher.ssh_port)]
    return words, {"DS_ENV_FILE": str(job.cwd / env_file), "PDSH_SSH_ARGS_APPEND": _ssh_options(job)}, files


def _ssh_options(job: Job) -> str:
    """For pdsh's ssh: a host that is lost ends its connection; else the command would wait for it for hours."""
    return f"{job.env.get('PDSH_SSH_ARGS_APPEND', '')} {' '.join(OPTIONS)}".strip()


def _line(key: str, value: str) -> str:
    """DeepSpeed puts double quotes around a value with special signs and hands it to the host's shell."""
    escaped = re.sub(r'([\\"$`])', r"\\\1", value)
    return f"{key}={escaped}\n"
