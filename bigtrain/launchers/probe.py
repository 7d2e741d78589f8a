"""What another machine is asked before a run: `python -m bigtrain.launchers.probe FOLDER PORT` prints one line of JSON.

No torch is imported: its version is read from the installed package.
"""

from __future__ import annotations

import json
import platform
import socket
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import bigtrain
from bigtrain.launchers.local import free_port

MARKER = ".marker"
"""A file in the run folder that tells whether two machines see the same one."""


def facts(folder: Path, port: int | None) -> dict[str, Any]:
    """Versions, clock, the marker in the run folder, and who is in the way at `port`, of this machine."""
    versions = {"bigtrain": bigtrain.__version__, "python": platform.python_version()}
    for package in ("torch", "deepspeed"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    marker = None
    with suppress(OSError):
        marker = (folder / MARKER).read_text(encoding="utf-8")
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "versions": versions,
        "marker": marker,
        "free_port": free_port(),
        "in_the_way": listener(port) if port else None,
    }


def listener(port: int) -> str | None:
    """Who listens on `port` of this machine; None: nobody."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just left is free
        try:
            probe.bind(("", port))
        except OSError as error:
            return _owner(port) or error.strerror or "another process"
    return None


def _owner(port: int) -> str | None:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
            inodes |= {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            targets = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
            if any(target.removeprefix("socket:[").rstrip("]") in inodes for target in targets):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name} ({command[:80]})"
    return None


if __name__ == "__main__":
    print(json.dumps(facts(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)))
