"""Checkpoints that training does not wait for: copied in memory, then written by a thread while the next steps run.

Where the host has no room for the copy on any rank, all write at once, as `save` does, and training waits. So they do
where no step follows that could go on meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.checkpoint import tensorfile
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.save import save
from bigtrain.distributed import Ranks, gather_objects
from bigtrain.telemetry.environment import free_memory_bytes

SPARE = 2
"""The copy is made where so many times its size is free: what the next steps need beside it is not known here."""


class Background:
    """One checkpoint at a time; the next one waits for it. The copy's memory is kept for the next.

    While a thread writes, it alone talks to the other ranks over their control group: nothing else does in the loop.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, run_dir: str | Path, step: int, fragments: Sequence[Fragment], state: Any, rng: Any, ranks: Ranks,
        *, at_once: bool = False, **settings: Any,
    ) -> None:  # fmt: skip
        """`bigtrain.checkpoint.save.save` with the same arguments, done when `wait` has returned; `at_once`: uncopied.

        `state` and `rng` must not change any more; the fragments may as soon as this returns.

        Raises:
            what the save before this one raised.
        """
        self.wait()
        owned = [fragment for fragment in fragments if fragment.owner and fragment.numel]
        needed = sum(tensorfile.size(fragment.tensors) for fragment in owned) - tensorfile.size(self._copies)
        room = needed <= 0 or SPARE * needed * ranks.local_world_size <= free_memory_bytes()
        if at_once or not all(gather_objects(room)):
            self._copies = {}
            save(run_dir, step, fragments, state, rng, ranks, **settings)
            return
        copied = [self._copy(fragment) for fragment in owned]

        def write() -> None:
            try:
                save(run_dir, step, copied, state, rng, ranks, **settings)
            except BaseException as error:  # raised where the training thread next comes by
                self._error = error

        self._thread = threading.Thread(target=write, name="bigtrain-checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last one is a checkpoint; its error is raised here."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _copy(self, fragment: Fragment) -> Fragment:
        tensors = {}
        for kind, live in fragment.tensors.items():
            key = f"{kind}|{fragment.name}|{fragment.start}"
            kept = self._copies.get(key)
            if kept is None or (kept.shape, kept.dtype) != (live.shape, live.dtype):
                kept = self._copies[key] = torch.empty(live.shape, dtype=live.dtype, pin_memory=live.is_cuda)
            tensors[kind] = kept.copy_(live.detach())
        extra = {
            kind: value.detach().clone() if isinstance(value, Tensor) else value
            for kind, value in fragment.extra.items()
        }
        return replace(fragment, tensors=tensors, extra=extra)
