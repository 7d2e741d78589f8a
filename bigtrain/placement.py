"""Which process is this? Read from the environment of whichever launcher started it. Pure: no torch, no sockets."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from bigtrain.errors import UserError

SPECIAL_STEPS = 4294967290
"""Slurm's batch, extern and interactive steps have ids from here: not an `srun` of ranks."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One process among `world_size`, and where rank 0 listens."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    own_gpu: bool = False
    """The scheduler gave each process its own GPU and hides the others."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine (a pod) among `nodes`, as the Kubernetes operators tell it: the names are torchrun's options."""

    rank: int = 0
    nodes: int = 1
    processes: int = 1
    """Ranks to be started on each."""
    master_addr: str = "127.0.0.1"
    master_port: int = 29500


NODE_KEYS = ("PET_NODE_RANK", "PET_NNODES", "PET_NPROC_PER_NODE")


def read_node(env: Mapping[str, str]) -> Node:
    """Which pod this is, by Kubeflow's PyTorchJob or TrainJob, or our own JobSet; one alone where nothing is set.

    A PyTorchJob's `RANK` counts pods, and its `MASTER_ADDR` stands without the prefix in older operators.

    Raises:
        UserError: variables that are missing or contradict each other.
    """
    nodes, ranks = _number(env, "PET_NNODES", 1), _number(env, "PET_NPROC_PER_NODE", 1)
    rank = _number(env, "PET_NODE_RANK", None if nodes > 1 else 0)
    addr = env.get("PET_MASTER_ADDR") or env.get("MASTER_ADDR") or ("127.0.0.1" if nodes == 1 else "")
    if not addr:
        raise UserError(f"PET_NNODES={nodes}, but neither PET_MASTER_ADDR nor MASTER_ADDR says where the pods meet.")
    if not 0 <= rank < nodes or ranks < 1:
        raise UserError(f"The operator's variables contradict each other: node {rank} of {nodes}, {ranks} ranks each.")
    port_key = "PET_MASTER_PORT" if "PET_MASTER_PORT" in env else "MASTER_PORT"
    return Node(rank, nodes, ranks, addr, _number(env, port_key, 29500))


def _pod(env: Mapping[str, str]) -> Placement:
    """A rank that a pod runs by itself: right where each pod has one."""
    node = read_node(env)
    if node.processes > 1:
        raise UserError(
            f"PET_NPROC_PER_NODE={node.processes}, and this is one process: start the pod's ranks with "
            "`python -m bigtrain.launchers.pod` or `torchrun`."
        )
    return Placement(node.rank, node.nodes, 0, 1, node.master_addr, node.master_port)


def read_environment(env: Mapping[str, str]) -> Placement:
    """Who this process is, by `torchrun` or `deepspeed`, a Slurm `srun` step, `horovodrun` or Open MPI, a Kubernetes
    operator, or alone.

    Raises:
        UserError: variables that contradict each other, or a master that cannot be known.
    """
    torch_style = {key: env[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if key in env}
    if "LOCAL_RANK" not in env and any(key in env for key in NODE_KEYS):
        return _pod(env)
    if torch_style:
        return _torch_style(env, torch_style)
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and _number(env, "SLURM_STEP_ID") < SPECIAL_STEPS:
        return _slurm(env)
    for prefix, keys in (
        ("HOROVOD", ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")),
        (
            "OMPI",
            (
                "OMPI_COMM_WORLD_RANK",
                "OMPI_COMM_WORLD_SIZE",
                "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE",
            ),
        ),
    ):
        if keys[0] in env:
            return _mpi_style(env, prefix, keys)
    return Placement()


def _torch_style(env: Mapping[str, str], given: Mapping[str, str]) -> Placement:
    missing = [key for key in ("RANK", "WORLD_SIZE") if key not in given]
    if missing:
        raise UserError(
            f"{', '.join(given)} is set in the environment, but {' and '.join(missing)} is not. A launcher (torchrun, "
            f"deepspeed) sets RANK, WORLD_SIZE and LOCAL_RANK together; `unset {' '.join(given)}` to run one process."
        )
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    local = _number(env, "LOCAL_RANK", 0)
    size_key = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in env else "LOCAL_SIZE"  # torchrun's, deepspeed's
    local_world = _number(env, size_key, max(1, local + 1))
    addr = env.get("MASTER_ADDR", "127.0.0.1" if world == 1 else "")
    if not addr or (world > 1 and "MASTER_PORT" not in env):
        raise UserError(
            f"WORLD_SIZE={world}, but MASTER_ADDR and MASTER_PORT are not both set, so the ranks cannot meet. Start "
            "them with torchrun, deepspeed or srun, or set both to an address and a free port of rank 0's machine."
        )
    return _checked(Placement(rank, world, local, local_world, addr, _number(env, "MASTER_PORT", 29500)))


def _slurm(env: Mapping[str, str]) -> Placement:
    world_key = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    world = _number(env, world_key, 1)
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or str(world)
    per_node = _expand_counts(tasks)
    node = _number(env, "SLURM_NODEID", 0)
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job, step = _number(env, "SLURM_JOB_ID", 0), _number(env, "SLURM_STEP_ID")
    return _checked(
        Placement(
            rank=_number(env, "SLURM_PROCID"),
            world_size=world,
            local_rank=_number(env, "SLURM_LOCALID", 0),
            local_world_size=per_node[node] if node < len(per_node) else 1,
            master_addr=env.get("MASTER_ADDR") or first_host(nodes),
            # The same on every task of a step, another for the next step, outside the ephemeral range.
            master_port=_number(env, "MASTER_PORT", 15000 + (job * 31 + step) % 15000),
            own_gpu=any(key in env for key in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND")),
        )
    )


def _mpi_style(env: Mapping[str, str], prefix: str, keys: tuple[str, ...]) -> Placement:
    rank, world, local, local_world = (_number(env, key) for key in keys)
    if world > local_world and "MASTER_ADDR" not in env:
        raise UserError(
            f"{world} ranks on several machines, started by {'horovodrun' if prefix == 'HOROVOD' else 'mpirun'}, and "
            "MASTER_ADDR is not set. Pass the name of rank 0's machine on: `-x MASTER_ADDR=<host>`."
        )
    job = env.get("PMIX_NAMESPACE") or env.get("HOROVOD_GLOO_RENDEZVOUS_PORT") or "0"  # the same on every rank
    port = _number(env, "MASTER_PORT", 15000 + zlib.crc32(job.encode()) % 15000)
    return _checked(Placement(rank, world, local, local_world, env.get("MASTER_ADDR", "127.0.0.1"), port))


def _checked(place: Placement) -> Placement:
    if not 0 <= place.rank < place.world_size or not 0 <= place.local_rank < place.local_world_size:
        raise UserError(
            f"The launcher's variables contradict each other: rank {place.rank} of {place.world_size}, local rank "
            f"{place.local_rank} of {place.local_world_size}."
        )
    return place


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    if key not in env:
        if default is None:
            raise UserError(f"{key} is not set, though the launcher's other variables are.")
        return default
    try:
        return int(env[key])
    except ValueError:
        raise UserError(f"{key}={env[key]!r} in the environment is not a whole number.") from None


def _expand_counts(text: str) -> list[int]:
    """Slurm's `2(x3),1` → [2, 2, 2, 1]."""
    counts: list[int] = []
    for count, _, times in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first machine of a Slurm node list: `gpu[03-05,9],login1` → `gpu03`."""
    match = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\])?([^,\[]*)", nodes)
    assert match is not None, nodes
    return match[1] + (match[2] or "") + match[3]
