"""Which checkpoints a folder holds, and whether every byte of them is right. No torch needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from bigtrain.checkpoint import manifest, tensorfile
from bigtrain.checkpoint.manifest import DTYPES, Entry, Manifest
from bigtrain.errors import UserError

FOLDER = "checkpoints"
_NAME = re.compile(r"step_([0-9]{8,})")
_REPLACED = re.compile(r"\.step_([0-9]{8,})\.old")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was found right."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest.step

    @property
    def stateful(self) -> frozenset[str]:
        """Names of the parameters whose optimizer state it holds: what `Engine.fragments` wants before a load."""
        keys = (key.partition("|") for key in (*self.manifest.tensors, *self.manifest.extra))
        return frozenset(name for kind, _, name in keys if kind != "weight")


def name(step: int) -> str:
    """`step_00001000`."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint folder's name says; -1 where it is none."""
    found = _NAME.fullmatch(path.name) or _REPLACED.fullmatch(path.name)
    return int(found[1]) if found else -1


def listed(path: str | Path) -> list[Path]:
    """The checkpoint folders, newest first, of a run folder, of its `checkpoints/`, or of one checkpoint itself.

    Unfinished ones do not count. One that was being replaced by a new one of the same step when the writer died counts
    under its hidden name (the next save gives it its own name back). UserError where the path is not there.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"There is no run folder or checkpoint {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a run folder or a checkpoint folder")
    if _NAME.fullmatch(folder.name) or (folder / manifest.NAME).exists():
        return [folder]
    root = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    found = {step_of(p): p for p in root.iterdir() if _REPLACED.fullmatch(p.name) and p.is_dir()}
    found |= {step_of(p): p for p in root.iterdir() if _NAME.fullmatch(p.name)}
    return [found[step] for step in sorted(found, reverse=True)]


def find(path: str | Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint of a run folder (or of a `checkpoints/`, or the one checkpoint that `path` is).

    Every byte is read and compared with its checksum; in a job of many ranks, call it on one and share the result. Each
    damaged one on the way is named through `warn`, with the file at fault, and so is the one that is used instead.
    None where there is no checkpoint at all. UserError where there are some and none is intact: a run must not start
    from zero, unasked, over its own remains.
    """
    folders = listed(path) if Path(path).exists() else []
    faults: list[str] = []
    for folder in folders:
        problems = verify(folder)
        if not problems:
            for fault in faults:
                warn(f"The checkpoint {fault}")
            if faults:
                warn(f"Using the newest intact checkpoint instead: {folder}")
            return Checkpoint(folder, manifest.read(folder))
        faults.append(f"{folder}: {'; '.join(problems)}")
    if not faults:
        return None
    few = "\n  ".join(faults)
    raise UserError(f"No checkpoint in {path} is intact:\n  {few}\nRemove or mend them, or name another run.")


def verify(path: str | Path) -> list[str]:
    """What is wrong with one checkpoint folder, a sentence a fault that names the file; empty: every byte is right.

    Reads nothing but the manifest and the regular files in the folder that it lists. The files are hashed in parallel.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ["is not a folder"]
    try:
        table = manifest.read(folder)
    except UserError as error:
        return [str(error)]
    with ThreadPoolExecutor(8) as pool:
        problems = [fault for fault in pool.map(lambda file: _file_fault(folder, table, file), table.files) if fault]
    return problems or _slice_faults(folder, table)


def _file_fault(folder: Path, table: Manifest, file: str) -> str | None:
    path, listed = folder / file, table.files[file]
    try:
        found = path.lstat()
        if not S_ISREG(found.st_mode):
            return f"{file} is not a regular file"
        if found.st_size != listed.bytes:
            return f"{file} has {found.st_size} bytes instead of {listed.bytes}"
        if tensorfile.sha256(path) != listed.sha256:
            return f"{file} is damaged: its bytes do not have the checksum in {manifest.NAME}"
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    return None


def _slice_faults(folder: Path, table: Manifest) -> list[str]:
    """Slices that the files, though intact, do not hold as the manifest says: no fault of a disk."""
    headers = {}
    for file in table.files:
        try:
            headers[file] = tensorfile.header(folder / file)
        except UserError as error:
            return [f"{file} {error}"]
    extra = (value for value in table.extra.values() if isinstance(value, Entry))
    for entry in (*table.tensors.values(), *extra):
        for part in entry.slices:
            held = headers[part.file].get(part.key, {})
            if held.get("dtype") != DTYPES[entry.dtype][0] or held.get("shape") != [part.end - part.start]:
                return [f"{part.file} does not hold {part.key!r:.80} as {manifest.NAME} says"]
    return []
