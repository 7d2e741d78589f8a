"""Meters and trackers: what a run measures, and where the numbers go besides `metrics.jsonl`.

This door is torch-free and names exactly what a configuration may target under `tracker`. The rest of the room:
`meters` (what the trainer measures), `peaks` (FLOP/s of known devices), `metrics` (metrics.jsonl), `environment`
(environment.json), `progress` (the terminal and the log files), `trackers` (the protocol and the fan-out).
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.errors import UserError

if TYPE_CHECKING:
    from bigtrain.telemetry.trackers import Tracker

__all__ = ["tensorboard", "wandb"]


def check_installed(targets: Collection[str]) -> None:
    """A `UserError` for the first of bigtrain's own trackers among `targets` whose package is missing."""
    for name in __all__:
        if f"{__name__}.{name}" in targets and find_spec(name) is None:
            raise UserError(f"tracker={name} needs a package: pip install 'bigtrain[{name}]'")


def tensorboard(run_dir: Path, config: dict[str, Any], *, folder: str = "tensorboard", flush_s: int = 10) -> Tracker:
    """Event files for TensorBoard in `<run>/<folder>`; a resumed run hides the steps that it does again.

    Args:
        run_dir: the run folder.
        config: the run's configuration, kept beside the curves as text.
        folder: where the event files go, below the run folder.
        flush_s: seconds between two writes to the disk.

    Raises:
        UserError: the package tensorboard is not installed.
    """
    from bigtrain.telemetry.trackers import TensorBoardTracker

    return TensorBoardTracker(run_dir, config, folder=folder, flush_s=flush_s)


def wandb(
    run_dir: Path,
    config: dict[str, Any],
    *,
    project: str = "bigtrain",
    mode: Literal["online", "offline", "disabled"] = "offline",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    notes: str | None = None,
) -> Tracker:
    """One Weights & Biases run, the same across resumes: its id is kept in `<run>/wandb.json`.

    `offline` (the default) needs neither network nor account; `wandb sync <run>/wandb/offline-run-*` uploads later:
    the newest such folder holds the whole run.

    Args:
        run_dir: the run folder; wandb's own files go to `<run>/wandb`.
        config: the run's configuration, shown beside the run.
        project: wandb's project.
        mode: `online`, `offline` or `disabled`.
        entity: user or team; null: wandb's default.
        name: the run's name there; null: `<recipe>/<id>`, from the run folder.
        group: wandb's group.
        tags: labels.
        notes: a text beside the run.

    Raises:
        UserError: the package wandb is not installed, or wandb refuses to start (no account, no network).
    """
    from bigtrain.telemetry.trackers import WandbTracker

    return WandbTracker(
        run_dir, config, project=project, mode=mode, entity=entity, name=name, group=group, tags=tags, notes=notes
    )
