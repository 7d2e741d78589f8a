"""Where the numbers go besides metrics.jsonl: the protocol, the two that ship, and the fan-out that guards training."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from bigtrain.errors import UserError
from bigtrain.telemetry.metrics import FILE_NAME as METRICS
from bigtrain.telemetry.metrics import Number, Split, numbers, read_lines

logger = logging.getLogger("bigtrain.telemetry")

Mode = Literal["online", "offline", "disabled"]


class Tracker(Protocol):
    """Rank 0 makes it from `target(run_dir, config, **settings)`, after `JsonlLog` has opened metrics.jsonl."""

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """The numbers of one log point; None where a number is not known."""

    def close(self) -> None:
        """Flush; no call comes after."""


class Trackers:
    """All trackers of a run as one. One that fails is warned about once, and training goes on.

    The next numbers are still offered to it: networks come back.
    """

    def __init__(self, trackers: Mapping[str, Tracker]):
        self._trackers = dict(trackers)
        self._lost = dict.fromkeys(trackers, 0)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """Hand the numbers to every tracker."""
        for name, tracker in self._trackers.items():
            try:
                tracker.log(step, split, metrics)
            except Exception as error:
                if not self._lost[name]:
                    logger.warning(
                        "tracker %s failed at step %d (%s: %s); training goes on, the numbers are in metrics.jsonl",
                        name, step, type(error).__name__, error,
                    )  # fmt: skip
                self._lost[name] += 1

    def close(self) -> None:
        """Close every tracker, and say what was lost."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                logger.warning("tracker %s did not close cleanly (%s: %s)", name, type(error).__name__, error)
            if self._lost[name]:
                logger.warning("tracker %s missed %d log points", name, self._lost[name])


class TensorBoardTracker:
    """Scalars `train/loss`, `eval/perplexity` … over the step."""

    def __init__(self, run_dir: Path, config: dict[str, Any], *, folder: str, flush_s: int):
        try:
            # torch's own message for its absence names no extra
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401
        except ImportError as error:
            raise UserError("tracker=tensorboard needs a package: pip install 'bigtrain[tensorboard]'") from error
        from torch.utils.tensorboard import SummaryWriter

        done = max((line["step"] for line in read_lines(run_dir / METRICS)), default=None)
        # purge_step hides what a killed run wrote after its checkpoint: those steps come again
        purge = None if done is None else done + 1
        self._writer = SummaryWriter(str(run_dir / folder), purge_step=purge, flush_secs=flush_s)
        if done is None:
            text = json.dumps(config, indent=2, default=str)
            self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """One scalar a number; unknown ones are left out, NaN and infinity are shown as such."""
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class WandbTracker:
    """One wandb run, whatever the number of resumes and of changes between offline and online.

    Its id is kept in `<run>/wandb.json`. A resume brings wandb up to metrics.jsonl from wandb's own step on. Online
    that is where the server stands: what it has of the steps that a resume does again is not sent twice (the numbers
    are the same, as resuming is exact). Offline it is the beginning, as a new session cannot read an older one's file
    and `wandb sync` may replace the one with the other (wandb#3841): the new session's folder then holds the whole
    run, and the older ones, if they were not synced, are removed.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], *, mode: Mode, name: str | None, **settings: Any):
        try:
            import wandb
        except ImportError as error:
            raise UserError("tracker=wandb needs a package: pip install 'bigtrain[wandb]'") from error

        done = read_lines(run_dir / METRICS)
        state = run_dir / "wandb.json"
        run_id = _read_id(state) if done else None  # a start from nothing is another run
        if run_id is None:
            run_id = secrets.token_hex(4)
            state.write_text(json.dumps({"id": run_id}) + "\n")
        older = [folder for folder in run_dir.glob(f"wandb/offline-run-*-{run_id}") if not any(folder.glob("*.synced"))]
        try:
            self._run = wandb.init(
                id=run_id,
                resume="allow",
                dir=str(run_dir),
                config=config,
                mode=mode,
                name=name or f"{run_dir.parent.name}/{run_dir.name}",
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
                **settings,
            )
        except Exception as error:  # UsageError, CommError, AuthenticationError …: all mean the same to the user
            hint = "`wandb login`, or tracker.wandb.mode=offline and `wandb sync` later"
            raise UserError(f"wandb did not start: {error}. Either {hint}.") from error
        if mode == "online":
            logger.info("wandb: %s", self._run.url)
        self._first = self._run.step
        for line in done:
            self.log(line["step"], line["split"], numbers(line))
        if mode == "offline":
            for folder in older:
                shutil.rmtree(folder, ignore_errors=True)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """`train/loss`, `eval/perplexity` … at wandb's own step, which may only grow."""
        if step >= self._first:
            known = {f"{split}/{name}": value for name, value in metrics.items() if value is not None}
            self._run.log(known, step=step)

    def close(self) -> None:
        """Finish this session; a resume goes on with the same run."""
        self._run.finish()


def _read_id(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
