"""Locks that killed builds of C++ extensions left behind: torch waits for them for ever. Standard library only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

STALE_AFTER_S = 600.0
"""A lock whose folder has not changed for so long, with no process at work in it, was left by a killed build."""


def extension_folders() -> list[Path]:
    """Where torch builds C++ extensions: the variable's folder, bigtrain's own, torch's default."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    folders = [Path(chosen)] if chosen else []
    return [*folders, cache / "bigtrain" / "torch_extensions", cache / "torch_extensions"]


def stale_locks(folders: Sequence[Path], older_than_s: float = STALE_AFTER_S) -> list[Path]:
    """Locks of killed builds. torch waits for such a file for ever, in silence (pytorch#189245).

    A lock is stale when nothing in its folder has changed for `older_than_s` seconds and no process of this machine
    works in that folder (torch runs ninja there). A build on another machine of a shared file system changes files.
    """
    busy = _working_directories()
    stale = []
    for folder in dict.fromkeys(path.resolve() for path in folders if path.is_dir()):
        for lock in sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")}):
            changed = max((file.stat().st_mtime for file in (lock, *lock.parent.iterdir()) if file.exists()), default=0)
            at_work = any(path == lock.parent or lock.parent in path.parents for path in busy)
            if time.time() - changed > older_than_s and not at_work:
                stale.append(lock)
    return stale


def _working_directories() -> set[Path]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found.add(link.readlink())
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
