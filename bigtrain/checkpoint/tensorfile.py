"""One rank's safetensors file: written from live tensors in one pass, checksum included, with no second copy of them.

The format (https://huggingface.co/docs/safetensors) is 8 bytes of header length, a JSON header, and the raw bytes.
`safetensors` itself reads it; it is written here because every byte can then be hashed on its way, views of one large
storage need no copies, and a full disk arrives as the OSError that it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.checkpoint.manifest import DTYPES
from bigtrain.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 2**24
"""Bytes hashed and written at once."""


def dtype_name(tensor: Tensor) -> str:
    """torch's name of the tensor's data type ("float32"). TypeError for one that safetensors cannot hold."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"a checkpoint cannot hold {name} tensors")
    return name


def size(tensors: dict[str, Tensor]) -> int:
    """Bytes of data, header not counted."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[int, str]:
    """Write, flush to the disk and read back; returns the file's size in bytes and its SHA-256.

    Tensors may be live views, on any device: one at a time is copied to the CPU, none if it is there already.
    Raises OSError, also where the disk gives back other bytes than it was given.
    """
    import torch

    # Wide types first, so that every tensor starts at a multiple of its element's size, as readers expect.
    order = sorted(tensors, key=lambda key: -tensors[key].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for key in order:
        end = at + tensors[key].numel() * tensors[key].element_size()
        dtype = DTYPES[dtype_name(tensors[key])][0]
        header[key] = {"dtype": dtype, "shape": list(tensors[key].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    digest = hashlib.sha256()
    with named(path), path.open("xb") as file:
        file.write(opening := len(text).to_bytes(8, "little") + text)
        digest.update(opening)
        for key in order:
            raw = tensors[key].detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy()
            for start in range(0, raw.size, CHUNK):
                file.write(raw[start : start + CHUNK].data)
                digest.update(raw[start : start + CHUNK].data)
        file.flush()
        os.fsync(file.fileno())
        length = file.tell()
    if sha256(path) != digest.hexdigest():
        raise OSError(None, "the disk does not give back what was written", str(path))
    return length, digest.hexdigest()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """A full disk speaks up in `write` and `fsync`, which know no names: put the file's into their OSError."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: `{key: {dtype, shape, data_offsets}, "__metadata__": {...}}`, no tensor read.

    UserError where there is none (the file's name is left to the caller).
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(100_000_000, path.stat().st_size):
                raise UserError("is not a safetensors file")
            table = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError("is not a safetensors file") from error
    if not isinstance(table, dict) or not all(isinstance(value, dict) for value in table.values()):
        raise UserError("is not a safetensors file")
    return table
