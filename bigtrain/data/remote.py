"""Files in object stores and on web servers, through fsspec: found, read in blocks, and tried again when they fail.

Keys and addresses come from where the store's own tools look for them (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS …) and from fsspec's settings (FSSPEC_S3_ANON=true: a public bucket).
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from bigtrain.data.sources import Source, kind_of
from bigtrain.errors import RunError, UserError, nearest

BLOCK = 8 << 20
"""Bytes of a request."""
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Between one try and the next."""
PACKAGES = {
    "s3": "s3fs: pip install 'bigtrain[s3]'",
    "gs": "gcsfs: pip install gcsfs",
    "az": "adlfs: pip install adlfs",
}
_KEY = (
    "It needs one that may list this place and read it: for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE; a public bucket is read with FSSPEC_S3_ANON=true."
)
BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "oci")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL names: one file, the files under a folder, or the files that match a glob."""

    url: str
    files: list[Source]
    """In the order of their names; the kind is empty where we know none."""
    is_file: bool = False
    is_folder: bool = False

    @staticmethod
    def read_text(url: str) -> str:
        """The whole of a small file."""
        with open_remote(url) as file:
            return file.read().decode()


def look(url: str) -> Place:
    """What there is at `url`.

    Raises:
        UserError: nothing is there, the key is refused, or the package of its protocol is not installed.
        RunError: the store does not answer, after several tries.
    """
    return retried(lambda: _look(url), f"data.path={url}")


def open_remote(url: str, size: int | None = None) -> io.BufferedReader:
    """The file for reading and seeking; at most one block of it is held in memory.

    Raises, also while reading, as `look` does.
    """
    fs, path = _filesystem(url)
    if size is None:
        size = retried(lambda: int(fs.info(path)["size"]), url)
    return io.BufferedReader(_RemoteFile(fs, path, url, size), BLOCK)


def retried(action: Callable[[], T], what: str) -> T:
    """`action()`, tried again after each of WAITS_S while it fails, which is said on stderr.

    Raises:
        UserError: as `action` does, or where the store refuses the key: that is not tried again.
        RunError: every try failed.
    """
    try:
        return tried(action, what, WAITS_S, lambda error: isinstance(error, UserError | RunError) or _is_refusal(error))
    except (UserError, RunError):
        raise
    except Exception as error:  # each store's client has its own
        if _is_refusal(error):
            raise UserError(
                f"{what}: the store refuses the key, or was given none ({_reason(error)}). {_KEY}"
            ) from error
        raise RunError(
            f"{what} cannot be read ({_reason(error)}), tried {len(WAITS_S) + 1} times in "
            f"{sum(WAITS_S):.0f} seconds and more. Nothing that was finished is lost: the same command goes on."
        ) from error


def tried(action: Callable[[], T], what: str, waits: Sequence[float], lasts: Callable[[Exception], bool]) -> T:
    """`action()`, tried again after each of `waits` (seconds) while it fails, which is said on stderr.

    Raises:
        Exception: the last one of `action`, or one that `lasts`, whatever is waited for.
    """
    for wait in waits:
        try:
            return action()
        except Exception as error:
            if lasts(error):
                raise
            print(f"data: {what}: {_reason(error)}; trying again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    return action()


class _RemoteFile(io.RawIOBase):
    """Reads ranges of bytes, each a request of its own: a broken connection loses nothing."""

    def __init__(self, fs: Any, path: str, url: str, size: int) -> None:
        self.fs, self.path, self.url, self.size, self.position = fs, path, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        start, stop = self.position, min(self.position + len(buffer), self.size)
        if stop <= start:
            return 0
        data = retried(lambda: self._range(start, stop), self.url)
        buffer[: len(data)] = data
        self.position = stop
        return len(data)

    def _range(self, start: int, stop: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path, start=start, end=stop)
        if len(data) > stop - start:
            raise UserError(f"{self.url}: this server cannot send part of a file; download it and give the local path.")
        if len(data) < stop - start:
            raise OSError(f"it has changed: bytes {start:,} to {stop:,} were asked for, {len(data):,} came")
        return data


def _filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path within it)."""
    import fsspec  # type: ignore[import-untyped]

    protocol = url.partition("://")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"data.path={url}: {protocol}:// needs {PACKAGES.get(protocol, error)}.") from error
    except ValueError as error:
        known = nearest(protocol, ("s3", "gs", "az", "http", "https", "hf", "memory", "pkg", "file"))
        raise UserError(f"data.path={url}: {protocol}:// is no known kind of address.{known}") from error
    return fs, str(path)


def _look(url: str) -> Place:
    fs, path = _filesystem(url)
    fs.invalidate_cache()
    web = url.startswith(("http://", "https://"))  # there a question mark begins the query

    def source(name: str, info: Mapping[str, Any]) -> Source:
        if info.get("size") is None:
            raise UserError(f"{name}: its server does not say how large it is; download it and give the local path.")
        name = name if web else str(fs.unstrip_protocol(name))
        return Source(name, kind_of(name) or "", int(info["size"]), _modified(info))

    if re.search(r"[*\[]" if web else r"[*?\[]", url):
        try:
            found = fs.glob(path, detail=True)
        except ValueError as error:
            raise UserError(f"data.path={url}: {error}.") from error
        if not found:
            _bucket(fs, path, url)
            raise UserError(f"data.path={url}: no file matches this glob.")
        return Place(url, [source(name, info) for name, info in sorted(found.items()) if info["type"] == "file"])
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        if web and error.__cause__ is not None and getattr(error.__cause__, "status", 0) != 404:
            raise OSError(_reason(error.__cause__)) from error.__cause__  # a server that is not there
        _bucket(fs, path, url)
        raise UserError(f"data.path={url}: no such file or folder.{_beside(fs, path)}") from error
    if info["type"] == "file":
        return Place(url, [source(path, info)], is_file=True)
    found = fs.find(path, detail=True)
    return Place(
        url if web else str(fs.unstrip_protocol(path)),
        [source(name, info) for name, info in sorted(found.items())],
        is_folder=True,
    )


def _bucket(fs: Any, path: str, url: str) -> None:
    """Refuses a bucket that is not there."""
    bucket = path.strip("/").partition("/")[0]
    if url.partition("://")[0] in BUCKETS and not fs.exists(bucket):
        raise UserError(f"data.path={url}: there is no bucket '{bucket}', or this key may not see it.")


def _beside(fs: Any, path: str) -> str:
    try:
        names = [str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path.rpartition("/")[0], detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return nearest(path.rpartition("/")[2], names) if len(names) <= 50 else ""


def _modified(info: Mapping[str, Any]) -> int:
    """When it was last written, in ns; 0 where the store does not say. Each has its own word for it."""
    keys = ("LastModified", "last_modified", "mtime", "updated", "created", "Last-Modified")
    when = next((info[key] for key in keys if info.get(key)), 0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when) if when[:1].isdigit() else parsedate_to_datetime(when)
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return int(when * 1_000_000_000)


def _is_refusal(error: BaseException) -> bool:
    while error.__cause__ is not None and not isinstance(error, PermissionError):
        error = error.__cause__
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", None) in (401, 403)
        or "Credentials" in type(error).__name__
    )


def _reason(error: BaseException) -> str:
    """One line of what went wrong."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
