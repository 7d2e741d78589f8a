"""Prepared data in an object store: the small files are mirrored once, shards are fetched when they are read.

The processes of a host share one folder of shards, named by their checksums, which never holds more bytes than it may.
What is being fetched counts too: its file has its full size from the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from io import FileIO
from pathlib import Path

from bigtrain.data.remote import BLOCK, look, open_remote
from bigtrain.data.settings import FORMAT, TOKENIZER_FILES
from bigtrain.data.shards import ORIGIN, FileEntry, Manifest, read_manifest, sync
from bigtrain.errors import RunError, UserError

SHARDS = "remote-shards"
"""The folder of the fetched shards in `data.cache`."""
LOCK_DIGITS = 3
"""So many digits of a checksum name its lock: 4,096 lock files at most, however many shards there are."""


class DamagedError(RunError):
    """A file of the store is not what its manifest says."""


@lru_cache
def mirror(url: str, cache: Path) -> Path | None:
    """The folder in `cache` with the manifest and all small files of the prepared folder at `url`; None: it is none.

    One process makes it, once; others wait.

    Raises:
        UserError: the cache cannot be written.
        RunError: the store does not answer, after several tries, or a file there is damaged.
    """
    url = url.rstrip("/")
    try:
        text = _read(f"{url}/manifest.json").decode(errors="replace")
    except UserError:
        return None  # whatever is wrong with this address is said where it is read as raw text
    if FORMAT not in text:
        return None
    name = hashlib.sha256(f"{url}\n{text}".encode()).hexdigest()[:16]
    folder = cache / f"remote-{name}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                _mirror(url, text, folder)
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written: {error}.") from error
    return folder


def origin(folder: Path) -> str | None:
    """The URL that a prepared folder mirrors; None: it is whole."""
    file = folder / ORIGIN
    return file.read_text(encoding="utf-8") if file.is_file() else None


def shard_cache(folder: Path, cache: Path, limit_bytes: int) -> ShardCache | None:
    """What fetches the shards of a mirrored folder; None: the folder has them all. As `ShardCache` for the rest."""
    url = origin(folder)
    return ShardCache(url, cache / SHARDS, limit_bytes, _shards(folder)) if url else None


def verify_shards(folder: Path) -> None:
    """Reads every shard of a mirrored folder in its store; of any other folder nothing.

    Raises:
        UserError: naming the first that is damaged.
    """
    url = origin(folder)
    for entry in _shards(folder) if url else ():
        try:
            download(f"{url}/{entry['file']}", entry, None)
        except DamagedError as error:
            raise UserError(str(error)) from error


def _shards(folder: Path) -> list[FileEntry]:
    return [shard for split in read_manifest(folder)["splits"].values() for shard in split["shards"]]


def _mirror(url: str, manifest: str, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        temporary.chmod(0o755)
        (temporary / "tokenizer").mkdir()
        files: Manifest = json.loads(manifest)
        for split in files["splits"].values():
            for entry in (split["index"], split["places"]):
                (temporary / entry["file"]).touch()
                download(f"{url}/{entry['file']}", entry, temporary / entry["file"])
        for file in look(f"{url}/tokenizer").files:
            name = file.name.rpartition("/")[2]
            if name in TOKENIZER_FILES:
                (temporary / "tokenizer" / name).write_bytes(_read(file.name))
        with contextlib.suppress(UserError):  # only where there were steps that clean
            (temporary / "funnel.json").write_bytes(_read(f"{url}/funnel.json"))
        (temporary / ORIGIN).write_text(url, encoding="utf-8")
        (temporary / "manifest.json").write_text(manifest, encoding="utf-8")
        for path in temporary.rglob("*"):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(url: str) -> bytes:
    """The whole of a small file; UserError where there is none."""
    file = look(url).files[0]
    with open_remote(file.name, file.size) as opened:
        return opened.read()


def download(url: str, entry: FileEntry, path: Path | None) -> None:
    """Writes the file at `url` into the existing file `path`; None: it is only compared with its checksum.

    Raises:
        RunError: it cannot be read.
        DamagedError: its checksum is wrong twice.
    """
    for _ in range(2):
        checksum = hashlib.sha256()
        with contextlib.ExitStack() as files:
            source = files.enter_context(open_remote(url, entry["bytes"]))
            target = files.enter_context(path.open("r+b")) if path else None
            while block := source.read(BLOCK):
                checksum.update(block)
                if target:
                    target.write(block)
            if target:
                target.flush()
                os.fsync(target.fileno())
        if checksum.hexdigest() == entry["sha256"]:
            return
    raise DamagedError(
        f"{url} is damaged: its checksum is not the one in its manifest. Upload the prepared folder again."
    )


class ShardCache:
    """Shards of a prepared folder at `url`, in a folder of at most `limit_bytes` that several processes may share.

    Files that are open already stay readable when they are deleted, so any process may make room.
    """

    def __init__(self, url: str, folder: Path, limit_bytes: int, entries: Iterable[FileEntry]) -> None:
        """
        Raises:
            UserError: a shard is larger than the limit.
        """
        self.url, self.folder, self.limit = url, folder, limit_bytes
        self.entries = {entry["file"]: entry for entry in entries}
        largest = max(self.entries.values(), key=lambda entry: entry["bytes"], default=None)
        if largest and largest["bytes"] > limit_bytes:
            raise UserError(
                f"data.cache_gb={limit_bytes / 1e9:g} holds not even {url}/{largest['file']}: it needs "
                f"{largest['bytes'] / 1e9:.2g} and more. Raise it, or prepare with a smaller data.shard_tokens."
            )
        self._wanted: Sequence[str] = ()
        self._asked = self._heard = 0  # number of the request
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def open(self, name: str) -> FileIO:
        """The shard, fetched if it is not there; from now on the last one to be deleted.

        Raises:
            RunError: it cannot be fetched, or its checksum is wrong.
        """
        entry = self.entries[name]
        while True:
            try:
                file = self._path(entry).open("rb", buffering=0)
            except FileNotFoundError:
                self._fetch(entry, wait=True)
                continue
            if os.fstat(file.fileno()).st_size == entry["bytes"]:
                os.utime(file.fileno())
                return file
            file.close()  # somebody cut it
            self._path(entry).unlink(missing_ok=True)

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetches in a thread what is not there of `names`, as far as it fits in beside all of `names`: those that are
        needed first come first. What was asked for before is given up."""
        with self._changed:
            self._wanted, self._asked = list(names), self._asked + 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._fetch_ahead, name="bigtrain-shards", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _path(self, entry: FileEntry) -> Path:
        return self.folder / f"{entry['sha256']}.bin"

    def _alone(self) -> AbstractContextManager[bool]:
        return _locked(self.folder / ".room.lock")

    def _fetch_ahead(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked != self._heard)
                names, asked = self._wanted, self._asked
                self._heard = asked
            keep = {self._path(self.entries[name]) for name in names}
            for name in names:
                if self._asked != asked:
                    break
                try:
                    self._fetch(self.entries[name], wait=False, keep=keep)
                except Exception:  # whoever needs the shard tries again, and says what is wrong
                    break

    def _fetch(self, entry: FileEntry, *, wait: bool, keep: Iterable[Path] = ()) -> None:
        """Not `wait`: gives up where another process fetches it, or there is no room beside `keep`."""
        path = self._path(entry)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f".{entry['sha256'][:LOCK_DIGITS]}.lock", wait=wait) as mine:
                if not mine or path.exists():
                    return
                while (temporary := self._room(entry["bytes"], set(keep))) is None:
                    if not wait:
                        return
                    time.sleep(0.05)  # until another one's download has ended
                with temporary:
                    try:
                        download(f"{self.url}/{entry['file']}", entry, Path(temporary.name))
                        with self._alone():  # who counts the files sees it under one of its names
                            Path(temporary.name).rename(path)
                    finally:
                        Path(temporary.name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"data.cache={self.folder.parent} cannot be written: {error}. Make room there.") from error

    def _room(self, size: int, keep: set[Path]) -> FileIO | None:
        """A new file of so many bytes, once the least recently used ones were deleted that stand in its way; it is
        locked as long as it is open."""
        with self._alone():
            files = []
            for file in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    files.append((file.stat().st_mtime_ns, file, file.stat().st_size))
            excess = sum(bytes_ for *_, bytes_ in files) + size - self.limit
            for _, file, bytes_ in sorted(files):
                if excess <= 0:
                    break
                if bytes_ and file not in keep and (file.suffix == ".bin" or _abandoned(file)):
                    file.unlink(missing_ok=True)
                    excess -= bytes_
            if excess > 0:
                return None
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            os.close(descriptor)
            temporary = FileIO(name, "r+")
            fcntl.flock(temporary, fcntl.LOCK_SH)
            temporary.truncate(size)
            return temporary


def _abandoned(file: Path) -> bool:
    """Whether the process that fetched it is gone."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Alone among threads and processes. Not `wait`: False where another one has the lock."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
