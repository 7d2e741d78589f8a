"""A suite: what it measures, its rounds, each in processes of their own, and its result in the common format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import ROOT, environment, parser, write_json
from _figures import Result
from _pages import markdown

Rounds = dict[str, dict[str, list[dict[str, Any]]]]
"""Group, case, and the values of each round."""
MS, MIB, SECONDS = ("ms", 1e3), ("MiB", 2.0**-20), ("s", 1.0)


def metric(unit: tuple[str, float], better: str | None = "lower") -> dict[str, Any]:
    """How a metric is shown: its unit, what a value is multiplied with for it, and which way is better."""
    return {"unit": unit[0], "scale": unit[1], "better": better}


@dataclass(slots=True)
class Measured:
    """What a suite's rounds gave."""

    config: dict[str, Any]
    groups: Rounds = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Suite:
    """One file of benchmarks/.

    `measure(rounds, small, say)`: `small` asks for toy sizes, to see that everything runs; `say` shows progress.
    """

    about: str
    metrics: dict[str, dict[str, Any]]
    pictured: Sequence[str]
    measure: Callable[[int, bool, Callable[[str], None]], Measured]
    targets: Sequence[dict[str, Any]] = ()
    rounds: int = 3

    @property
    def name(self) -> str:
        """Of its file."""
        return Path(sys.modules[self.measure.__module__].__file__ or "").stem

    def run(self, rounds: int | None, small: bool, say: Callable[[str], None]) -> Result:
        """The whole result."""
        before = os.getloadavg()
        found = self.measure(rounds or self.rounds, small, say)
        return {
            "suite": self.name,
            "about": self.about,
            **environment(),
            "load_average": [before, os.getloadavg()],
            "config": found.config | {"small": small},
            "metrics": self.metrics,
            "pictured": self.pictured,
            "groups": found.groups,
            "targets": [] if small else self.targets,
            "notes": found.notes,
        }

    def main(self) -> None:
        """The suite as a program of its own."""
        options = parser(self.about)
        options.add_argument("--rounds", type=int, default=self.rounds, help="(default %(default)s)")
        options.add_argument("--small", action="store_true", help="toy sizes: does everything run?")
        chosen = options.parse_args()
        result = self.run(chosen.rounds, chosen.small, lambda text: print(text, file=sys.stderr, flush=True))
        print(markdown(result))
        if chosen.out:
            write_json(chosen.out, result)


class FailedError(Exception):
    """A process that was to measure something ended with an error; the message is its last line."""


def process(command: Sequence[str], threads: int | None = None, **variables: str) -> str:
    """Run one process, with this checkout's bigtrain and benchmarks on its path; its standard output.

    Raises:
        FailedError: it ended with an error.
    """
    path = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        wanted["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | wanted | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FailedError((done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1])
    return done.stdout


def last_json(text: str) -> Any:
    """What a process printed in its last line."""
    return json.loads(text.strip().splitlines()[-1])


def in_turn(
    cases: dict[str, Callable[[], dict[str, Any]]], rounds: int, say: Callable[[str], None], notes: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Every case once a round, each round beginning with another one; a case that fails is left out, with a note."""
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(rounds):
        names = list(found)
        turn = number % max(1, len(names))
        for case in names[turn:] + names[:turn]:
            say(f"round {number + 1} of {rounds}: {case}")
            try:
                found[case].append(cases[case]())
            except FailedError as error:
                notes.append(f"{case} is left out: {error}")
                del found[case]
    return found
