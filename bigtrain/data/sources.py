"""What `data.path` names: files, folders, globs, URLs, package resources, or a data set of the hub."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from bigtrain.config.compose import PENDING
from bigtrain.errors import UserError, nearest, nearest_path

TEXT, JSONL, PARQUET, ARROW, HUB = "text", "jsonl", "parquet", "arrow", "hub"
PACKED = ("", ".gz", ".xz", ".zst")
SUFFIXES = {
    **{suffix + packed: TEXT for suffix in (".txt", ".md") for packed in PACKED},
    **{suffix + packed: JSONL for suffix in (".jsonl", ".json") for packed in PACKED},
    ".parquet": PARQUET,
    ".arrow": ARROW,
}
KNOWN = f"{', '.join(s for s in SUFFIXES if s.count('.') == 1)}; text and JSON lines also as .gz, .xz, .zst"
RUN_FILES = ("config.yaml", PENDING)
"""One of them is in every run folder."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one data set of the hub."""

    name: str
    """The file's absolute path or URL, or the hub name."""
    kind: str
    """TEXT, JSONL, PARQUET, ARROW or HUB."""
    size: int = 0
    """Bytes as stored; 0 for the hub."""
    mtime_ns: int = 0
    """When it was last written; 0 where a server does not say."""


def find_sources(paths: Sequence[str], split: str = "train") -> list[Source]:
    """The sources that `paths` name, each once, a folder's or glob's files in the order of their names.

    A folder that `datasets.save_to_disk` wrote gives its Arrow files, those of `split` where it has several. In other
    folders .json files count only where there is no text of another kind: they mostly are settings beside it.

    Raises:
        UserError: nothing is there, or nothing that can be read, or every file is empty.
        RunError: an object store or server does not answer, after several tries.
    """
    found = list(dict.fromkeys(source for path in paths for source in _find(path, split)))
    if not found:
        raise UserError("data.path names nothing: give a file, a folder, a glob, a URL or a hub name.")
    if all(source.size == 0 and source.kind != HUB for source in found):
        raise UserError(f"data.path={found[0].name if len(found) == 1 else list(paths)} is empty: there is no text.")
    return found


def kind_of(name: str) -> str | None:
    """By the file's suffix, compressed or not; None where it is none that we know."""
    name = plain(name).lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def is_remote(name: str) -> bool:
    """A URL, and not of a local file."""
    return "://" in name and not name.startswith(("pkg://", "file://"))


def plain(name: str) -> str:
    """The path of a web address, without its query; any other name as it is."""
    return re.sub(r"[?#].*", "", name) if name.startswith(("http://", "https://")) else name


def _find(path: str, split: str) -> list[Source]:
    if path.startswith("pkg://"):
        return [_file(_resource(path))]
    if is_remote(path):
        from bigtrain.data import remote  # fsspec is loaded only where there is a URL

        place = remote.look(path)
        if place.is_file:
            return [_known(place.files[0], path)]
        if place.is_folder:
            return _folder(place.files, place.url, place.read_text, path, split)
        return _readable(place.files, f"The glob data.path={path}")
    here = Path(path.removeprefix("file://")).expanduser()
    if here.is_dir():
        here = here.absolute()
        files = [_file(file) for file in sorted(here.rglob("*")) if file.is_file()]
        return _folder(files, str(here), lambda name: Path(name).read_text(encoding="utf-8"), path, split)
    if here.exists():
        return [_known(_file(here), path)]
    if glob.has_magic(path):
        matches = [Path(match) for match in sorted(glob.glob(str(here), recursive=True))]  # noqa: PTH207 - absolute patterns, and ** as in a shell
        if not matches:
            raise UserError(f"data.path={path}: no file matches this glob.")
        return _readable([_file(match) for match in matches if match.is_file()], f"The glob data.path={path}")
    if HUB_NAME.fullmatch(path) and kind_of(path) is None:
        return [Source(path, HUB)]
    raise UserError(f"data.path={path}: no such file or folder.{nearest_path(here, holds_no_run)}")


def holds_no_run(entry: Path) -> bool:
    """False of a run folder, finished or just begun, and of a folder of such: nobody means them by a path of data."""
    return not any(next(entry.glob(f"{below}{name}"), None) for below in ("", "*/", "*/*/") for name in RUN_FILES)


def _folder(files: Sequence[Source], root: str, read_text: Callable[[str], str], path: str, split: str) -> list[Source]:
    """The files of a folder that are to be read: of a saved data set as its own list says, else all of a known kind."""
    by_name = {file.name: file for file in files}
    root = root.rstrip("/")
    if f"{root}/dataset_dict.json" in by_name:
        splits = json.loads(read_text(f"{root}/dataset_dict.json"))["splits"]
        if split not in splits:
            raise UserError(f"data.path={path} has no split '{split}' (data.split).{nearest(split, splits)}")
        root = f"{root}/{split}"
    if f"{root}/state.json" in by_name and f"{root}/dataset_info.json" in by_name:
        names = [f"{root}/{file['filename']}" for file in json.loads(read_text(f"{root}/state.json"))["_data_files"]]
        for name in names:
            if name not in by_name:
                raise UserError(f"data.path={path} is not the whole data set that was saved: {name} is missing.")
        return [by_name[name] for name in names]
    readable = _readable(files, f"The folder data.path={path}")
    others = [file for file in readable if ".json" not in re.findall(r"\.\w+", plain(file.name).lower())[-2:]]
    return others or readable


def _readable(files: Sequence[Source], what: str) -> list[Source]:
    """The files of a known kind; hidden ones and other kinds are passed over."""
    readable = [file for file in files if file.kind and not plain(file.name).rpartition("/")[2].startswith(".")]
    if not readable:
        raise UserError(f"{what} holds no file of a known kind ({KNOWN}).")
    return readable


def _known(file: Source, path: str) -> Source:
    if not file.kind:
        raise UserError(f"data.path={path}: unknown kind of file; known are {KNOWN}.")
    return file


def _file(path: Path) -> Source:
    """A local file; its kind is empty where we know none."""
    path = path.absolute()
    stat = path.stat()
    return Source(str(path), kind_of(path.name) or "", stat.st_size, stat.st_mtime_ns)


def _resource(path: str) -> Path:
    """`pkg://package/file`: a file that an installed package carries."""
    package, _, inside = path.removeprefix("pkg://").partition("/")
    try:
        file = Path(str(resources.files(package).joinpath(inside)))
    except (ModuleNotFoundError, ValueError) as error:
        raise UserError(f"data.path={path}: there is no package '{package}' here.") from error
    if not file.is_file() or kind_of(file.name) is None:
        raise UserError(f"data.path={path}: package '{package}' carries no such text file.")
    return file
