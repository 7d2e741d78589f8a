"""Plan against actual: written into each run, remembered for the hardware, and quoted by the next plan."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigtrain.config.composer import CONF
from bigtrain.config.schema import Hardware, RunConfig
from bigtrain.models.shapes import Shape
from bigtrain.plan.plan import plan
from bigtrain.plan.subject import Cluster
from bigtrain.telemetry.metrics import read_lines

FILE = "plan.json"


def compare(config: RunConfig, shape: Shape, where: Cluster, device_name: str) -> dict[str, Any] | None:
    """Write `plan.json` into the run folder: what was planned, what was measured, and measured / planned - 1.

    Args:
        config: the run's.
        shape: of its model.
        where: its ranks.
        device_name: as the driver calls it; CPU.

    Returns:
        What was written; None where nobody knows the hardware, or nothing was measured.
    """
    run_dir = Path(config.run.dir or "")
    named = config.hardware
    hardware = named if named is not None and named.name == device_name else known(device_name)
    lines = read_lines(run_dir / "metrics.jsonl", "train")[1:]  # the first steps warm up
    if hardware is None or not lines:
        return None
    found = plan(replace(config, hardware=hardware), model=shape, where=where)
    planned: dict[str, float] = {"memory_bytes": found.memory.total}
    measured: dict[str, float] = {}
    if found.pace is not None:
        planned["step_s"] = found.pace.step
        measured["step_s"] = statistics.median(line["step_time_s"] for line in lines)
    if device_name != "CPU":  # there a process's whole memory is measured, libraries and all
        measured["memory_bytes"] = max(line["memory_peak_bytes"] for line in lines)
    errors = {name: measured[name] / planned[name] - 1 for name in measured}
    told = {"hardware": hardware.name, "planned": planned, "measured": measured, "error": errors}
    (run_dir / FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if errors:
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="utf-8") as past:
            past.write(json.dumps({"hardware": hardware.name, "error": errors}) + "\n")
    return told


def known(device_name: str) -> Hardware | None:
    """A shipped node with this device; None: there is none."""
    import yaml

    for file in sorted((CONF / "hardware").glob("*.yaml")):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if settings.get("name") == device_name and device_name != "CPU":
            return Hardware(**settings)
    return None


def quote(hardware: Hardware | None) -> str | None:
    """How far past plans for this hardware were off, at the median; None where there are none."""
    if hardware is None or not _file().is_file():
        return None
    mine = []
    for line in _file().read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
        except ValueError:  # cut short: whoever wrote it was killed, or the disk was full
            continue
        if one["hardware"] == hardware.name:
            mine.append(one["error"])
    parts = []
    for name, text in (("step_s", "steps took"), ("memory_bytes", "memory was")):
        errors = [error[name] for error in mine if name in error]
        if errors:
            parts.append(f"{text} {statistics.median(errors):+.1%} of the plan ({len(errors)})")
    return f"past runs on {hardware.name}, median: {'; '.join(parts)}" if parts else None


def _file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "bigtrain" / "plans.jsonl"
