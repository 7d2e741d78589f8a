"""What a builder is told (`Job`), and what it answers (`Plan`): processes to start and files to write. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bigtrain.config.hosts import Host
from bigtrain.config.launching import threads
from bigtrain.config.schema import RunConfig


@dataclass(frozen=True, slots=True)
class Job:
    """A composed run, and all of the world that a builder may know."""

    config: RunConfig
    words: tuple[str, ...] = ()
    """What the user typed behind the command."""
    trusted: tuple[str, ...] = ()
    """The targets of the components that the user's own configuration named: the workers take no others."""
    hosts: tuple[Host, ...] = ()
    """The machines of a hostfile, filtered; none: this machine."""
    cwd: Path = Path("/")
    python: str = "python"
    port: int = 29500
    """A free one, for rank 0 to listen on."""
    cores: int = 1
    """CPU cores of this machine."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The environment that the command was started with."""
    deepspeed_env: str = ""
    """The lines of the user's own `.deepspeed_env` files."""

    @property
    def run_dir(self) -> Path:
        """The run folder as the user named it."""
        return Path(self.config.run.dir or "")

    def worker(self, reports: bool = False) -> list[str]:
        """The words that start one rank (`-m` and so on, behind the interpreter); see `launchers/report.py`."""
        trust = [word for target in self.trusted for word in ("--trust", target)]
        return ["bigtrain.train", "--run-dir", str(self.run_dir), *trust, *(["--report"] if reports else [])]

    def threads(self, ranks: int) -> str:
        """CPU threads a rank, where `ranks` share the machine."""
        return threads(self.config.launcher.threads, self.env, self.cores, ranks)


@dataclass(frozen=True, slots=True)
class Process:
    """One process to start on this machine."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """What it adds to the environment."""
    output: Path | None = None
    """Where its output goes; None: the terminal."""
    name: str = ""
    """What it is called in messages: `rank 1`, `host node1`, `torchrun`."""
    reached: Literal["signal", "stdin", "folder"] = "signal"
    """How it is asked to stop: by signals; by their names on its standard input (ssh); by a file in the run folder
    (a launcher that passes no signal on), from which its exit code is read too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a launcher is going to do."""

    processes: list[Process]
    files: dict[Path, str] = field(default_factory=dict)
    """Written before anything is started."""
    submits: bool = False
    """The processes hand the run to a scheduler and end at once."""
