"""Shards on disk: tokens as plain little-endian integers, the end of every document, and a manifest of it all."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.settings import FORMAT, VERSION
from bigtrain.errors import UserError

TRAIN, EVAL = "train", "eval"
OPEN_MAPS = 256
"""Files kept mapped at once: each costs a file descriptor."""


class FileEntry(TypedDict):
    """A file of the folder."""

    file: str
    bytes: int
    sha256: str


class SplitEntry(TypedDict):
    """One split: its shards in order, and the index of its documents' ends (uint64, in tokens)."""

    documents: int
    tokens: int
    shards: list[FileEntry]
    index: FileEntry


class Manifest(TypedDict):
    """`manifest.json`, written last: where it is, everything is."""

    format: str
    version: int
    token_type: str
    vocab_size: int
    eos_id: int
    pad_id: int
    tokenizer_sha256: str
    splits: dict[str, SplitEntry]
    empty_documents: int
    broken_records: int
    first_broken: str | None
    settings: dict[str, Any]
    sources: list[dict[str, Any]]


class ShardWriter:
    """Writes one split: shards of `shard_tokens` tokens each (the last: what is left), and the documents' ends."""

    def __init__(self, folder: Path, split: str, token_type: str, shard_tokens: int) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.dtype = np.dtype(token_type).newbyteorder("<")
        self.documents = self.tokens = self.room = 0
        self.shards: list[_HashedFile] = []
        self.index = _HashedFile(folder / f"{split}-documents.bin")

    def write(self, ids: NDArray[np.uint32], lengths: NDArray[np.int64]) -> None:
        """Appends documents of `lengths` tokens, laid end to end in `ids`."""
        self.index.write((self.tokens + np.cumsum(lengths)).astype("<u8"))
        self.documents += len(lengths)
        self.tokens += len(ids)
        ids = ids.astype(self.dtype)
        while len(ids):
            if self.room == 0:
                self._end_shard()
                self.shards.append(_HashedFile(self.folder / f"{self.split}-{len(self.shards):05d}.bin"))
                self.room = self.shard_tokens
            now, ids = ids[: self.room], ids[self.room :]
            self.shards[-1].write(now)
            self.room -= len(now)

    def close(self) -> SplitEntry:
        """Ends the last files; `write_manifest` makes them durable."""
        self._end_shard()
        self.index.close()
        return SplitEntry(
            documents=self.documents,
            tokens=self.tokens,
            shards=[shard.entry() for shard in self.shards],
            index=self.index.entry(),
        )

    def _end_shard(self) -> None:
        if self.shards:
            self.shards[-1].close()


class _HashedFile:
    """A file whose checksum is taken while it is written, so that it is not read again."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self.file = path.open("wb")

    def write(self, array: NDArray[Any]) -> None:
        data = array.tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        self.file.close()

    def entry(self) -> FileEntry:
        return FileEntry(file=self.path.name, bytes=self.size, sha256=self.hash.hexdigest())


class Shards:
    """The tokens and documents of one split. Files are mapped when first read: memory does not grow with the set."""

    def __init__(self, folder: Path, token_type: str, entry: SplitEntry) -> None:
        self.documents, self.tokens = entry["documents"], entry["tokens"]
        self.index_sha256 = entry["index"]["sha256"]
        """Names where the documents end."""
        dtype = np.dtype(token_type).newbyteorder("<")
        self._starts = [0, *accumulate(shard["bytes"] // dtype.itemsize for shard in entry["shards"])]
        """First token of each shard, and the end of the last."""

        @lru_cache(OPEN_MAPS)
        def shard(number: int) -> NDArray[Any]:
            return np.memmap(folder / entry["shards"][number]["file"], dtype, mode="r").view(np.ndarray)

        @lru_cache(1)
        def ends() -> NDArray[Any]:
            return np.memmap(folder / entry["index"]["file"], "<u8", mode="r").view(np.ndarray)

        self._shard, self._ends = shard, ends

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) of the split, as a new int64 array."""
        tokens = np.empty(stop - start, np.int64)
        at = start
        number = bisect_right(self._starts, start) - 1
        while at < stop:
            upto = min(stop, self._starts[number + 1])
            first = self._starts[number]
            tokens[at - start : upto - start] = self._shard(number)[at - first : upto - first]
            at, number = upto, number + 1
        return tokens

    def bounds(self, document: int) -> tuple[int, int]:
        """First token of a document, and the one after its last."""
        ends = self._ends()
        return (int(ends[document - 1]) if document else 0), int(ends[document])

    def ends(self, first: int, last: int) -> NDArray[np.int64]:
        """Of the documents [first, last): the token after each one's last, a new array."""
        return self._ends()[first:last].astype(np.int64)

    def documents_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Of each of the tokens [start, stop): the number of its document in the split."""
        ends = self._ends()
        at = np.arange(start, stop, dtype=ends.dtype)  # of the same type: else NumPy would convert all of the ends
        first = int(np.searchsorted(ends, at[0], side="right"))
        return first + np.searchsorted(ends[first : first + len(at)], at, side="right")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` and makes the whole folder durable."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync(path)
    sync(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder, once every file of it has the right size and the tokenizer the right hash.

    Raises:
        UserError: something is missing, of another size, of another version, or the tokenizer is another.
    """
    path = folder / "manifest.json"
    mend = "Delete the folder and prepare again."
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no prepared data (no manifest.json): run `bigtrain prepare` first.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. {mend}") from error
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{path} is of {manifest.get('format')} version {manifest.get('version')}; this bigtrain reads "
            f"{FORMAT} version {VERSION}. {mend}"
        )
    for entry in _files(manifest):
        size = (folder / entry["file"]).stat().st_size if (folder / entry["file"]).is_file() else None
        if size != entry["bytes"]:
            fault = "is missing" if size is None else f"has {size:,} bytes and not {entry['bytes']:,}"
            raise UserError(f"{folder / entry['file']} {fault}. {mend}")
    saved = folder / "tokenizer" / "tokenizer.json"
    if not saved.is_file() or hashlib.sha256(saved.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise UserError(f"{saved} is not the tokenizer that the shards in {folder} were made with. {mend}")
    return manifest


def verify(folder: Path) -> None:
    """Reads every byte of a prepared folder and compares it with the manifest's checksums.

    Raises:
        UserError: naming the files that differ.
    """
    manifest = read_manifest(folder)
    wrong = [entry["file"] for entry in _files(manifest) if _sha256(folder / entry["file"]) != entry["sha256"]]
    if wrong:
        raise UserError(
            f"In {folder} the checksum of {', '.join(wrong)} is wrong. Delete the folder and prepare again."
        )


def _files(manifest: Manifest) -> list[FileEntry]:
    return [file for split in manifest["splits"].values() for file in (*split["shards"], split["index"])]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
