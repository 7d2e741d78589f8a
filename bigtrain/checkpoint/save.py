"""Write a checkpoint: complete, or not there at all.

Every rank writes what it owns into a temporary folder, rank 0 checks that each element of each tensor is there exactly
once and writes the manifest, all is flushed to the disk, and one rename makes it a checkpoint. A process that is killed
at any moment leaves the checkpoints as they were before or as they are after, and at worst a hidden folder that the
next save removes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bigtrain.checkpoint import find, manifest, tensorfile
from bigtrain.checkpoint.folder import flush, free, human, remove
from bigtrain.checkpoint.fragments import Fragment
from bigtrain.checkpoint.manifest import Entry, File, Manifest, Slice
from bigtrain.checkpoint.together import together
from bigtrain.distributed import Ranks, gather_objects
from bigtrain.errors import UserError


@dataclass(slots=True)
class _Table:
    """What one rank has written: parts are (kind|name, shape, dtype, slice)."""

    name: str
    file: File
    parts: list[tuple[str, tuple[int, ...], str, Slice]] = field(default_factory=list)
    extra_parts: list[tuple[str, tuple[int, ...], str, Slice]] = field(default_factory=list)
    extra_numbers: dict[str, float | int] = field(default_factory=dict)


def save(
    run_dir: str | Path,
    step: int,
    fragments: Sequence[Fragment],
    state: dict[str, Any],
    rng: dict[str, Any],
    ranks: Ranks,
    *,
    keep_last: int | None = 3,
    keep_best: int = 0,
    metric: float | None = None,
    engine: str | None = None,
    parent: str | None = None,
) -> Path:
    """Write `<run_dir>/checkpoints/step_<step>`, then delete the ones that need not be kept. All ranks call it.

    Args:
        run_dir: the run folder, on a disk that all ranks see.
        step: optimizer steps done. An existing checkpoint of the same step is replaced by this one.
        fragments: this rank's live views; only those with `owner` are written. No copy of them is made on a CPU.
        state: what else must come back exactly (data position, tokens, the engine's scalars…); the same on all ranks.
            Numbers, strings, None, lists, tuples and dicts with string keys; NaN and infinities too.
        rng: this rank's random states; values as in `state`, and tensors.
        ranks: who we are.
        keep_last: so many of the newest are kept (at least this one); None: all.
        keep_best: beside them, so many of those with the lowest `metric`.
        metric: the held-out loss, for `keep_best`.
        engine: the engine's name, for people.
        parent: folder name of the checkpoint that the run went on from, for people.

    Raises:
        UserError: a disk that is full, read-only or over its quota, on any rank: the same message on all ranks, with
            the space needed and free; nothing is left behind and earlier checkpoints are untouched.
        RuntimeError: the fragments of all ranks do not hold every element exactly once (a fault of the engine).
    """
    root = Path(run_dir) / find.FOLDER
    final, temporary = root / find.name(step), root / f".{find.name(step)}.tmp"
    owned = [fragment for fragment in fragments if fragment.owner and fragment.numel]
    needed = sum(gather_objects(sum(tensorfile.size(fragment.tensors) for fragment in owned)))
    available = free(root)

    def explain(fault: str) -> str:
        return (
            f"The checkpoint of step {step} could not be written: {fault}. It needs {human(needed)}, "
            f"{human(available)} were free. Earlier checkpoints are as they were."
        )

    def begin() -> None:
        if ranks.first:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            temporary.mkdir()

    def finish() -> None:
        if ranks.first:
            table = _join(tables, step, state, metric, engine, parent)
            _write_manifest(temporary, table)
            _publish(temporary, final)

    try:
        together(begin, explain)
        mine = together(lambda: _write_rank(temporary, owned, rng, ranks.rank), explain)
        tables = gather_objects(mine)
        together(finish, explain)
    except Exception:
        if ranks.first:  # the others have finished with it: `together` has heard from all
            with suppress(
                OSError
            ):  # a disk that has just become read-only: it is hidden, and cleared when that is over
                remove(temporary)
        raise
    together(
        lambda: rotate(root, final, keep_last, keep_best) if ranks.first else None,
        lambda fault: f"The checkpoint {final} is complete, but older ones could not be deleted: {fault}",
    )
    return final


def _write_rank(folder: Path, owned: list[Fragment], rng: dict[str, Any], rank: int) -> _Table:
    name = f"rank_{rank:05d}.safetensors"
    table = _Table(name, File(0, ""))
    tensors: dict[str, Tensor] = {}

    def add(parts: list[Any], key: str, place: str, shape: tuple[int, ...], start: int, tensor: Tensor) -> None:
        if place in tensors:
            raise RuntimeError(f"the engine offers {place} twice")
        tensors[place] = tensor.reshape(-1)
        parts.append((key, shape, tensorfile.dtype_name(tensor), Slice(name, place, start, start + tensor.numel())))

    for fragment in owned:
        if any(tensor.numel() != fragment.numel for tensor in fragment.tensors.values()):
            raise RuntimeError(f"the engine offers {fragment.name} with tensors of other sizes than {fragment.numel}")
        for kind, tensor in fragment.tensors.items():
            key = f"{kind}|{fragment.name}"
            add(table.parts, key, f"{key}|{fragment.start}", fragment.shape, fragment.start, tensor)
        # Every holder has the whole of it; the owner of the first element writes it.
        for kind, value in fragment.extra.items() if fragment.start == 0 else ():
            key = f"{kind}|{fragment.name}"
            if isinstance(value, Tensor):
                add(table.extra_parts, key, f"extra|{key}", tuple(value.shape), 0, value)
            else:
                table.extra_numbers[key] = value

    leaves: list[Tensor] = []
    states = json.dumps(manifest.encode(rng, leaves), allow_nan=False)
    tensors |= {f"rng|{index}": leaf for index, leaf in enumerate(leaves)}
    table.file = File(*tensorfile.write(folder / name, tensors, {"rng": states}))
    return table


def _join(
    tables: list[_Table], step: int, state: dict[str, Any], metric: float | None, engine: str | None, parent: str | None
) -> Manifest:
    """One manifest from the tables of all ranks. RuntimeError where an element is missing or there twice."""
    return Manifest(
        step=step,
        world_size=len(tables),
        engine=engine,
        parent=parent,
        metric=metric,
        written=time.time(),
        state=state,
        files={table.name: table.file for table in tables},
        tensors=_entries([part for table in tables for part in table.parts]),
        extra={
            **_entries([part for table in tables for part in table.extra_parts]),
            **{key: value for table in tables for key, value in table.extra_numbers.items()},
        },
    )


def _entries(parts: list[tuple[str, tuple[int, ...], str, Slice]]) -> dict[str, Entry]:
    grouped: dict[str, tuple[tuple[int, ...], str, list[Slice]]] = {}
    for key, shape, dtype, part in parts:
        known_shape, known_dtype, slices = grouped.setdefault(key, (tuple(shape), dtype, []))
        if (known_shape, known_dtype) != (tuple(shape), dtype):
            raise RuntimeError(f"ranks disagree on {key}: {known_shape} {known_dtype} and {tuple(shape)} {dtype}")
        slices.append(part)
    entries = {
        key: Entry(shape, dtype, tuple(sorted(slices, key=lambda s: s.start)))
        for key, (shape, dtype, slices) in sorted(grouped.items())
    }
    for key, entry in entries.items():
        if fault := manifest.uncovered(entry.numel, [(part.start, part.end) for part in entry.slices]):
            raise RuntimeError(f"the ranks together do not own {key} exactly once: {fault}")
    return entries


def _write_manifest(temporary: Path, table: Manifest) -> None:
    with tensorfile.named(temporary / manifest.NAME):
        manifest.write(temporary, table)
    flush(temporary)
    # Read back as a reader will: sizes, slices and the manifest itself (each rank has read its own file's bytes back).
    written = manifest.read(temporary)
    for name, file_ in written.files.items():
        if (found := (temporary / name).stat().st_size) != file_.bytes:
            raise OSError(None, f"has {found} bytes instead of {file_.bytes}", str(temporary / name))


def _publish(temporary: Path, final: Path) -> None:
    """One rename. A checkpoint of the same step steps aside first, under a name that `find` knows."""
    aside = final.parent / f".{final.name}.old"
    if os.path.lexists(final):
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if os.path.lexists(aside):
            aside.rename(final)
        raise
    flush(final.parent)
    remove(aside)


def _sweep(root: Path) -> None:
    """Clear what killed writers left: unfinished and half-deleted folders; a replaced one whose successor never came
    gets its name back."""
    for left in root.glob(".step_*"):
        if left.suffix == ".old" and not os.path.lexists(home := root / left.stem.removeprefix(".")):
            left.rename(home)
        elif left.suffix in (".old", ".tmp", ".gone"):
            remove(left)


def rotate(root: Path, newest: Path, keep_last: int | None, keep_best: int) -> None:
    """Delete checkpoints in `root` but `newest` (just written, so intact), the `keep_last` newest and the best.

    Those of later steps than `newest` stay: they were passed over as damaged, and are replaced when their step comes.
    A deleted one is renamed first, so that no half of it ever stands under its name.
    """
    if keep_last is None:
        return
    past = [path for path in find.listed(root) if find.step_of(path) <= find.step_of(newest)]
    scores = []
    for path in past if keep_best else ():
        try:
            metric = manifest.read(path).metric
        except UserError:
            continue
        if metric is not None and metric == metric:  # NaN is nobody's best
            scores.append((metric, find.step_of(path), path))
    kept = {newest, *past[: max(keep_last, 1)], *(path for _, _, path in sorted(scores)[:keep_best])}
    for path in past:
        if path not in kept:
            gone = root / f".{path.name}.gone"
            path.rename(gone)
            remove(gone)
