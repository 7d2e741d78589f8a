"""`manifest.json`: which file holds which slice of which tensor, a checksum of everything, and the state of the run.

It is plain JSON behind one guard: the first line holds the SHA-256 of all the lines below it, so that a flipped byte in
the manifest is found like one in a file that it lists. What is read is never trusted: every type, name, size and slice
is checked, a file name can only be `rank_NNNNN.safetensors`, and nothing in it is ever imported, called or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError

NAME = "manifest.json"
VERSION = 1
LARGEST = 2**30
"""Bytes; no manifest of a real run comes near."""
DTYPES = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "int64": ("I64", 8), "int32": ("I32", 4),
    "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
"""torch's name of a data type -> (safetensors' name, bytes an element)."""

_GUARD = re.compile(rb'\{"sha256_of_the_lines_below": "([0-9a-f]{64})",\n')
_FILE = re.compile(r"rank_[0-9]{5,9}\.safetensors")


@dataclass(frozen=True, slots=True)
class File:
    """One rank's safetensors file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Slice:
    """The elements `[start, end)` of a flattened tensor: the tensor named `key` in `file`."""

    file: str
    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole tensor: `shape`, torch's name of its `dtype`, and its slices, each element in just one."""

    shape: tuple[int, ...]
    dtype: str
    slices: tuple[Slice, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a checkpoint but the numbers themselves."""

    step: int
    world_size: int
    engine: str | None
    parent: str | None
    """Folder name of the checkpoint that the run last went on from."""
    metric: float | None
    """The held-out loss, lower is better; what keep-best goes by."""
    written: float
    """Unix time, seconds."""
    state: dict[str, Any]
    files: dict[str, File]
    tensors: dict[str, Entry]
    """By `kind|name`: "weight|blocks.0.attn.q.weight", "exp_avg|blocks.0.attn.q.weight"."""
    extra: dict[str, Entry | float | int]
    """Optimizer state of other shapes, by `kind|name`: "step|blocks.0.attn.q.weight"."""

    @property
    def tokens(self) -> int | None:
        """Targets seen so far, where the loop's state says so."""
        loop = self.state.get("loop")
        tokens = loop.get("tokens") if isinstance(loop, dict) else None
        return tokens if isinstance(tokens, int) else None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files.values())


def encode(value: Any, tensors: list[Any] | None = None) -> Any:
    """`value` as plain JSON that `decode` turns back exactly: tuples, NaN and infinities included.

    Tensors are appended to `tensors` (where one is given) and stand in the result as `{"$tensor": index}`.
    Anything else, and keys that are not strings or start with "$", raise TypeError: a fault of the caller.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, list):
        return [encode(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str) or key.startswith("$")]:
            raise TypeError(f"a checkpoint's state cannot have the key {bad[0]!r}")
        return {key: encode(item, tensors) for key, item in value.items()}
    if tensors is not None and hasattr(value, "data_ptr"):
        tensors.append(value)
        return {"$tensor": len(tensors) - 1}
    raise TypeError(f"a checkpoint's state cannot hold a {type(value).__name__}: {value!r:.80}")


def decode(value: Any, tensors: list[Any] | None = None) -> Any:
    """What `encode` was given. Raises UserError for what it never writes."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith("$") for key in value):
        return {key: decode(item, tensors) for key, item in value.items()}
    match value:
        case {"$float": "nan" | "inf" | "-inf" as text, **rest} if not rest:
            return float(text)
        case {"$tuple": list(items), **rest} if not rest:
            return tuple(decode(item, tensors) for item in items)
        case {"$tensor": int(index), **rest} if not rest and 0 <= index < len(tensors or []):
            return (tensors or [])[index]
    raise UserError(f"{value!r:.80} is not a value that bigtrain writes")


def uncovered(numel: int, spans: Iterable[tuple[int, int]]) -> str | None:
    """What is wrong with `[start, end)` spans that should hold each of `numel` elements exactly once; None: nothing."""
    at = 0
    for start, end in sorted(spans):
        if start != at or end <= start:
            return f"elements {at} to {start} are missing" if start > at else f"element {start} is there twice"
        at = end
    return None if at == numel else f"elements {at} to {numel} are missing"


