"""Cross-validation: `evaluation.folds=5` trains a run for each fold, and tells mean and deviation of their metrics.

The folds are a sweep over `data.fold` (`sweep.py`): one that was stopped goes on where it was, in the same folder.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigtrain.config.components import build
from bigtrain.config.compose import compose
from bigtrain.config.composer import overrides_from
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, UserError

RESULT = "folds.json"


def train(argv: Sequence[str], config: RunConfig) -> int:
    """Train every fold of `config`, which `argv` composes to; the exit code of the sweep.

    Raises:
        UserError: the data cannot be cut into folds.
    """
    from bigtrain import sweep
    from bigtrain.launchers.sweep import read_ledger

    folds = config.evaluation.folds
    assert folds is not None
    if "folds" not in config.data:
        raise UserError(
            f"evaluation.folds={folds}: {config.data['_target_']} has no folds; there are folds of rows and images, "
            "such as data=labelled_texts."
        )
    if folds < 2:
        raise UserError(f"evaluation.folds={folds}: at least 2.")
    overrides, folders = overrides_from(argv)
    own = ("evaluation.folds", "run.dir", "data.folds", "data.fold")
    kept = [word for word in overrides if word.lstrip("+~").partition("=")[0] not in own]
    given = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith("run.dir=")]
    folder = given[-1] if given else f"runs/{config.run.name}/folds-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    words = [word for place in folders for word in ("--config-dir", str(place))]
    words += [*kept, "evaluation.folds=null", f"data.folds={folds}", f"data.fold={','.join(map(str, range(folds)))}"]
    if config.launcher.name == "local":  # what keeps the data from being cut is told once, and nothing is started
        of_first = [word for word in words if not word.startswith("data.fold=")]
        build(compose([*of_first, "data.fold=0"]).config.data, "data").prepare()
    code = sweep.train(["-m", *words, f"run.dir={folder}"])
    if code == EXIT_DONE:
        _, parts = read_ledger(Path(folder))
        _tell(Path(folder), [part.last("eval") for part in parts])
    return code


def _tell(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    """The table, and folds.json: each fold's last evaluation, mean and standard deviation (of a sample: n - 1)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = [name for name, value in lines[0].items() if isinstance(value, float)]
    names = [name for name in names if all(isinstance(line.get(name), float) for line in lines)]
    found = {name: [line[name] for line in lines] for name in names}
    summary = {name: {"mean": statistics.fmean(of), "deviation": statistics.stdev(of), "folds": of}
               for name, of in found.items()}  # fmt: skip
    (folder / RESULT).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table = Table("fold", *names, box=box.SIMPLE_HEAD)
    for number in range(len(lines)):
        table.add_row(str(number), *(f"{found[name][number]:.4f}" for name in names))
    table.add_row("mean", *(f"{summary[name]['mean']:.4f}" for name in names), style="bold")
    table.add_row("deviation", *(f"{summary[name]['deviation']:.4f}" for name in names))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
    print(folder, flush=True)
