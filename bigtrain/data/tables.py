"""Rows with columns: from CSV, TSV, JSON lines, Parquet, YAML dialogues, saved `datasets` sets and the hub."""

from __future__ import annotations

import hashlib
import json as builtin_json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.errors import UserError, nearest, nearest_path

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".yml", ".yaml")
PACKED = ("", ".gz", ".bz2", ".zst")


@dataclass(frozen=True, slots=True)
class Table:
    """What rows are read; what the settings mean is told in `bigtrain.data.examples.Examples`."""

    path: tuple[str, ...]
    columns: tuple[str, ...] | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    max_rows: int | None = None

    def sources(self) -> list[dict[str, Any]]:
        """Name, size and time of every file, or the hub's name and commit: when they change, so do the rows."""
        found: list[dict[str, Any]] = []
        for path in self.path:
            files = _files(path)
            if files is None:
                from bigtrain.data.hub import commit_of

                found.append({"hub": path, "commit": commit_of(path, self.revision)})
            for file in files or ():
                stat = file.stat()
                found.append({"name": str(file.absolute()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        return found

    def read(self) -> pa.Table:
        """All rows, in the order of the files.

        Raises:
            UserError: there is no such file, it cannot be read, or the files have different columns.
        """
        import pyarrow as pa

        tables: list[pa.Table] = []
        for path in self.path:
            files = _files(path)
            tables += [self._hub(path)] if files is None else [self._file(file) for file in files]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise UserError(f"The files of data.path={list(self.path)} have different columns: {error}") from error
        if len(table) == 0:
            raise UserError(f"data.path={_named(self.path)} has no row.")
        return table.slice(0, self.max_rows)

    def _file(self, file: Path) -> pa.Table:
        import pyarrow as pa

        kind = _kind(file)
        try:
            if kind in (".csv", ".tsv"):
                return _csv(file, "\t" if kind == ".tsv" else ",", self.columns)
            if kind in (".jsonl", ".json"):
                return _json_lines(file)
            if kind == ".parquet":
                from pyarrow import parquet

                return parquet.read_table(file)
            if kind in (".yml", ".yaml"):
                return _dialogues(file)
            import datasets

            return datasets.Dataset.from_file(str(file)).with_format("arrow")[:]
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"data.path={file} cannot be read: {' '.join(str(error).split())}") from error

    def _hub(self, name: str) -> pa.Table:
        import pyarrow as pa

        from bigtrain.data.hub import commit_of, count_files, tables

        commit = commit_of(name, self.revision)
        files = range(count_files(name, self.name, self.split, commit))
        return pa.concat_tables(
            [table for file in files for table in tables(name, self.name, self.split, commit, file)]
        )


def column(table: pa.Table, name: str, setting: str) -> list[Any]:
    """A column's values; a `UserError` that names the setting and the columns that there are."""
    if name not in table.column_names and "." in name:  # a field of a column of records: translation.de
        table = table.flatten()
    if name not in table.column_names:
        close = nearest(name, table.column_names)
        if "Did you" not in close and any(" " in each or _number(each) for each in table.column_names):
            close += f" That looks like a row: if the table has no line of names, give all {len(table.column_names)}: "
            close += "data.columns=[id,text,…]."
        raise UserError(f"data.{setting}={name}: there is no such column.{close}")
    values: list[Any] = table.column(name).to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bytes):  # what Arrow makes of a column that is not UTF-8
            try:
                values[row] = value.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"data.{setting}={name}: row {row + 1} is not UTF-8: {error}.") from error
    return values


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def texts(table: pa.Table, name: str, setting: str) -> list[str]:
    """A column of texts; a `UserError` that names the first row that has none."""
    values = column(table, name, setting)
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise UserError(f"data.{setting}={name}: row {row + 1} has no text.")
        values[row] = str(value)
    return values


