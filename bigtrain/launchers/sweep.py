"""Names, ledger and submitit's parameters of a sweep: pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.config.launchers import Slurm
from bigtrain.config.launching import processes, slurm_seconds
from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError

LEDGER = "sweep.json"
OUTCOME = "outcome.json"
"""In the run folder of each part: the exit code that it ended with."""
NAME_LENGTH = 100


@dataclass(slots=True)
class Part:
    """One run of a sweep: its place in the order, what it alone overrides, its run folder."""

    number: int
    overrides: list[str]
    folder: str
    job: str | None = None
    """The scheduler's id, once it has one."""

    @property
    def title(self) -> str:
        """What to call it on the terminal."""
        return " ".join(self.overrides)

    def outcome(self) -> int | None:
        """The exit code that it ended with; None: it has not ended yet."""
        try:
            return int(json.loads((Path(self.folder) / OUTCOME).read_text(encoding="utf-8"))["code"])
        except (OSError, ValueError, KeyError):
            return None

    def record(self, code: int) -> None:
        """Keep the exit code."""
        file = Path(self.folder) / OUTCOME
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"code": code}) + "\n", encoding="utf-8")

    def last(self, split: str) -> dict[str, Any]:
        """The last line that the run has written for `train` or `eval`."""
        try:
            text = (Path(self.folder) / "metrics.jsonl").read_text(encoding="utf-8")
        except OSError:
            return {}
        lines = [line for line in text.splitlines() if f'"{split}"' in line]
        return dict(json.loads(lines[-1])) if lines else {}


def folder_name(number: int, overrides: Sequence[str]) -> str:
    """`0_optimizer.lr-1e-3_seed-1`: every sign is one that `run.dir=` takes without quotes."""
    words = [re.sub(r"[^A-Za-z0-9._]+", "-", word.lstrip("+~")).strip("-.") for word in overrides]
    return "_".join([str(number), *words])[:NAME_LENGTH].rstrip("-._")


def words_of(shared: Sequence[str], part: Part) -> list[str]:
    """What one would type for this part alone, its run folder last."""
    keys = {word.lstrip("+~").partition("=")[0] for word in part.overrides}
    fixed = [word for word in shared if word.lstrip("+~").partition("=")[0] not in keys]
    return [*fixed, *part.overrides, f"run.dir={part.folder}"]


def write_ledger(
    folder: Path, words: Sequence[str], parts: Sequence[Part], more: Mapping[str, Any] | None = None
) -> None:
    """`sweep.json`: what was typed, where each part of it is, and `more`; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"words": list(words), "parts": [asdict(part) for part in parts], **(more or {})}
    text = json.dumps(found, indent=1)
    temporary = folder / f"{LEDGER}.tmp"
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / LEDGER)


def read_ledger(folder: Path) -> tuple[list[str], list[Part]]:
    """The words and the parts of a sweep that is there already; nothing, where there is none.

    Raises:
        UserError: a ledger that cannot be read.
    """
    file = folder / LEDGER
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [str(word) for word in found["words"]], [Part(**part) for part in found["parts"]]
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def executor_parameters(config: RunConfig) -> dict[str, Any]:
    """`launcher=slurm` in the names of submitit's AutoExecutor.

    srun is ours: each job runs `bigtrain train` in its allocation, so that every `launcher.start` works.

    Raises:
        UserError: settings that a sweep does not have.
    """
    launcher = config.launcher
    assert isinstance(launcher, Slurm)
    if launcher.time is None:
        raise UserError("launcher.time has no value: a sweep's jobs need a time limit (submitit gives them 5 minutes).")
    if launcher.array:
        raise UserError("launcher.array: the jobs of a sweep are an array already; launcher.sweep_parallel=N at once.")
    ranks = processes(config)
    tasks = ranks if launcher.start == "srun" else 1
    extra: dict[str, object] = {"requeue": True, "ntasks-per-node": tasks}
    for option in launcher.extra:
        name, equals, value = option.lstrip("-").partition("=")
        extra[name] = value if equals else True
    seconds = slurm_seconds(launcher.time)
    return {
        "name": launcher.job_name or f"bigtrain-{(config.run.name or 'run').replace('/', '-')}",
        "timeout_min": -(-seconds // 60) if seconds else 365 * 24 * 60,
        "nodes": launcher.nodes or 1,
        "gpus_per_node": launcher.gpus,
        "cpus_per_task": launcher.cpus_per_task and launcher.cpus_per_task * (ranks // tasks),
        "stderr_to_stdout": True,
        "slurm_mem": launcher.mem,
        "slurm_partition": launcher.partition,
        "slurm_account": launcher.account,
        "slurm_qos": launcher.qos,
        "slurm_constraint": launcher.constraint,
        "slurm_dependency": launcher.dependency,
        "slurm_setup": launcher.setup or None,
        "slurm_signal_delay_s": launcher.warn_s,
        "slurm_array_parallelism": launcher.sweep_parallel,
        "slurm_use_srun": False,
        "slurm_additional_parameters": extra,
    }
