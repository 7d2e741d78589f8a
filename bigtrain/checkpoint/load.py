"""Read a checkpoint: into an engine's live views, whatever the number of ranks that wrote it, or as whole tensors."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.find import Checkpoint
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.manifest import Entry, Slice
from bigtrain.checkpoint.together import together
from bigtrain.distributed import Ranks, gather_objects
from bigtrain.errors import UserError

Stored = Entry | float | int


def load(
    checkpoint: Checkpoint,
    fragments: Sequence[Fragment],
    ranks: Ranks,
    *,
    warn: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Copy the elements that each of this rank's fragments holds into it, in place. All ranks call it.

    The fragments are `engine.fragments(checkpoint.stateful)`; `engine.loaded()` comes next. Numbers in `Fragment.extra`
    are set in that dict, from where the engine takes them.

    Returns the `state` that was saved, and this rank's random states: None (said through `warn`) where the number of
    ranks is another.

    Raises UserError, the same on all ranks and before anything is copied, where the model or its optimizer is another
    one than the checkpoint's: names that either lacks, other shapes.
    """
    table = checkpoint.manifest
    same_ranks = ranks.world_size == table.world_size
    what = f"Cannot go on from {checkpoint.path}: "
    reader = _copy(checkpoint, {**table.tensors, **table.extra}, fragments, what)
    rng = together(lambda: reader.rng(ranks.rank) if same_ranks else None, lambda fault: what + fault)
    if rng is None and ranks.first:
        warn(
            f"{checkpoint.path} was written by {table.world_size} ranks and read by {ranks.world_size}: "
            "the random states of the ranks (dropout) start anew"
        )
    return table.state, rng


def load_first_weights(checkpoint: Checkpoint, fragments: Sequence[Fragment]) -> None:
    """The weights alone, for a new run: the fragments are `engine.fragments()` of an engine that has not stepped, and
    `engine.loaded()` comes next. All ranks call it; raises like `load`."""
    weights: dict[str, Stored] = {k: v for k, v in checkpoint.manifest.tensors.items() if k.startswith("weight|")}
    _copy(checkpoint, weights, fragments, f"Cannot start from {checkpoint.path}: ")


def _copy(checkpoint: Checkpoint, stored: dict[str, Stored], fragments: Sequence[Fragment], what: str) -> Reader:
    """Check on all ranks, then copy; the reader, for what else is in there. `what` stands in front of a fault."""
    fragments = [fragment for fragment in fragments if fragment.numel]
    claimed = {f"{kind}|{fragment.name}" for fragment in fragments for kind in (*fragment.tensors, *fragment.extra)}
    claimed = set().union(*gather_objects(claimed))
    together(lambda: _check(stored, fragments, claimed), lambda fault: what + fault)
    reader = Reader(checkpoint)

    def copy() -> None:
        for fragment in fragments:
            for kind, view in fragment.tensors.items():
                reader.copy(stored[f"{kind}|{fragment.name}"], fragment.start, view)
            for kind, live in fragment.extra.items():
                value = stored[f"{kind}|{fragment.name}"]
                if isinstance(live, Tensor):  # mostly a scalar; what has one element may have any number of dimensions
                    reader.copy(value, 0, flat := torch.empty(live.numel(), dtype=live.dtype))
                    live.copy_(flat.reshape(live.shape))
                else:
                    fragment.extra[kind] = reader.whole(value).item() if isinstance(value, Entry) else value

    together(copy, lambda fault: what + fault)
    return reader


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The whole weights and persistent buffers by the model's own names, on the CPU: fp32 masters where there are."""
    reader = Reader(checkpoint)
    weights = (key.partition("|") for key in checkpoint.manifest.tensors if key.startswith("weight|"))
    return {name: reader.whole(checkpoint.manifest.tensors[f"weight|{name}"]) for _, _, name in weights}


