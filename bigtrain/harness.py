"""`bigtrain evaluate EXPORT task=lm_eval`: the public benchmarks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError, nearest
from bigtrain.trained import Device, choose_device, locate, quiet_transformers


def export_at(path: str | Path) -> Path:
    """The Hugging Face folder to measure: the path itself, or the export that lies in a run.

    Raises:
        UserError: the run has none.
    """
    kind, run_dir = locate(Path(path).expanduser())
    if run_dir is None:
        return Path(path).expanduser()
    if kind == "run" and (run_dir / "export" / "config.json").is_file():
        return run_dir / "export"
    raise UserError(
        f"task=lm_eval measures an export, and {path} is none: bigtrain export {path} --out DIR, then "
        "bigtrain evaluate DIR task=lm_eval."
    )


def measure(
    path: str | Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: Device = "auto",
) -> dict[str, dict[str, Any]]:
    """task -> metric -> value, as the harness names them; `acc_stderr` is the standard error of `acc`.

    Args:
        path: an export, or a run that has one.
        tasks: names of the harness's tasks, groups and tags.
        include: a folder with tasks of one's own, in YAML.
        few_shot: examples in front of a question; None: the task's own number.
        limit: questions of each task, for a try; None: all.
        batch_size: questions at once.
        device: as for the other evaluations.

    Raises:
        UserError: the harness is missing, there is no such task, its data cannot be had, or the model writes no text.
    """
    folder = export_at(path)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"task=lm_eval needs the harness: pip install 'bigtrain[evaluate]' ({error})") from error
    if include is not None and not include.is_dir():
        raise UserError(f"--include {include}: there is no such folder.")
    quiet_transformers()
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in tasks:
        if not manager.match_tasks([name]):
            close = nearest(name, manager.all_tasks)
            raise UserError(f"--tasks {name}: the harness has none such.{close if 'Did you' in close else ''}")
    try:
        model = HFLM(pretrained=str(folder), device=choose_device(device, None).type, batch_size=batch_size)
    except Exception as error:  # of any kind: it is the user's folder
        raise UserError(f"{folder}: the harness cannot load it: {_reason(error)}") from error
    try:
        found: Any = simple_evaluate(
            model=model, tasks=list(tasks), num_fewshot=few_shot, limit=limit, task_manager=manager, log_samples=False,
            bootstrap_iters=1000,
        )  # fmt: skip
    except Exception as error:  # most often: its data are on the hub, which is not reached
        raise UserError(f"task=lm_eval: {', '.join(tasks)} cannot be measured: {_reason(error)}") from error
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in numbers.items()
            if isinstance(value, int | float) and not name.startswith("sample")
        }
        for task, numbers in found["results"].items()
    }


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Task, metric, value and standard error."""
    from rich.table import Table

    from bigtrain.telemetry.progress import console

    table = Table()
    for name in ("task", "metric", "value", "±"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task, numbers in found.items():
        for metric, value in numbers.items():
            if "_stderr" not in metric:
                error = numbers.get(f"{metric}_stderr")
                table.add_row(task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
    console().print(table)
