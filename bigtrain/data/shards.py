"""Shards on disk: tokens as plain little-endian integers, the end of every document, and a manifest of it all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.remote import tried
from bigtrain.data.settings import FORMAT, VERSION
from bigtrain.errors import RunError, UserError

TRAIN, EVAL = "train", "eval"
OPEN_FILES = 256
"""Shards kept open at once: each costs a file descriptor."""

WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Between one try to read a shard and the next: a file server that starts anew is back by then."""

PLACES = 1 << 20
"""Of so many documents the places are read at once."""

SOME_BYTES = 1 << 30
"""From here on a check of checksums is announced."""

ORIGIN = "origin"
"""In a folder without shards: the URL that they are fetched from when they are read."""

FOUND_RIGHT = "verified.json"
"""Of each file that was found right after it was touched: the time of that touch."""

Open = Callable[[str], FileIO]
"""An unbuffered file by its name."""


class FileEntry(TypedDict):
    """A file of the folder."""

    file: str
    bytes: int
    sha256: str
    mtime_ns: int
    """When it was written: a file with another time is checked against its checksum before it is used."""


class SplitEntry(TypedDict):
    """One split: its shards in order, where its documents end (uint64, in tokens), and their places (uint64 pairs: the
    number of the source, and the offset in it)."""

    documents: int
    tokens: int
    shards: list[FileEntry]
    index: FileEntry
    places: FileEntry


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


