"""`launcher=local`: one process a rank on this machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain.config.rules import processes
from bigtrain.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Rank:
    """One process to start: its command, what its environment adds, where its output goes (None: the terminal)."""

    command: list[str]
    environment: dict[str, str]
    output: Path | None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(config: RunConfig, trusted: Sequence[str], port: int) -> list[Rank]:
    """The ranks of a run whose folder holds its `config.yaml` already.

    `trusted` are the components' targets that the user's own configuration named: the workers take no others.
    """
    assert config.run.dir is not None
    count, run_dir = processes(config), Path(config.run.dir)
    threads = config.launcher.threads or max(1, (os.cpu_count() or 1) // count)
    command = [sys.executable, "-m", "bigtrain.train", "--run", str(run_dir)]
    for target in trusted:
        command += ["--trust", target]
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    return [
        Rank(
            command,
            shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            run_dir / "logs" / f"rank_{rank}.log" if rank else None,
        )
        for rank in range(count)
    ]
