"""Writes shards: each unit by itself, durable once its marker is there; then all of them as one prepared folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.shards import EVAL, TRAIN, sync

SPLITS = (TRAIN, EVAL)


class Work:
    """The folder in which an artifact grows: `data/` becomes the artifact, `units/` has the markers of what is done."""

    def __init__(self, artifact: Path) -> None:
        self.artifact = artifact
        self.folder = artifact.with_name(f".{artifact.name}.work")
        self.data, self.units = self.folder / "data", self.folder / "units"

    def begin(self) -> None:
        """Makes the folders."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.units.mkdir(exist_ok=True)

    def marker(self, number: int, phase: str = "") -> Path:
        """Where it is said that a unit is done, and what came of it."""
        return self.units / f"{number:05d}{phase}.json"

    def read(self, number: int, phase: str = "") -> dict[str, Any]:
        """What came of a unit."""
        return json.loads(self.marker(number, phase).read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @contextmanager
    def unit(self, number: int, phase: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
        """(a folder for the files of a unit, what its marker is to say).

        Files of `data/` in it go to `data/`, those of `units/` to `units/`, and last the marker, so that the marker
        stands for all of them.
        """
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix="tmp-"))
        try:
            for name in ("data", "units"):
                (temporary / name).mkdir()
            marker: dict[str, Any] = {}
            yield temporary, marker
            path = temporary / "marker"
            path.write_text(json.dumps(marker), encoding="utf-8")
            for name in ("data", "units"):
                for file in sorted((temporary / name).iterdir()):
                    sync(file)
                    file.rename(self.folder / name / file.name)
                sync(self.folder / name)
            sync(path)
            path.rename(self.marker(number, phase))
            sync(self.units)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def finish(self) -> None:
        """`data/` becomes the artifact; the rest goes."""
        for file in self.data.rglob("*"):
            if file.is_file():
                sync(file)
        sync(self.data)
        shutil.rmtree(self.artifact, ignore_errors=True)  # what is there is not whole
        self.data.rename(self.artifact)
        sync(self.artifact.parent)
        shutil.rmtree(self.folder.with_suffix(".over"), ignore_errors=True)
        over = self.folder.rename(self.folder.with_suffix(".over"))  # so that nobody makes a lock in there any more
        shutil.rmtree(over, ignore_errors=True)

    def abandon(self) -> None:
        """Removes all of it, unless another process is at a unit."""
        for path in self.units.glob("*.lock"):
            with path.open() as lock, locked(lock, wait=False) as mine:
                if not mine:
                    return
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def claim(self, number: int, phase: str, wait: bool) -> Iterator[bool]:
        """Whether a unit is this process's to do: nobody has done it, and nobody else is at it (`wait`: any more)."""
        try:
            lock = (self.units / f"{number:05d}{phase}.lock").open("w")
        except FileNotFoundError:  # all is finished
            yield False
            return
        with lock, locked(lock, wait=wait) as mine:
            # In this order: where the marker went because all is finished, `data` had gone before it.
            yield mine and not self.marker(number, phase).is_file() and self.data.is_dir()


@contextmanager
def locked(lock: IO[str], *, wait: bool = True) -> Iterator[bool]:
    """Alone among processes, on any host that sees the file. Not `wait`: False where another one has the lock."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    except OSError as error:  # a file system without locks (Lustre without `flock`): renames let one of them win
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        _tell_once("data: the file system of data.cache knows no locks: prepare in one process at a time.")
    yield True


@cache
def _tell_once(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


class SplitWriter:
    """One split of one unit: shards of at most `shard_tokens`, the ends of its documents and their places."""

    def __init__(self, folder: Path, split: str, unit: int, token_type: str, shard_tokens: int) -> None:
        self.folder, self.split, self.unit, self.shard_tokens = folder, split, unit, shard_tokens
        self.dtype = np.dtype(token_type).newbyteorder("<")
        self.documents = self.tokens = self.room = 0
        self.shards: list[HashedFile] = []
        stem = folder / "units" / f"{unit:05d}-{split}"
        self.ends, self.places = HashedFile(Path(f"{stem}-ends.bin")), HashedFile(Path(f"{stem}-places.bin"))

    def write(self, ids: NDArray[np.uint32], lengths: NDArray[np.int64], places: NDArray[np.uint64]) -> None:
        """Appends documents of `lengths` tokens, laid end to end in `ids`; `places`: (documents, 2)."""
        self.ends.write((self.tokens + np.cumsum(lengths)).astype("<u8"))
        self.places.write(places.astype("<u8"))
        self.documents += len(lengths)
        self.tokens += len(ids)
        ids = ids.astype(self.dtype)
        while len(ids):
            if self.room == 0:
                if self.shards:
                    self.shards[-1].close()
                name = f"{self.split}-{self.unit:05d}-{len(self.shards):03d}.bin"
                self.shards.append(HashedFile(self.folder / "data" / name))
                self.room = self.shard_tokens
            now, ids = ids[: self.room], ids[self.room :]
            self.shards[-1].write(now)
            self.room -= len(now)

    def close(self) -> dict[str, Any]:
        """Ends the files: their entry of the marker."""
        for file in (self.ends, self.places, *self.shards[-1:]):
            file.close()
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "shards": [shard.entry() for shard in self.shards],
        }


def join(work: Work, markers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The `splits` of the manifest, once every unit is written; makes the files of ends and places."""
    splits = {}
    for split in SPLITS:
        index = HashedFile(work.data / f"{split}-documents.bin")
        places = HashedFile(work.data / f"{split}-places.bin")
        tokens = 0
        for number, marker in enumerate(markers):
            stem = work.units / f"{number:05d}-{split}"
            index.write(np.fromfile(f"{stem}-ends.bin", "<u8") + np.uint64(tokens))
            places.write(np.fromfile(f"{stem}-places.bin", "<u8"))
            tokens += marker["splits"][split]["tokens"]
        index.close()
        places.close()
        splits[split] = {
            "documents": sum(marker["splits"][split]["documents"] for marker in markers),
            "tokens": tokens,
            "shards": [shard for marker in markers for shard in marker["splits"][split]["shards"]],
            "index": index.entry(),
            "places": places.entry(),
        }
    return splits


class HashedFile:
    """A file whose checksum is taken while it is written, so that it is not read again."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self.file = path.open("wb")

    def write(self, array: NDArray[Any]) -> None:
        """Appends the array's bytes."""
        data = array.tobytes()
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """No more comes."""
        self.file.close()

    def entry(self) -> dict[str, Any]:
        """Its entry of the manifest, once closed."""
        return {
            "file": self.path.name,
            "bytes": self.size,
            "sha256": self.hash.hexdigest(),
            "mtime_ns": os.stat(self.path).st_mtime_ns,  # noqa: PTH116 - a rename keeps it
        }
