"""CPU time from nothing to a trainer that could take its first step: bigtrain's, and the import of HF Trainer.

    python benchmarks/imports.py --out benchmarks/results/imports.json

bigtrain imports all that a run on one process imports and builds model, data, optimizer and engine of `recipe=smoke`;
beside it `from transformers import Trainer` alone, which builds nothing. A process each, its own CPU clock.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _suite import SECONDS, Measured, Suite, in_turn, last_json, metric, process

CLOCK = "import json, time; print(json.dumps({'CPU': time.process_time(), 'wall': time.perf_counter() - began}))"
BUILT = """
from bigtrain import garbage
garbage.hold()
import os
from pathlib import Path
from bigtrain.config.compose import compose
from bigtrain.assembly import assemble, check_parts, prepared_data
from bigtrain.outputs import Outputs
import bigtrain.trainer
from bigtrain import distributed
config = compose({words}).config
ranks = distributed.setup("cpu")
schedule, objective = check_parts(config)
garbage.started()
assemble(config, ranks, prepared_data(config), schedule, objective)
"""


def code(case: str, root: Path) -> str:
    """What a process does."""
    words = ["recipe=smoke", "engine=local", f"run.dir={root / 'run'}", f"data.cache={root / 'prepared'}"]
    return {
        "bigtrain: import and build": BUILT.format(words=words),
        "from transformers import Trainer": "from transformers import Trainer",
        "import torch": "import torch",
    }[case]


def run(case: str, root: Path) -> dict[str, Any]:
    """CPU and wall seconds of one process."""
    text = process(["-c", f"import time\nbegan = time.perf_counter()\n{code(case, root)}\n{CLOCK}"], threads=1)
    return dict(last_json(text))


CASES = ("bigtrain: import and build", "from transformers import Trainer", "import torch")


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`; it has no sizes."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measured = Measured({"code": {case: code(case, Path("WORK")) for case in CASES}, "threads": 1})
        say("preparing the data")
        for case in CASES:
            run(case, root)  # files into the page cache, and the data once for all
        measured.groups["start"] = in_turn(
            {case: partial(run, case, root) for case in CASES}, rounds, say, measured.notes
        )
    return measured


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={"CPU": metric(SECONDS), "wall": metric(SECONDS)},
    pictured=("CPU",),
    targets=(
        {
            "text": "import and build at most 0.45 × the CPU time of `from transformers import Trainer`",
            "group": "start", "of": [CASES[0], "CPU"], "over": [CASES[1], "CPU"], "at_most": 0.45,
        },
    ),
    measure=measure,
    rounds=2,
)  # fmt: skip

if __name__ == "__main__":
    SUITE.main()
