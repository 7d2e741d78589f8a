"""`bigtrain bench`: the benchmark suites of the checkout, which the wheel does not carry."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from bigtrain.errors import UserError
from bigtrain.terminal import CommandLine

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def main(argv: Sequence[str]) -> int:
    """The command.

    Raises:
        UserError: an unknown suite or option, a baseline that cannot be read, no checkout.
    """
    line = CommandLine("bench", "", device=False)
    line.add_argument("--out", type=Path)
    line.add_argument("--against", type=Path)
    line.add_argument("--rounds", type=int)
    line.add_argument("--small", action="store_true")
    options = line.options(argv)
    if not (FOLDER / "_bench.py").is_file():
        raise UserError(
            "the benchmarks lie in bigtrain's source tree, not in the installed package: run `make bench`, or "
            "`bigtrain bench` of an editable install (pip install -e '.[benchmark]'), in a checkout."
        )
    sys.path.insert(0, str(FOLDER))
    code: int = importlib.import_module("_bench").bench(
        options.words, options.out, options.against, options.rounds, options.small
    )
    return code
