"""Look at a Slurm cluster before a job is submitted: partition, nodes, GPUs, time limit, and the view from a node."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from bigtrain.config.launchers import Slurm
from bigtrain.config.launching import slurm_seconds
from bigtrain.errors import UserError, nearest
from bigtrain.launchers.base import Job
from bigtrain.launchers.slurm import interpreter, srun

GONE = ("down", "drain", "drng", "fail", "maint", "power", "unk", "inval", "boot", "futr", "future")
"""Beginnings of the states of nodes that cannot be had."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Some nodes of a partition that are alike."""

    partition: str
    default: bool
    count: int
    state: str
    gpus: int
    limit: str


def look(launcher: Slurm) -> None:
    """Can the cluster ever run such a job?

    Raises:
        UserError: no Slurm here, or what is asked for is not there.
    """
    for program in ("sbatch", "sinfo", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"launcher=slurm: there is no {program} on this machine (looked in {os.environ.get('PATH', '')}). "
                "Type this on a login node of the cluster; or take launcher=local here; or copy launch/slurm.sbatch."
            )
    if not launcher.preflight:
        return
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%P|%D|%T|%G|%l"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise UserError(f"Slurm does not answer: {done.stderr.strip() or 'sinfo failed'}")
    refuse(launcher, parse_nodes(done.stdout))


def parse_nodes(text: str) -> list[Nodes]:
    """sinfo's table of `%P|%D|%T|%G|%l`."""
    rows = []
    for line in text.splitlines():
        name, count, state, gres, limit = line.split("|")
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[A-Za-z][^:,()]*)?:(\d+)", gres))
        rows.append(Nodes(name.rstrip("*"), name.endswith("*"), int(count), state, gpus, limit))
    return rows


def refuse(launcher: Slurm, rows: list[Nodes]) -> None:
    """A `UserError` where no nodes of the partition could run the job, however long it waited."""
    names = sorted({row.partition for row in rows})
    wanted = launcher.partition.split(",") if launcher.partition else [row.partition for row in rows if row.default][:1]
    if not wanted:
        raise UserError(f"launcher.partition has no value, and the cluster has no default: {', '.join(names)}.")
    for name in wanted:
        if name not in names:
            raise UserError(f"launcher.partition={name}: there is no such partition.{nearest(name, names)}")
    nodes, gpus = launcher.nodes or 1, launcher.gpus or 0
    where = f"partition {','.join(wanted)}"
    theirs = [row for row in rows if row.partition in wanted]
    if sum(row.count for row in theirs) < nodes:
        raise UserError(f"launcher.nodes={nodes}, but {where} has {sum(row.count for row in theirs)} nodes.")
    fit = [row for row in theirs if row.gpus >= gpus]
    if sum(row.count for row in fit) < nodes:
        raise UserError(
            f"launcher.gpus={gpus} on each of {nodes} nodes: {where} has {sum(row.count for row in fit)} such; the "
            f"most on one node is {max((row.gpus for row in theirs), default=0)}."
        )
    up = [row for row in fit if not row.state.startswith(GONE) and not row.state.endswith("*")]
    if sum(row.count for row in up) < nodes:
        states = ", ".join(f"{row.count} {row.state}" for row in fit)
        raise UserError(f"{nodes} nodes of {where} cannot be had now: {states}.")
    asked = slurm_seconds(launcher.time) if launcher.time else None
    limits = [slurm_seconds(row.limit) for row in up if row.limit[:1].isdigit()]
    if asked and limits and len(limits) == len(up) and asked > max(limit or 0 for limit in limits):
        raise UserError(f"launcher.time={launcher.time} is more than {where} allows: {up[0].limit}.")


def ask_a_node(job: Job, launcher: Slurm) -> dict[str, Any] | None:
    """What a node says of itself in a short job; None, with a note, where none is free to say it.

    Raises:
        UserError: the node answers, and bigtrain does not run there.
    """
    from bigtrain.launchers.preflight import answer_of

    one = replace(launcher, nodes=1)
    command = srun(job, one, 1, None)
    command += [f"--{key}={value}" for key in ("partition", "account", "qos", "constraint")
                if (value := getattr(launcher, key))]  # fmt: skip
    command += ["--job-name=bigtrain-look", "--time=2", f"--immediate={max(1, int(launcher.preflight_s))}"]
    command += [f"--chdir={job.cwd}", interpreter(job, launcher), "-m", "bigtrain.launchers.probe", str(job.run_dir)]
    answer = answer_of(command, launcher.preflight_s + 60)
    if isinstance(answer, dict):
        return answer
    if re.search(r"Unable to allocate|Immediate|immediate|no answer", answer):
        print(f"note: no node was free within {launcher.preflight_s:g} s, so the run folder was not looked at from one")
        return None
    raise UserError(f"bigtrain does not run on the nodes, nothing was submitted: {answer}")
