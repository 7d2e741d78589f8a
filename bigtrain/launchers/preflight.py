"""Look at the machines before anything is started: what is wrong is named once, and the run folder is not made."""

from __future__ import annotations

from bigtrain.launchers.base import Job


def look(job: Job) -> Job:
    """Look at the hosts, or at the cluster; the job, with a port that is free on its first host."""
    return job


def look_at_folder(job: Job) -> None:
    """Is the run folder, now made, the same one on the other machines?"""
