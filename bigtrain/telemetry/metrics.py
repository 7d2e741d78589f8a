"""metrics.jsonl: one JSON object a logged step, appended and flushed.

A number that is not finite has no JSON: it is written as null, and `not_finite` beside it says which it was, as in
`{"step": 7, "split": "train", "loss": null, "not_finite": {"loss": "nan"}}` (`nan`, `inf` or `-inf`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bigtrain.errors import UserError

Split = Literal["train", "eval"]
Number = float | int | None
FILE_NAME = "metrics.jsonl"
OF_TOKENS = ("causal_lm", "masked_lm", "seq2seq", "distillation")
"""The objectives whose targets are tokens."""


def counted(objective: Any) -> str:
    """What `tokens` counts in the lines of a run with this objective component, in words: the targets of any objective.

    A classifier has a label for a text, an image or a word; for DPO they are pairs of answers.
    """
    target = objective.get("_target_") if isinstance(objective, Mapping) else None
    room, _, name = str(target).rpartition(".")
    if target is None or (room == "bigtrain.objectives" and name in OF_TOKENS):
        return "tokens"
    return "pairs" if target == "bigtrain.objectives.dpo" else "targets"


def read_lines(path: Path, split: Split | None = None) -> list[dict[str, Any]]:
    """The whole objects of a metrics.jsonl, in order, or those of one split; broken lines or no step's are left out.

    A missing file reads as empty: a run that was killed before its first log point has none.
    """
    lines: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            for raw in file:
                if split is not None and f'"{split}"'.encode() not in raw:  # of a long run, few lines are evaluations
                    continue
                line = _parse(raw)
                if line is not None and split in (None, line["split"]):
                    lines.append(line)
    except FileNotFoundError:
        pass
    return lines


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):  # half-written: whoever wrote it was killed
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("split") not in ("train", "eval"):
        return None
    step = line.get("step")
    return line if isinstance(step, int) and 0 <= step < 2**53 else None


def numbers(line: Mapping[str, Any]) -> dict[str, Number]:
    """The metrics of a line of metrics.jsonl as they were logged: NaN and infinity are back."""
    not_finite = line.get("not_finite")
    named = not_finite if isinstance(not_finite, dict) else {}
    metrics: dict[str, Number] = {}
    for name, value in line.items():
        if name in ("step", "split"):
            continue
        if value is None and named.get(name) in ("nan", "inf", "-inf"):
            metrics[name] = float(named[name])
        elif value is None or isinstance(value, float) or (type(value) is int and abs(value) < 2**63):
            metrics[name] = value
    return metrics


class JsonlLog:
    """The writer; rank 0 only.

    Opening it makes the file what a run that never stopped would have at `resume_step`: the lines that a killed run
    wrote after its checkpoint go, and so does a half-written last one. The rest stays, byte for byte. The change is
    one rename, so a crash leaves the old file or the new one.

    Args:
        run_dir: the run folder, which is there.
        resume_step: the checkpoint's step; None: a start from nothing, so the file begins empty.

    Raises:
        UserError: the file cannot be written (rights, a full disk). `log` raises it too.
    """

    def __init__(self, run_dir: Path, *, resume_step: int | None = None):
        self.path = run_dir / FILE_NAME
        try:
            self._forget_after(resume_step)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _forget_after(self, resume_step: int | None) -> None:
        if not self.path.exists():
            return
        temporary = self.path.with_name(f".{FILE_NAME}.{os.getpid()}")
        changed = False
        try:
            with self.path.open("rb") as old, temporary.open("wb") as new:
                for raw in old:
                    line = _parse(raw)
                    if resume_step is not None and line is not None and line["step"] <= resume_step:
                        new.write(raw)
                    else:
                        changed = True
                new.flush()
                os.fsync(new.fileno())
            if changed:
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """Append one line: `step`, `split`, then the metrics in their own order."""
        line: dict[str, Any] = {"step": step, "split": split}
        not_finite: dict[str, str] = {}
        for name, value in metrics.items():
            finite = value is None or math.isfinite(value)
            line[name] = value if finite else None
            if not finite:
                not_finite[name] = str(float(value))  # type: ignore[arg-type]  # None is finite here
        if not_finite:
            line["not_finite"] = not_finite
        raw = json.dumps(line, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(raw)  # one unbuffered write a line: a kill cannot leave two halves
            if written is not None and written < len(raw):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Make it durable."""
        if self._file.closed:
            return
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
