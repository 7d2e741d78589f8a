"""What a row of the table is: its data, its run folders, and the commands that it gives."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.telemetry.metrics import read_lines

BASELINES = Path(__file__).resolve().parents[1] / "baselines"


@dataclass
class Row:
    """One row at work: where its data and runs are, and what it found."""

    name: str
    data: Path
    work: Path
    extra: list[str]
    commands: list[str] = field(default_factory=list)
    trained_s: float = 0.0
    """Seconds of training in all, by the runs' own files."""

    def run(self, *words: str) -> str:
        """`bigtrain WORDS`; its standard output. What it says goes to the terminal."""
        said = " ".join(["bigtrain", *map(shlex.quote, words)])
        self.commands.append(said.replace(str(self.work), "runs/rows").replace(str(self.data), "DATA"))
        print(f"\n[{self.name}] {self.commands[-1]}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bigtrain", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    @property
    def folder(self) -> Path:
        """Of the row's runs, and of what it makes of its data."""
        folder = self.work / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def cache(self) -> Path:
        """Of prepared data, of all rows."""
        return self.work / "prepared"

    def train(self, folder: str, *words: str, export: bool = False) -> Path:
        """Train in this folder of the row, or take what was trained there."""
        run = self.folder / folder
        kept = (f"evaluation.export={str(export).lower()}", "evaluation.report=false")
        self.run("train", *words, *kept, f"data.cache={self.cache}", f"run.dir={run}", *self.extra)
        self.trained_s += seconds(run)
        return run

    def evaluate(self, run: Path, *words: str) -> dict[str, Any]:
        """What `bigtrain evaluate --json` finds."""
        found: dict[str, Any] = json.loads(self.run("evaluate", str(run), *words, "--json"))
        return found

    def script(self, name: str, *words: str) -> dict[str, Any]:
        """A baseline's JSON."""
        command = [sys.executable, str(BASELINES / name), *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, by step."""
    return read_lines(run / "metrics.jsonl", "eval")


def seconds(run: Path) -> float:
    """Of all steps of a run; a line of metrics.jsonl has the mean of the steps since the one before."""
    lines = read_lines(run / "metrics.jsonl", "train")
    steps = [line["step"] for line in lines]
    return sum((now - then) * line["step_time_s"] for line, then, now in zip(lines, [0, *steps], steps, strict=False))
