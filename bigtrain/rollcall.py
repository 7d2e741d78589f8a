"""The roll call, before anything is built: all ranks run the same versions of the same recipe in one run folder."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import socket
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from bigtrain.distributed import barrier, broadcast_object, gather_objects
from bigtrain.errors import UserError

PACKAGES = ("bigtrain", "torch", "deepspeed", "transformers")
CLOCK_S = 10.0
"""Clocks that differ by more are told: logs of several hosts cannot be read together then."""


def roll_call(raw: dict[str, Any], run_dir: Path, first: bool, say: Callable[[str], None]) -> None:
    """Compare what every rank is made of; all ranks call it, `first` on rank 0, once the run folder is there.

    Raises:
        UserError: the same on all ranks: names the rank, its host and what differs.
    """
    marker = run_dir / f".here-{broadcast_object(secrets.token_hex(4))}"
    if first:
        marker.touch()
    barrier()
    mine = {
        "host": socket.gethostname(),
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: metadata.version(name) for name in PACKAGES},
        "recipe": _digest(raw),
        "sees": marker.exists(),
        "clock": time.time(),
    }
    everyone = gather_objects(mine)
    if first:
        marker.unlink()
    compare(everyone, run_dir, say if first else lambda message: None)


def compare(everyone: list[dict[str, Any]], run_dir: Path, say: Callable[[str], None]) -> None:
    """Every rank's words against rank 0's.

    Raises:
        UserError: the first difference.
    """
    first = everyone[0]
    for rank, other in enumerate(everyone):
        who = f"rank {rank} on {other['host']}"
        for name in ("Python", *PACKAGES):
            if other[name] != first[name]:
                raise UserError(
                    f"{who} has {name} {other[name]}, and rank 0 on {first['host']} has {first[name]}: "
                    "install the same on every host."
                )
        if other["recipe"] != first["recipe"]:
            raise UserError(
                f"{who} composed another configuration than rank 0 on {first['host']}: its recipe, its conf folder or "
                "its overrides differ. Put the same there, or start with `bigtrain train`, which composes once."
            )
        if not other["sees"]:
            raise UserError(
                f"{who} does not see run.dir={run_dir} of rank 0 on {first['host']}: it has to be a folder that all "
                "hosts share, under the same path."
            )
    apart = max(everyone, key=lambda other: abs(other["clock"] - first["clock"]))
    if abs(apart["clock"] - first["clock"]) > CLOCK_S:
        say(
            f"warning: the clock of {apart['host']} is {apart['clock'] - first['clock']:+.0f} s off that of "
            f"{first['host']}: times in logs do not compare."
        )


def _digest(raw: dict[str, Any]) -> str:
    """Of the configuration without the run folder, whose default holds the time."""
    content = {key: value for key, value in raw.items() if key != "run"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
