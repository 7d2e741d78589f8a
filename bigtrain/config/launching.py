"""How many ranks a launcher starts, and the rules of its settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from bigtrain.config.hosts import listed_hosts
from bigtrain.config.launchers import Hosts, Kubernetes, Local, Slurm, Torchrun
from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError


def visible_gpus() -> int:
    """NVIDIA GPUs that this process may use, without importing torch; the worker asks torch again."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) or len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    return min(present, len([word for word in visible.split(",") if word.strip() not in ("", "-1")]))


def here(config: RunConfig) -> bool:
    """Do the ranks run on this machine (or on others just like it), so that its GPUs count?"""
    return isinstance(config.launcher, Local | Torchrun) or (
        isinstance(config.launcher, Hosts) and not listed_hosts(config.launcher)
    )


def threads(asked: int | None, environment: Mapping[str, str], cores: int, ranks: int) -> str:
    """CPU threads of each of `ranks` ranks that share a machine: what the recipe or the environment asks for first."""
    return str(asked or environment.get("OMP_NUM_THREADS") or max(1, cores // ranks))


def processes(config: RunConfig) -> int:
    """Ranks on each node that the launcher starts; on the first, where hosts differ."""
    launcher = config.launcher
    hosts = listed_hosts(launcher)
    if hosts:
        return hosts[0].slots
    gpus = 0
    if config.trainer.device != "cpu":
        gpus = visible_gpus() if here(config) else getattr(launcher, "gpus", None) or 0
    return launcher.processes or gpus or launcher.cpu_processes


def world_size(config: RunConfig) -> int:
    """Ranks that the launcher starts, over all nodes."""
    hosts = listed_hosts(config.launcher)
    return sum(host.slots for host in hosts) if hosts else processes(config) * (config.launcher.nodes or 1)


def check_counts(launcher: Any) -> None:
    """A `UserError` for a number of nodes, ranks, threads, … below 1."""
    for key in ("nodes", "processes", "cpu_processes", "threads", "gpus", "cpus_per_task", "warn_s", "sweep_parallel"):
        value = getattr(launcher, key, None)
        if value is not None and value < 1:
            raise UserError(f"launcher.{key}={value}: it must be at least 1.")


def check_launcher(config: RunConfig) -> None:
    """Refuse settings of the launcher that cannot work.

    Raises:
        UserError: names the setting and what to set instead.
    """
    launcher = config.launcher
    check_counts(launcher)
    for key in ("retries", "max_restarts", "node_rank"):
        if getattr(launcher, key, 0) < 0:
            raise UserError(f"launcher.{key}={getattr(launcher, key)}: it must be at least 0.")
    for key in ("ssh_port", "master_port"):
        port = getattr(launcher, key, None)
        if port is not None and not 0 < port < 65536:
            raise UserError(f"launcher.{key}={port} is not a port: they go from 1 to 65535.")
    for name in launcher.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"launcher.environment: '{name}' is not the name of a variable.")
    if (launcher.nodes or 1) > 1 and (isinstance(launcher, Local) or (isinstance(launcher, Hosts) and here(config))):
        other = "launcher=slurm, ssh or torchrun" if isinstance(launcher, Local) else "launcher.hostfile or .hosts"
        raise UserError(
            f"launcher={launcher.name} without hosts starts processes on this machine only: launcher.nodes must be 1; "
            f"for several machines there is {other}."
        )
    gpus = visible_gpus() if here(config) else getattr(launcher, "gpus", None) or 0
    if config.trainer.device != "cpu" and 0 < gpus < processes(config):
        raise UserError(f"launcher.processes={processes(config)}, but there are {gpus} GPUs: at most one rank a GPU.")
    if isinstance(launcher, Hosts) and launcher.name == "ssh" and here(config):
        raise UserError("launcher=ssh: which machines? Set launcher.hostfile=FILE or launcher.hosts=[a:8,b:8].")
    if isinstance(launcher, Torchrun):
        _check_torchrun(launcher, config.run.dir)
    if isinstance(launcher, Slurm):
        _check_slurm(launcher, config.trainer.device)
    if isinstance(launcher, Kubernetes):
        _check_kubernetes(launcher, config.run.dir)


def _check_torchrun(launcher: Torchrun, run_dir: str | None) -> None:
    nodes = launcher.nodes or 1
    if launcher.node_rank >= nodes:
        raise UserError(f"launcher.node_rank={launcher.node_rank}: with launcher.nodes={nodes} it is 0 to {nodes - 1}.")
    if nodes > 1 and launcher.rendezvous is None:
        raise UserError("launcher.rendezvous has no value: name the first node and a free port of it, as node0:29500.")
    if launcher.rendezvous is not None and not re.fullmatch(r"[^\s:]+:\d{1,5}", launcher.rendezvous):
        raise UserError(f"launcher.rendezvous={launcher.rendezvous} is not host:port, as node0:29500.")


TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED|INFINITE")
DEPENDENCY = re.compile(
    r"singleton|(after|afterany|afterok|afternotok|afterburstbuffer|aftercorr):\d+(_\d+|_\*|\+\d+)?(:\d+(_\d+|\+\d+)?)*"
)


def _check_slurm(launcher: Slurm, device: str) -> None:
    if launcher.time is not None and not TIME.fullmatch(launcher.time):
        raise UserError(
            f"launcher.time={launcher.time} is not a time of Slurm's: minutes, hours:minutes:seconds, days-hours or "
            "days-hours:minutes:seconds, as 90, 1:30:00 or 2-12."
        )
    seconds = slurm_seconds(launcher.time) if launcher.time is not None else None
    if seconds is not None and seconds <= launcher.warn_s:
        raise UserError(
            f"launcher.time={launcher.time} is {seconds} s, and launcher.warn_s={launcher.warn_s} s before its end the "
            "job would be stopped already: give more time, or a smaller launcher.warn_s."
        )
    if launcher.mem is not None and not re.fullmatch(r"\d+[KMGT]?", launcher.mem):
        raise UserError(f"launcher.mem={launcher.mem} is not a size of Slurm's, as 64G or 64000M.")
    if launcher.array is not None and not re.fullmatch(r"\d+(-\d+)?%1", launcher.array):
        raise UserError(
            f"launcher.array={launcher.array}: the jobs of an array are parts of one run in one folder, so one at a "
            "time: write it as 1-4%1. Several runs side by side are a sweep: bigtrain train -m."
        )
    if launcher.dependency is not None:
        for word in re.split("[,?]", launcher.dependency):
            if not DEPENDENCY.fullmatch(word):
                raise UserError(f"launcher.dependency: '{word}' is not one of Slurm's, as afterok:1234 or singleton.")
    for line in launcher.extra:
        if not line.startswith("-"):
            raise UserError(f"launcher.extra: '{line}' is not an option of sbatch, as --exclusive.")
    for key in ("partition", "account", "qos", "constraint", "job_name", "container"):
        value = getattr(launcher, key)
        if value is not None and (not value.strip() or any(sign in value for sign in "\n\r\"'`$")):
            raise UserError(f"launcher.{key}={value!r} cannot stand in a job script.")
    if launcher.mounts and launcher.container is None:
        raise UserError("launcher.mounts are for a container: set launcher.container=IMAGE.")
    for mount in launcher.mounts:
        if not re.fullmatch(r"[^:,\s]+(:[^:,\s]+){0,2}", mount):
            raise UserError(f"launcher.mounts: '{mount}' is not outside:inside, as /data:/data:ro.")
    if device == "cuda" and launcher.gpus is None:
        raise UserError("trainer.device=cuda, but launcher.gpus asks for none: set the GPUs of a node.")


def _check_kubernetes(launcher: Kubernetes, run_dir: str | None) -> None:
    if not launcher.image:
        raise UserError("launcher.image has no value: name an image with bigtrain in it (docker/ builds one).")
    if not launcher.claim:
        raise UserError(
            "launcher.claim has no value: name a PersistentVolumeClaim that all nodes can mount (ReadWriteMany); the "
            "run folder and the prepared data lie on it."
        )
    for key in ("restarts", "grace_s"):
        if getattr(launcher, key) < 0:
            raise UserError(f"launcher.{key}={getattr(launcher, key)}: it must be at least 0.")
    for key in ("cpu", "memory", "shared_memory"):
        value = getattr(launcher, key)
        if value is not None and not re.fullmatch(r"\d+(\.\d+)?(m|[kMGTP]|[KMGTP]i)?", value):
            raise UserError(f"launcher.{key}={value} is not an amount of Kubernetes', as 8, 500m or 64Gi.")
    mount, folder = PurePosixPath(launcher.mount), PurePosixPath(run_dir or "run")
    if not mount.is_absolute():
        raise UserError(f"launcher.mount={mount}: it must be an absolute path inside the pods.")
    if ".." in folder.parts or folder.is_absolute():
        raise UserError(
            f"run.dir={folder}: with launcher=kubernetes it is relative, here to this folder and in the pods to "
            f"launcher.mount={mount}, where the claim is that they share."
        )


def slurm_seconds(time: str) -> int | None:
    """A time limit in Slurm's notation in seconds; None: without a limit."""
    if not time[0].isdigit():
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) < 3:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    else:
        hours, minutes, seconds = parts
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
