"""The worker: one process of a run. Builds the parts, puts them on the checkpoint's state, calls the loop, finishes.

`bigtrain train` starts it with `--run DIR`; any other launcher starts it bare, with the recipe and overrides:
`deepspeed --num_gpus 8 --module bigtrain.train recipe=R`, `torchrun --nproc-per-node 8 -m bigtrain.train recipe=R`.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.config.compose import PENDING, Composed, compose, freeze, load_frozen, load_run
from bigtrain.config.rules import accumulation, check_rules
from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError, guarded
from bigtrain.placement import read_environment

if TYPE_CHECKING:
    from torch import nn

    from bigtrain.checkpoint.find import Checkpoint
    from bigtrain.distributed import Ranks
    from bigtrain.engines.base import Batch, Engine
    from bigtrain.trainer import State


def die_with_parent() -> None:
    """Ask the kernel to end this rank when the process that supervises it is gone (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def read_arguments(argv: Sequence[str]) -> Composed:
    """The configuration that `argv` asks for; launchers' own `--local_rank=N` is taken and not needed."""
    words = [word for word in argv if not word.startswith(("--local_rank", "--local-rank"))]
    if "--run" not in words:
        return compose(words, world_size=read_environment(dict(os.environ)).world_size)
    die_with_parent()
    run_dir = Path(words[words.index("--run") + 1])
    trusted = [words[i + 1] for i, word in enumerate(words) if word == "--trust"]
    return Composed(load_run(run_dir / PENDING, trusted), load_frozen(run_dir / PENDING))


@dataclass(slots=True)
class DataBatches:
    """The loop's batches, from a data component."""

    data: Any
    config: RunConfig
    ranks: Ranks
    divisor: int

    def train(self, position: int) -> Iterable[tuple[list[Batch], int]]:
        """See `bigtrain.trainer.Batches`."""
        from bigtrain.data.loader import train_batches

        trainer = self.config.trainer
        return train_batches(
            self.data.train,
            seed=self.config.seed,
            position=position,
            global_batch_size=trainer.global_batch_size,
            micro_batch_size=trainer.micro_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            pin_memory=self.ranks.device.type == "cuda",
        )

    def held_out(self) -> Iterable[Batch] | None:
        """See `bigtrain.trainer.Batches`."""
        from bigtrain.data.loader import eval_batches

        if self.data.eval is None or len(self.data.eval) == 0:
            return None
        trainer = self.config.trainer
        return eval_batches(
            self.data.eval,
            micro_batch_size=trainer.micro_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            max_batches=trainer.eval_batches,
        )


def total_steps(config: RunConfig, samples: int, targets_per_sample: int) -> int:
    """Steps of the whole run, from whichever of `max_steps`, `epochs` and `max_tokens` is set."""
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.epochs is not None:
        return max(1, math.ceil(trainer.epochs * samples / trainer.global_batch_size))
    assert trainer.max_tokens is not None
    return max(1, math.ceil(trainer.max_tokens / (trainer.global_batch_size * targets_per_sample)))