class Shards:
    """The tokens and documents of one split. Nothing is read ahead or kept: memory does not grow with the set.

    Tokens are read with `pread` into arrays of the caller's. A file that was cut or has vanished is so an error of
    Python's, where a mapped one would end the process.
    """

    def __init__(self, folder: Path, token_type: str, entry: SplitEntry, opened: Open | None = None) -> None:
        """`opened` gives an unbuffered file by its name, for each read; by default that of `folder`, kept open."""
        self.documents, self.tokens = entry["documents"], entry["tokens"]
        self.index_sha256 = entry["index"]["sha256"]
        """Names where the documents end."""
        self.dtype = np.dtype(token_type).newbyteorder("<")
        self.names = [shard["file"] for shard in entry["shards"]]
        self.starts = [0, *accumulate(shard["bytes"] // self.dtype.itemsize for shard in entry["shards"])]
        """First token of each shard, and the end of the last."""
        # What is dropped from the cache is closed once nobody reads from it any more.
        self._kept = lru_cache(OPEN_FILES)(lambda name: (folder / name).open("rb", buffering=0))
        self._open = opened or self._kept
        self._folder, self._entry = folder, entry

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) of the split, as a new int64 array."""
        tokens = np.empty(stop - start, self.dtype)
        self._fill(tokens, start)
        return tokens.astype(np.int64)

    def read_many(self, starts: Sequence[int], length: int) -> NDArray[Any]:
        """Tokens [start, start + length) for each of `starts`: an array (len(starts), length), as stored, read-only."""
        parts, size, opened, begins, names = [], self.dtype.itemsize, self._open, self.starts, self.names
        wanted = length * size
        for start in starts:  # every microsecond counts here
            number = bisect_right(begins, start) - 1
            try:
                file = opened(names[number])  # held: else its number might mean another file before it is read
                part = os.pread(file.fileno(), wanted, (start - begins[number]) * size)
            except OSError:
                part = b""
            if len(part) < wanted:  # it goes on in the next shard, or there is a fault
                tokens = np.empty(length, self.dtype)
                self._fill(tokens, start)
                part = tokens.tobytes()
            parts.append(part)
        return np.frombuffer(b"".join(parts), self.dtype).reshape(len(starts), length)

    def bounds(self, document: int) -> tuple[int, int]:
        """First token of a document, and the one after its last."""
        ends = self._ends
        return (int(ends[document - 1]) if document else 0), int(ends[document])

    def ends(self, first: int, last: int) -> NDArray[np.int64]:
        """Of the documents [first, last): the token after each one's last, a new array."""
        return self._ends[first:last].astype(np.int64)

    def documents_of(self, start: int, stop: int) -> NDArray[np.int64]:
        """Of each of the tokens [start, stop): the number of its document in the split."""
        ends = self._ends
        at = np.arange(start, stop, dtype=ends.dtype)  # of the same type: else NumPy would convert all of the ends
        first = int(np.searchsorted(ends, at[0], side="right"))
        return first + np.searchsorted(ends[first : first + len(at)], at, side="right")

    def place(self, document: int) -> tuple[int, int]:
        """Where a document came from: the number of its source in the manifest, and its offset there."""
        source, offset = self._places[document].tolist()
        return source, offset

    def find(self, places: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The documents that came from different `places`, (N, 2) as `place` tells them: shape (N,), -1 where none of
        this split did. Reads all places once, a block at a time."""
        rows = {(source, offset): row for row, (source, offset) in enumerate(places.tolist())}
        found = np.full(len(places), -1, np.int64)
        keys = np.sort(_keys(places))
        for first in range(0, self.documents if len(keys) else 0, PLACES):
            block = self._places[first : first + PLACES]
            here = _keys(block)
            at = np.minimum(np.searchsorted(keys, here), len(keys) - 1)
            for hit in np.flatnonzero(keys[at] == here).tolist():
                if (row := rows.get(tuple(block[hit].tolist()))) is not None:
                    found[row] = first + hit
        return found

    def nearest(self, source: int, offset: int) -> int | None:
        """The offset next to this one at which a document of the source begins; None: it has none in this split."""
        best = None
        for first in range(0, self.documents, PLACES):
            block = self._places[first : first + PLACES]
            begun = block[block[:, 0] == source, 1].astype(np.int64)
            if len(begun):
                near = int(begun[np.argmin(np.abs(begun - offset))])
                best = near if best is None or abs(near - offset) < abs(best - offset) else best
        return best

    def _fill(self, tokens: NDArray[Any], start: int) -> None:
        """Reads as many tokens as the contiguous array holds, from `start` on."""
        number = bisect_right(self.starts, start) - 1
        while len(tokens):
            upto = min(len(tokens), self.starts[number + 1] - start)
            if upto:
                self._pread(number, tokens[:upto], start - self.starts[number])
            tokens, start, number = tokens[upto:], start + upto, number + 1

    def _pread(self, number: int, tokens: NDArray[Any], at: int) -> None:
        name, size = self.names[number], self.dtype.itemsize

        def some() -> int:
            try:
                file = self._open(name)  # held: else it might be closed before it is read
                return os.preadv(file.fileno(), [tokens.view(np.uint8).data], at * size)
            except OSError:
                self._kept.cache_clear()  # a stale handle stays stale
                raise

        path = f"{self._folder}/{name}"  # to join a Path takes as long as to read the tokens
        try:
            read = tried(some, path, WAITS_S, lambda error: not isinstance(error, OSError))
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{path} cannot be read any more: {reason}. Bring it back, and go on.") from error
        if read < tokens.nbytes:
            raise RunError(f"{path} has been cut: it ends at byte {at * size + read:,}. Prepare it anew.")

    @cached_property
    def _ends(self) -> NDArray[Any]:
        return _mapped(self._folder / self._entry["index"]["file"])

    @cached_property
    def _places(self) -> NDArray[Any]:
        return _mapped(self._folder / self._entry["places"]["file"]).reshape(-1, 2)


def _keys(places: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each place, seldom the same for two."""
    return places[:, 0] * np.uint64(0x9E3779B97F4A7C15) + places[:, 1]  # modulo 2^64


def _mapped(path: Path) -> NDArray[Any]:
    return np.memmap(path, "<u8", mode="r").view(np.ndarray) if path.stat().st_size else np.empty(0, "<u8")


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
    sizes = {file.name: file.stat().st_size for file in os.scandir(folder)}  # one pass: there may be thousands
    for entry in _files(manifest, folder):
        size = sizes.get(entry["file"])
        if size != entry["bytes"]:
            fault = "is missing" if size is None else f"has {size:,} bytes and not {entry['bytes']:,}"
            raise UserError(f"{folder / entry['file']} {fault}. {mend}")
    saved = folder / "tokenizer" / "tokenizer.json"
    if not saved.is_file() or hashlib.sha256(saved.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise UserError(f"{saved} is not the tokenizer that the shards in {folder} were made with. {mend}")
    return manifest


def verify(folder: Path, changed_only: bool = False) -> None:
    """Compares the bytes of a prepared folder with the manifest's checksums.

    With `changed_only` it reads only files that were touched since they were written, or since they were found right;
    what was found right is remembered in the folder.

    Raises:
        UserError: naming the files that differ.
    """
    files = _files(read_manifest(folder), folder)
    if changed_only:
        known = _found_right(folder)
        times = {file.name: file.stat().st_mtime_ns for file in os.scandir(folder)}
        right = {entry["file"]: (entry["mtime_ns"], known.get(entry["file"])) for entry in files}
        files = [entry for entry in files if times[entry["file"]] not in right[entry["file"]]]
    if not files:
        return
    size = sum(entry["bytes"] for entry in files)
    if size > SOME_BYTES:
        print(f"data: comparing {len(files):,} files ({size / 1e9:.1f} GB) in {folder} with their checksums …",
              file=sys.stderr, flush=True)  # fmt: skip
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing lets go of the interpreter
        sums = pool.map(lambda entry: _sha256(folder / entry["file"]), files)
        wrong = [entry["file"] for entry, found in zip(files, sums, strict=True) if found != entry["sha256"]]
    if wrong:
        raise UserError(
            f"In {folder} the checksum of {', '.join(wrong)} is wrong. Delete the folder and prepare again."
        )
    if changed_only:
        known |= {entry["file"]: times[entry["file"]] for entry in files}
        with contextlib.suppress(OSError):  # a folder that may not be written to is checked each time
            (folder / FOUND_RIGHT).write_text(json.dumps(known), encoding="utf-8")


def _found_right(folder: Path) -> dict[str, int]:
    try:
        return json.loads((folder / FOUND_RIGHT).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def _files(manifest: Manifest, folder: Path) -> list[FileEntry]:
    """What has to lie in the folder."""
    splits, streamed = manifest["splits"].values(), (folder / ORIGIN).is_file()
    shards = [shard for split in splits for shard in split["shards"] if not streamed]
    return [*shards, *(file for split in splits for file in (split["index"], split["places"]))]


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
