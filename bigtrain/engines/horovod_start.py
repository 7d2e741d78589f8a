"""Bringing Horovod in, whichever launcher started the ranks."""

from __future__ import annotations

import os
import socket
from collections import Counter
from types import ModuleType

from bigtrain.distributed import Ranks, broadcast_object, gather_objects
from bigtrain.errors import UserError

_server: object = None
"""Rank 0's rendezvous: it has to outlive the start, as Horovod asks it again when it ends."""


def import_horovod() -> ModuleType:
    """`horovod.torch`, with its native library.

    Raises:
        UserError: it is not installed, or was not built for this torch and Python.
    """
    how = "Run `make horovod` (about 10 minutes of compiling, once), or take engine=ddp, which does the same."
    try:
        import horovod.torch as hvd
    except Exception as error:  # not there; no distutils (Python 3.12 without setuptools); built for another torch
        raise UserError(f"engine=horovod: Horovod cannot be imported: {error}. {how}") from error
    if not hasattr(hvd, "init"):  # it hides that its native library is missing, or does not fit this torch
        raise UserError(f"engine=horovod: Horovod is installed without a native library for this torch. {how}")
    module: ModuleType = hvd
    return module


def start(ranks: Ranks, timeout_s: float) -> ModuleType:
    """Horovod, with these ranks in it. Once a process: an engine built after another finds it running.

    Under horovodrun (or mpirun, where Horovod was built for MPI) it meets by its launcher's own means; under any other,
    rank 0 opens Horovod's rendezvous server, and the ranks learn its address over our control group.

    Raises:
        UserError: not installed; GPUs, and a Horovod that was built for the CPU.
    """
    hvd = import_horovod()
    if ranks.device.type == "cuda" and not hvd.nccl_built():
        raise UserError(
            "engine=horovod: this Horovod was built for the CPU, and cannot reduce what lies on a GPU. Take "
            "engine=ddp, or trainer.device=cpu, or build Horovod with HOROVOD_GPU_OPERATIONS=NCCL."
        )
    if hvd.is_initialized():
        return hvd
    # gloo would give up after 30 s on a rank that is busy elsewhere.
    os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(int(timeout_s)))
    under_mpi = "OMPI_COMM_WORLD_SIZE" in os.environ and hvd.mpi_built()
    if "HOROVOD_GLOO_RENDEZVOUS_ADDR" not in os.environ and not under_mpi:
        os.environ.update(_meet(ranks))
    try:
        hvd.init()
    except Exception as error:
        raise UserError(f"engine=horovod: the ranks did not find each other: {error}") from error
    if (hvd.rank(), hvd.size()) != (ranks.rank, ranks.world_size):
        raise UserError(
            f"engine=horovod: Horovod takes this for rank {hvd.rank()} of {hvd.size()}, and the launcher for rank "
            f"{ranks.rank} of {ranks.world_size}: HOROVOD_* variables of another job are in the environment."
        )
    return hvd


def _meet(ranks: Ranks) -> dict[str, str]:
    """Open the rendezvous on rank 0, and the variables with which Horovod finds it and its own place."""
    global _server
    from horovod.runner.common.util.hosts import SlotInfo
    from horovod.runner.http.http_server import RendezvousServer

    one_host = ranks.local_world_size == ranks.world_size
    host = socket.gethostname()
    hosts = gather_objects((host, ranks.local_rank))
    size = Counter(name for name, _ in hosts)
    order = list(size)  # hosts by their first rank
    slots = [
        SlotInfo(
            name,
            rank,
            local,
            order.index(name),
            ranks.world_size,
            size[name],
            sum(other == local for _, other in hosts),
        )
        for rank, (name, local) in enumerate(hosts)
    ]
    port = None
    if ranks.first:
        _server = server = RendezvousServer()
        port = server.start()
        server.init(slots)
    mine = slots[ranks.rank]
    interface = "lo" if one_host else os.environ.get("GLOO_SOCKET_IFNAME")
    return {
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1" if one_host else os.environ["MASTER_ADDR"],
        "HOROVOD_GLOO_RENDEZVOUS_PORT": str(broadcast_object(port)),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_HOSTNAME": mine.hostname,
        "HOROVOD_RANK": str(mine.rank),
        "HOROVOD_SIZE": str(mine.size),
        "HOROVOD_LOCAL_RANK": str(mine.local_rank),
        "HOROVOD_LOCAL_SIZE": str(mine.local_size),
        "HOROVOD_CROSS_RANK": str(mine.cross_rank),
        "HOROVOD_CROSS_SIZE": str(mine.cross_size),
    } | ({"HOROVOD_GLOO_IFACE": interface} if interface else {})