def write(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder` and flush it to the disk."""

    def entry(value: Entry) -> dict[str, Any]:
        slices = [{"file": s.file, "key": s.key, "start": s.start, "end": s.end} for s in value.slices]
        return {"shape": list(value.shape), "dtype": value.dtype, "slices": slices}

    table = {
        "version": VERSION,
        "step": manifest.step,
        "world_size": manifest.world_size,
        "engine": manifest.engine,
        "parent": manifest.parent,
        "metric": encode(manifest.metric),
        "written": manifest.written,
        "state": encode(manifest.state),
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in manifest.files.items()},
        "extra": {k: entry(v) if isinstance(v, Entry) else {"value": encode(v)} for k, v in manifest.extra.items()},
        "tensors": {key: entry(value) for key, value in manifest.tensors.items()},
    }
    # A line for each key of the table: short enough to read with `head`, no longer than it must be.
    lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in table.items()]
    below = (",\n".join(lines) + "}\n").encode()
    guard = f'{{"sha256_of_the_lines_below": "{hashlib.sha256(below).hexdigest()}",\n'.encode()
    with (folder / NAME).open("xb") as file:
        file.write(guard + below)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Manifest:
    """The manifest in `folder`, checked. Raises UserError saying what is wrong with it (without the folder's name)."""
    path = folder / NAME
    try:
        if not path.is_file():
            raise UserError(f"{NAME} is missing")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{NAME} is larger than {LARGEST} bytes")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{NAME} cannot be read: {error.strerror}") from error
    guard = _GUARD.match(text)
    if guard is None or hashlib.sha256(memoryview(text)[guard.end() :]).hexdigest().encode() != guard[1]:
        raise UserError(f"{NAME} is damaged: its text does not have the checksum in its first line")
    try:
        return _checked(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{NAME} is not valid JSON: {error}") from error
    except UserError as error:
        raise UserError(f"{NAME} is wrong: {error}") from error


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _get(table: Any, key: str, *kinds: type) -> Any:
    """`table[key]`, which must be of one of the `kinds`; whole numbers are sizes and counts, so 0 or more."""
    value = table.get(key) if isinstance(table, dict) else None
    right = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if not right or (isinstance(value, int) and not 0 <= value < 2**60):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise UserError(f"'{key}' should be {names}, not {value!r:.60}")
    return value


def _checked(table: Any) -> Manifest:
    if _get(table, "version", int) != VERSION:
        raise UserError(f"it is of format {table['version']}; this bigtrain reads format {VERSION}")
    files = {name: _file(name, value) for name, value in _get(table, "files", dict).items()}
    tensors = {key: _entry(key, value, files) for key, value in _get(table, "tensors", dict).items()}
    extra: dict[str, Entry | float | int] = {}
    for key, value in _get(table, "extra", dict).items():
        if isinstance(value, dict) and "value" in value:
            extra[key] = decode(value["value"])
            if not isinstance(extra[key], int | float):
                raise UserError(f"{key} should be a number")
        else:
            extra[key] = _entry(key, value, files)
    held = dict.fromkeys(files, 0)
    for entry in (*tensors.values(), *(e for e in extra.values() if isinstance(e, Entry))):
        for part in entry.slices:
            held[part.file] += (part.end - part.start) * DTYPES[entry.dtype][1]
    if over := [name for name in files if held[name] > files[name].bytes]:
        raise UserError(f"{over[0]} would hold {held[over[0]]} bytes of tensors in {files[over[0]].bytes} bytes")
    metric = decode(_get(table, "metric", float, int, dict, type(None)))
    return Manifest(
        step=_get(table, "step", int),
        world_size=_get(table, "world_size", int),
        engine=_get(table, "engine", str, type(None)),
        parent=_get(table, "parent", str, type(None)),
        metric=metric if metric is None else float(metric),
        written=float(_get(table, "written", float, int)),
        state=decode(_get(table, "state", dict)),
        files=files,
        tensors=tensors,
        extra=extra,
    )


def _file(name: str, table: Any) -> File:
    if not _FILE.fullmatch(name):
        raise UserError(f"{name!r:.80} is not a file that a checkpoint may hold (rank_NNNNN.safetensors)")
    return File(_get(table, "bytes", int), _get(table, "sha256", str))


def _entry(key: str, table: Any, files: dict[str, File]) -> Entry:
    shape, dtype = _get(table, "shape", list), _get(table, "dtype", str)
    if len(shape) > 16 or any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
        raise UserError(f"{key!r:.80} has the shape {str(shape)[:60]}")
    if dtype not in DTYPES:
        raise UserError(f"{key!r:.80} has the data type {dtype!r:.60}")
    slices = []
    for part in _get(table, "slices", list):
        file = _get(part, "file", str)
        if file not in files:
            raise UserError(f"{key!r:.80} is in the file {file!r:.80}, which is not listed")
        slices.append(Slice(file, _get(part, "key", str), _get(part, "start", int), _get(part, "end", int)))
    entry = Entry(tuple(shape), dtype, tuple(slices))
    if fault := uncovered(entry.numel, [(s.start, s.end) for s in slices]):
        raise UserError(f"{key!r:.80}: {fault}")
    return entry
