"""From a checked configuration to what starts its ranks: pure, no torch, no sockets, nothing started.

One file a launcher, each with `plan(job: Job) -> Plan` (`base.py`). `supervise.py` runs a plan; `preflight.py` looks
at the machines before; `report.py` carries stop and exit code past launchers that lose them.
"""

from __future__ import annotations

import importlib

from bigtrain.launchers.base import Job, Plan


def plan(job: Job) -> Plan:
    """What the job's launcher is going to do."""
    module = importlib.import_module(f"bigtrain.launchers.{job.config.launcher.name}")
    result: Plan = module.plan(job)
    return result