def split_rows(
    keys: Sequence[str], strata: Sequence[Any], held_out: float, folds: int | None, fold: int | None, seed: int
) -> NDArray[np.bool_]:
    """Which rows are held out: in each stratum the same share, and all rows of one key on one side.

    Within a stratum keys are ordered by a hash of themselves and the seed. Held out is the first share `held_out`, or
    with `folds` the part of index `fold`, so that each key is held out in exactly one fold.

    Raises:
        UserError: a stratum has fewer keys than there are folds.
    """
    place = {key: hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest() for key in set(keys)}
    stratum: dict[str, Any] = {}
    for key, of in zip(keys, strata, strict=True):
        stratum.setdefault(key, of)  # rows of one text that are labelled differently still lie together
    members: dict[Any, list[str]] = {}
    for key in sorted(place, key=lambda key: place[key]):
        members.setdefault(stratum[key], []).append(key)
    out: set[str] = set()
    for of, inside in members.items():
        if folds is None:
            out.update(inside[: round(held_out * len(inside))])
            continue
        if len(inside) < folds:
            what = f"the label '{of}' has {len(inside)}" if of is not None else f"there are {len(inside)}"
            raise UserError(f"{folds} folds, but {what} different rows: a fold would have none of it.")
        assert fold is not None
        out.update(key for number, key in enumerate(inside) if number * folds // len(inside) == fold)
    return np.fromiter((key in out for key in keys), np.bool_, len(keys))


def _files(path: str) -> list[Path] | None:
    """The files that a path names; None: it is a name of the hub."""
    from bigtrain.data.sources import HUB_NAME, holds_no_run

    here = Path(path).expanduser()
    if here.is_dir():
        saved = sorted(here.glob("*.arrow"))
        found = saved or sorted(file for file in here.iterdir() if _kind(file) and not file.name.startswith("."))
        if not found:
            raise UserError(f"The folder data.path={path} holds no table: {', '.join(SUFFIXES)}.")
        return found
    if here.is_file():
        if not _kind(here) and here.suffix != ".arrow":
            raise UserError(f"data.path={path}: unknown kind of table; known are {', '.join(SUFFIXES)}.")
        return [here]
    if HUB_NAME.fullmatch(path) and not _kind(here):
        return None
    raise UserError(f"data.path={path}: no such file or folder.{nearest_path(here, holds_no_run)}")


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for kind in SUFFIXES for packed in PACKED if name.endswith(kind + packed)), None)


def _csv(file: Path, delimiter: str, columns: Sequence[str] | None) -> pa.Table:
    """TSV has no quotes: a quotation mark in it is a character as any other."""
    from pyarrow import csv

    read = csv.ReadOptions(column_names=list(columns) if columns else None)
    quote: str | bool = '"' if delimiter == "," else False
    parse = csv.ParseOptions(delimiter=delimiter, quote_char=quote, newlines_in_values=delimiter == ",")
    table = csv.read_csv(file, read, parse, csv.ConvertOptions(strings_can_be_null=False))
    last = table.column(table.num_columns - 1)[-1].as_py() if len(table) and quote else None
    if isinstance(last, str) and "\n" in last:
        _check_closed(file, last)
    return table


def _check_closed(file: Path, last: str) -> None:
    """A quotation mark that is never closed takes every row behind it into the file's `last` value."""
    import pyarrow as pa

    with pa.input_stream(str(file)) as stream:
        content = stream.read()
    if not content.rstrip().endswith(b'"'):
        line = content.count(b"\n") - last.count("\n") + 1
        raise UserError(f"data.path={file}: line {line}: a quotation mark is opened there and never closed.")


def _json_lines(file: Path) -> pa.Table:
    from pyarrow import ArrowInvalid, json

    try:
        return json.read_json(file)
    except ArrowInvalid as error:  # it counts rows within blocks of the file: look for the line
        if file.suffix in (".jsonl", ".json"):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    _ = builtin_json.loads(line) if line.strip() else None
                except ValueError as fault:
                    raise UserError(f"data.path={file}: line {number} is not JSON: {fault}.") from error
        raise


def _dialogues(file: Path) -> pa.Table:
    """Dialogues in YAML, as of chatterbot-corpus: `conversations`, a list of lists of turns."""
    import pyarrow as pa
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"data.path={file} is not YAML: {' '.join(str(error).split())}") from error
    turns = content.get("conversations") if isinstance(content, dict) else None
    if not isinstance(turns, list):
        raise UserError(f"data.path={file}: no `conversations`, a list of lists of turns.")
    talks = [[str(turn) for turn in talk] for talk in turns]
    return pa.table({"conversations": talks, "topic": [file.stem] * len(talks)})


def _named(path: Sequence[str]) -> str:
    return path[0] if len(path) == 1 else str(list(path))
