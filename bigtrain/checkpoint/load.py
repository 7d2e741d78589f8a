"""Read a checkpoint: into an engine's live views, whatever the number of ranks that wrote it, or as whole tensors."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.find import Checkpoint
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.manifest import Entry, Manifest, Slice
from bigtrain.checkpoint.together import together
from bigtrain.distributed import Ranks, gather_objects
from bigtrain.errors import UserError


def load(
    checkpoint: Checkpoint,
    fragments: Sequence[Fragment],
    ranks: Ranks,
    *,
    warn: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Copy the elements that each of this rank's fragments holds into it, in place. All ranks call it.

    Returns the `state` that was saved, and this rank's random states: None (said through `warn`) where the number of
    ranks is another. Numbers in `Fragment.extra` are set in that dict; the engine takes them from there.

    Raises UserError, the same on all ranks and before anything is copied, where the model or its optimizer is another
    one than the checkpoint's: names that either lacks, other shapes.
    """
    table, what = checkpoint.manifest, f"Cannot go on from {checkpoint.path}: "
    claimed = {f"{kind}|{fragment.name}" for fragment in fragments for kind in (*fragment.tensors, *fragment.extra)}
    claimed = set().union(*gather_objects(claimed))
    together(lambda: _check(table, fragments, claimed), lambda fault: what + fault)

    def copy() -> dict[str, Any] | None:
        reader = Reader(checkpoint)
        for fragment in fragments:
            for kind, view in fragment.tensors.items() if fragment.numel else ():
                reader.copy(table.tensors[f"{kind}|{fragment.name}"], fragment.start, view)
            for kind, live in fragment.extra.items():
                stored = table.extra[f"{kind}|{fragment.name}"]
                value = reader.whole(stored) if isinstance(stored, Entry) else stored
                if isinstance(live, Tensor):
                    live.copy_(value.reshape(live.shape)) if isinstance(value, Tensor) else live.fill_(value)
                else:
                    fragment.extra[kind] = value.item() if isinstance(value, Tensor) else value
        return reader.rng(ranks.rank) if ranks.world_size == table.world_size else None

    rng = together(copy, lambda fault: what + fault)
    if rng is None and ranks.first:
        warn(
            f"{checkpoint.path} was written by {table.world_size} ranks and read by {ranks.world_size}: "
            "the random states of the ranks (dropout) start anew"
        )
    return table.state, rng


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The whole weights and persistent buffers by the model's own names, on the CPU: fp32 masters where there are."""
    reader = Reader(checkpoint)
    weights = (key.partition("|") for key in checkpoint.manifest.tensors if key.startswith("weight|"))
    return {name: reader.whole(checkpoint.manifest.tensors[f"weight|{name}"]) for _, _, name in weights}


def _check(table: Manifest, fragments: Sequence[Fragment], claimed: set[str]) -> None:
    """UserError unless the checkpoint has what this rank's fragments want, and `claimed` by all ranks is all it has."""
    stored = {*table.tensors, *table.extra}
    lacking, reshaped = [], []
    for fragment in fragments:
        for kind in (*fragment.tensors, *fragment.extra):
            key = f"{kind}|{fragment.name}"
            if key not in (table.tensors if kind in fragment.tensors else table.extra):
                lacking.append(key)
            elif kind in fragment.tensors:
                if (there := table.tensors[key].shape) != (here := tuple(fragment.shape)):
                    reshaped.append(f"{fragment.name} is {list(there)} in it, here {list(here)}")
            elif (there := _shape(table.extra[key])) != (here := _shape(fragment.extra[kind])):
                reshaped.append(f"{key} is {list(there)} in it, here {list(here)}")
    surplus = sorted(stored - claimed)
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


def _shape(value: Entry | Tensor | float | int) -> tuple[int, ...]:
    """That of a number, and of a tensor that holds one, is ()."""
    shape = () if isinstance(value, float | int) else tuple(value.shape)
    return () if shape == (1,) else shape


def _few(keys: Iterable[str]) -> str:
    names = [key.partition("|")[2] for key in keys]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Reader:
    """Elements of a checkpoint's tensors, through files that are opened when first needed and only mapped."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.path
        self._files: dict[str, Any] = {}

    def copy(self, entry: Entry, start: int, view: Tensor) -> None:
        """Fill the flat `view` with the elements `[start, start + view.numel())` of the flattened tensor."""
        end = start + view.numel()
        first = bisect_right(entry.slices, start, key=lambda part: part.end)
        for part in entry.slices[first:]:
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