def _check(stored: dict[str, Stored], fragments: Sequence[Fragment], claimed: set[str]) -> None:
    """UserError unless the checkpoint has what this rank's fragments want, and `claimed` by all ranks is all it has."""
    lacking, reshaped = [], []
    for fragment in fragments:
        for kind in (*fragment.tensors, *fragment.extra):
            if (key := f"{kind}|{fragment.name}") not in stored:
                lacking.append(key)
                continue
            here = tuple(fragment.shape) if kind in fragment.tensors else _shape(fragment.extra[kind])
            if (there := _shape(stored[key])) != here and (math.prod(there), math.prod(here)) != (1, 1):
                reshaped.append(f"{key.removeprefix('weight|')} is {list(there)} in it, here {list(here)}")
    surplus = sorted(stored.keys() - claimed)
    another_model = "it is a checkpoint of another model"
    if names := _few(key for key in lacking if key.startswith("weight|")):
        raise UserError(f"{another_model}: {names} are not in it")
    if reshaped:
        more = f" (and {len(reshaped) - 1} others)" if len(reshaped) > 1 else ""
        raise UserError(f"{another_model}: {reshaped[0]}{more}")
    if names := _few(key for key in surplus if key.startswith("weight|")):
        raise UserError(f"{another_model}: this one has no {names}")
    if lacking or surplus:
        had = sorted({key.partition("|")[0] for key in stored} - {"weight"})
        has = sorted({key.partition("|")[0] for key in claimed} - {"weight"})
        raise UserError(
            f"its optimizer state ({', '.join(had) or 'none'}) is not that of this run's optimizer "
            f"({', '.join(has) or 'none'}; {len(lacking) or len(surplus)} tensors differ): "
            "set the optimizer that it was trained with, or start in another run.dir="
        )


def _shape(value: Stored | Tensor) -> tuple[int, ...]:
    return () if isinstance(value, float | int) else tuple(value.shape)


def _few(keys: Iterable[str]) -> str:
    names = [key.partition("|")[2] for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Reader:
    """Elements of a checkpoint's tensors, through files that are opened when first needed and only mapped."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.path
        self._files: dict[str, Any] = {}

    def copy(self, stored: Stored, start: int, view: Tensor) -> None:
        """Fill the flat `view` with the elements `[start, start + view.numel())` of the flattened tensor."""
        if not isinstance(stored, Entry):
            view.fill_(stored)
            return
        end = start + view.numel()
        first = bisect_right(stored.slices, start, key=lambda part: part.end)
        for part in stored.slices[first:]:
            if part.start >= end:
                break
            low, high = max(start, part.start), min(end, part.end)
            view[low - start : high - start].copy_(self._slice(part, low - part.start, high - part.start))

    def whole(self, entry: Entry) -> Tensor:
        """The whole tensor, on the CPU."""
        flat = torch.empty(entry.numel, dtype=getattr(torch, entry.dtype))
        self.copy(entry, 0, flat)
        return flat.reshape(entry.shape)

    def rng(self, rank: int) -> dict[str, Any]:
        """The random states that this rank saved."""
        name = f"rank_{rank:05d}.safetensors"
        try:
            file = self._file(name)
            text = (file.metadata() or {}).get("rng", "{}")
            count = sum(key.startswith("rng|") for key in file.keys())  # noqa: SIM118  (no dict)
            states = manifest.decode(json.loads(text), [file.get_tensor(f"rng|{i}") for i in range(count)])
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self._folder / name} holds no random states: {error}") from error
        if not isinstance(states, dict):
            raise UserError(f"{self._folder / name} holds no random states")
        return states

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = safe_open(self._folder / name, framework="pt", device="cpu")
        return self._files[name]

    def _slice(self, part: Slice, low: int, high: int) -> Tensor:
        try:
            return self._file(part.file).get_slice(part.key)[low:high]  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self._folder / part.file} does not hold {part.key!r:.80}: {error}") from error
