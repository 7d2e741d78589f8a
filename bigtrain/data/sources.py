"""What `data.path` names: files, folders, globs, package resources, or a data set of the hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bigtrain.errors import UserError, nearest

TEXT, JSONL, PARQUET, HUB = "text", "jsonl", "parquet", "hub"
SUFFIXES = {
    **{suffix + packed: TEXT for suffix in (".txt", ".md") for packed in ("", ".gz", ".xz")},
    **{suffix + packed: JSONL for suffix in (".jsonl",) for packed in ("", ".gz", ".xz")},
    ".parquet": PARQUET,
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set of the hub."""

    name: str
    """The file's absolute path, or the hub name."""
    kind: str
    """TEXT, JSONL, PARQUET or HUB."""
    size: int = 0
    """Bytes on disk; 0 for the hub."""
    mtime_ns: int = 0


def find_sources(paths: Sequence[str]) -> list[Source]:
    """The sources that `paths` name, each once, a folder's or glob's files in the order of their names.

    Raises:
        UserError: nothing is there, or nothing that can be read, or every file is empty.
    """
    found = list(dict.fromkeys(source for path in paths for source in _find(path)))
    if not found:
        raise UserError("data.path names nothing: give a file, a folder, a glob or a hub name.")
    if all(source.size == 0 and source.kind != HUB for source in found):
        raise UserError(f"data.path={found[0].name if len(found) == 1 else list(paths)} is empty: there is no text.")
    return found


def _find(path: str) -> list[Source]:
    if path.startswith("pkg://"):
        return [_file(_resource(path))]
    here = Path(path).expanduser()
    if here.is_dir():
        return _files(sorted(here.rglob("*")), f"The folder data.path={path}")
    if here.exists():
        if _kind(here) is None:
            raise UserError(f"data.path={path}: unknown kind of file; known are {', '.join(SUFFIXES)}.")
        return [_file(here)]
    if glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(here), recursive=True))]  # noqa: PTH207 - absolute patterns, and ** as in a shell
        if not matches:
            raise UserError(f"data.path={path}: no file matches this glob.")
        return _files(matches, f"The glob data.path={path}")
    if HUB_NAME.fullmatch(path) and _kind(here) is None:
        return [Source(path, HUB)]
    beside = [entry.name for entry in here.parent.iterdir()] if here.parent.is_dir() else []
    raise UserError(
        f"data.path={path}: no such file or folder." + (nearest(here.name, beside) if len(beside) <= 50 else "")
    )


def _files(paths: Sequence[Path], what: str) -> list[Source]:
    """The readable files among `paths`; hidden ones and other kinds are passed over."""
    files = [_file(path) for path in paths if path.is_file() and not path.name.startswith(".") and _kind(path)]
    if not files:
        raise UserError(f"{what} holds no file of a known kind ({', '.join(SUFFIXES)}).")
    return files


def _file(path: Path) -> Source:
    path = path.absolute()
    stat = path.stat()
    return Source(str(path), _kind(path) or TEXT, stat.st_size, stat.st_mtime_ns)


def _kind(path: Path) -> str | None:
    """By the file's suffix, compressed or not; None where it is none that we know."""
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _resource(path: str) -> Path:
    """`pkg://package/file`: a file that an installed package carries."""
    package, _, inside = path.removeprefix("pkg://").partition("/")
    try:
        file = Path(str(resources.files(package).joinpath(inside)))
    except (ModuleNotFoundError, ValueError) as error:
        raise UserError(f"data.path={path}: there is no package '{package}' here.") from error
    if not file.is_file() or _kind(file) is None:
        raise UserError(f"data.path={path}: package '{package}' carries no such text file.")
    return file
