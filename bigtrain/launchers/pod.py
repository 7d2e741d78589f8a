"""A pod's main process under `launcher=kubernetes`: starts the ranks of this node and ends with their exit code.

`python -m bigtrain.launchers.pod recipe=/etc/bigtrain/config.yaml run.dir=…`. torchrun could do it, but it kills the
ranks 30 seconds after a SIGTERM, checkpoint or not, and turns every exit code (75: start me again, 2: do not) into 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigtrain.config.launching import threads
from bigtrain.errors import guarded
from bigtrain.launchers.base import Process
from bigtrain.launchers.supervise import run
from bigtrain.placement import Node, read_node


def commands(node: Node, words: Sequence[str], cores: int, environment: Mapping[str, str]) -> list[Process]:
    """The ranks of `node`; the first speaks in the pod's log, the others in `logs/` of the run folder."""
    run_dir = next((word.removeprefix("run.dir=") for word in words if word.startswith("run.dir=")), ".")
    shared = {
        "WORLD_SIZE": str(node.nodes * node.processes),
        "LOCAL_WORLD_SIZE": str(node.processes),
        "MASTER_ADDR": node.master_addr,
        "MASTER_PORT": str(node.master_port),
        "OMP_NUM_THREADS": threads(None, environment, cores, node.processes),
    }
    first = node.rank * node.processes
    return [
        Process(
            [sys.executable, "-m", "bigtrain.train", *words],
            shared | {"RANK": str(first + local), "LOCAL_RANK": str(local)},
            Path(run_dir) / "logs" / f"rank_{first + local}.log" if local else None,
            f"rank {first + local}",
        )
        for local in range(node.processes)
    ]


def start(words: Sequence[str]) -> int:
    """Run this node's ranks to their end; the exit code of the contract."""
    return run(commands(read_node(os.environ), words, len(os.sched_getaffinity(0)), os.environ))


if __name__ == "__main__":
    sys.exit(guarded(start, sys.argv[1:]))
