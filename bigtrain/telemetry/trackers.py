"""Where the numbers go besides metrics.jsonl: the protocol, the two that ship, and the fan-out that guards training."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from bigtrain.errors import UserError
from bigtrain.telemetry.metrics import Number, Split, last_step

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

        done = last_step(run_dir)
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
    """One wandb run, whatever the number of resumes.

    `<run>/wandb.json` keeps its id and the last step it was given: wandb's step may only grow, and a resume does again
    the steps after its checkpoint (with the same numbers, as resuming is exact), so these are not sent twice.
    """

    def __init__(self, run_dir: Path, config: dict[str, Any], *, mode: Mode, **settings: Any):
        try:
            import wandb
        except ImportError as error:
            raise UserError("tracker=wandb needs a package: pip install 'bigtrain[wandb]'") from error

        self._state_path = run_dir / "wandb.json"
        self._id, self._sent = _read_state(self._state_path)
        if last_step(run_dir) is None:  # from nothing: a run that began here before and was thrown away is not this one
            self._id, self._sent = secrets.token_hex(4), -1
        self._before = self._sent
        settings["name"] = settings["name"] or f"{run_dir.parent.name}/{run_dir.name}"
        try:
            self._run = wandb.init(
                id=self._id,
                resume="allow",
                dir=str(run_dir),
                config=config,
                mode=mode,
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
                **settings,
            )
        except Exception as error:  # UsageError, CommError, AuthenticationError …: all mean the same to the user
            hint = "`wandb login`, or tracker.wandb.mode=offline and `wandb sync` later"
            raise UserError(f"wandb did not start: {error}. Either {hint}.") from error
        self._write_state()
        if self._run.url:
            logger.info("wandb: %s", self._run.url)

    def log(self, step: int, split: Split, metrics: Mapping[str, Number]) -> None:
        """`train/loss`, `eval/perplexity` … at wandb's own step."""
        if step <= self._before:
            return
        numbers = {f"{split}/{name}": value for name, value in metrics.items() if value is not None}
        self._run.log(numbers, step=step)
        if step > self._sent:
            self._sent = step
            self._write_state()

    def close(self) -> None:
        """Finish this session; a resume goes on with the same run."""
        self._run.finish(quiet=True)

    def _write_state(self) -> None:
        temporary = self._state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"id": self._id, "step": self._sent}) + "\n")
        temporary.replace(self._state_path)


def _read_state(path: Path) -> tuple[str, int]:
    try:
        state = json.loads(path.read_text())
        return str(state["id"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return secrets.token_hex(4), -1
