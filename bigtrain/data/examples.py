"""Rows encoded once, kept as Arrow files, and read as padded batches: what fine-tuning trains on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.order import Integers, LengthGroups
from bigtrain.data.settings import files_hash
from bigtrain.data.tables import Table, split_rows
from bigtrain.errors import UserError

VERSION = 1
MULTIPLE = 8
"""Batches are padded to a multiple of it, for matrix products' sake."""

Arrays = dict[str, NDArray[Any]]
Encoded = dict[str, list[Any]]
"""Columns of equal length: numbers, or lists of numbers."""


PAD = -1.0
"""In `pads`: the tokenizer's own padding."""


@dataclass(slots=True)
class Read:
    """Rows on their way: what they hold, and how they are told apart."""

    values: list[Any]
    """One a row, for `encode`."""
    keys: list[str]
    """Rows of one key are never on both sides of a split."""
    strata: list[Any]
    """Every side has the same share of each."""
    texts: list[str]
    """What a tokenizer is trained on."""
    label_names: list[str] | None = None
    notes: list[str] | None = None
    """What was left out, to be said."""

    def taken(self, which: NDArray[np.bool_]) -> Read:
        """The rows where `which` is true."""
        values = [value for value, yes in zip(self.values, which, strict=True) if yes]
        return Read(values, [], [], [], self.label_names)


@dataclass(kw_only=True)
class Examples:
    """A data component of rows: `prepare` once, then `train` and `eval` open in any process.

    The settings that every kind of rows has; a kind adds its own, and the methods `rows`, `encode` and `finish`.
    """

    path: str | list[str]
    """A table (.csv, .tsv, .jsonl, .parquet, .yml dialogues), a folder of them, what `datasets` saved, a hub name."""
    eval_path: str | list[str] | None = None
    """The held-out rows, where they are a set of their own; null: a share of `path`."""
    columns: list[str] | None = None
    """Names of the columns, where a .csv or .tsv file has no line of names."""
    tokenizer: str | None = None
    """A folder, GGUF file or hub name; null: a byte-level BPE is trained on the training rows."""
    vocab_size: int = 8192
    """Entries of a tokenizer to be trained."""
    held_out: float = 0.1
    """Share of the rows (of every label the same) kept for evaluation; rows of one text are never on both sides."""
    folds: int | None = None
    """Cross-validation: the rows are cut into so many parts, and the part of index `fold` is held out."""
    fold: int | None = None
    name: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set; `eval_split` is that of the held-out rows."""
    eval_split: str | None = None
    revision: str | None = None
    max_rows: int | None = None
    """Only the first so many rows."""
    seed: int = 0
    """Of the split; the order of training follows the run's seed."""
    cache: str = "runs/prepared"
    length_group: int = 32
    """So many rows of about one length come together in training; 1: rows come as they are shuffled."""

    kind: ClassVar[str]
    pads: ClassVar[Mapping[str, float]]
    """The columns that hold lists, and what fills them up."""

    def __post_init__(self) -> None:
        check_split(self.held_out, self.folds, self.fold)
        for name in ("sequence_length", "target_length", "max_rows"):
            if (value := getattr(self, name, None)) is not None and value < 1:
                raise UserError(f"data.{name}={value}: at least 1.")
        if self.length_group < 1:
            raise UserError(f"data.length_group={self.length_group}: at least 1 row.")

    def rows(self, table: Any) -> Read:
        """The rows of a table that are used."""
        raise NotImplementedError

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """What is kept of them."""
        raise NotImplementedError

    def finish(self, batch: Arrays) -> Arrays:
        """What the model is given of a padded batch."""
        return batch

    def depends(self) -> Any:
        """What else the encoded rows depend on: the content of files that settings name."""
        return None

    @cached_property
    def tables(self) -> list[Table]:
        """What is read: the rows, and the held-out rows where they are a set of their own."""
        whole = Table(_several(self.path), _several(self.columns), self.name, self.split, self.revision, self.max_rows)
        if self.eval_path is None and self.eval_split is None:
            return [whole]
        path = whole.path if self.eval_path is None else _several(self.eval_path)
        return [whole, replace(whole, path=path, split=self.eval_split or self.split)]

    @cached_property
    def folder(self) -> Path:
        """Where the encoded rows lie, or will lie: named by all that they depend on."""
        told = asdict(self)
        for name in ("path", "eval_path", "cache", "length_group", "tokenizer"):
            del told[name]
        given = self.tokenizer
        told |= {
            "version": VERSION,
            "depends": self.depends(),
            "tables": [table.sources() for table in self.tables],
            "tokenizer": (tokenizer_hash(given) or given) if given else None,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        return Path(self.cache).expanduser() / f"{self.kind}-{digest}"

    def prepare(self) -> None:
        """Reads, splits, tokenises and keeps the rows, unless that has been done.

        Raises:
            UserError: the rows or the settings are wrong; nothing is left behind.
        """
        if (self.folder / "info.json").is_file():
            print(f"data: prepared already, in {self.folder}", file=sys.stderr)
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        try:
            self._write(scratch)
            try:
                scratch.rename(self.folder)
            except OSError:
                if not (self.folder / "info.json").is_file():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @property
    def train(self) -> Rows:
        """The training rows."""
        return self._rows("train")

    @cached_property
    def eval(self) -> Rows | None:
        """The held-out rows; None: none are held out."""
        return self._rows("eval") if self._info["rows"]["eval"] else None

    @property
    def tokens(self) -> int:
        """Entries of the tokenizer: every token is below it."""
        return int(self._info["vocab_size"])

    @property
    def classes(self) -> int | None:
        """So many that a head needs; None where there are no labels."""
        return len(self.label_names) if self.label_names else None

    @property
    def label_names(self) -> list[str] | None:
        """Of the classes, in the order of their numbers."""
        names: list[str] | None = self._info["label_names"]
        return names

    @property
    def tokenizer_path(self) -> Path:
        """A folder that `transformers.AutoTokenizer.from_pretrained` reads."""
        return self.folder / "tokenizer"

    @property
    def fingerprint(self) -> str:
        """A hash of the encoded training rows: what a position in them means depends on it."""
        return str(self._info["fingerprint"])

    @cached_property
    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.folder / "info.json").read_text(encoding="utf-8"))
        return info

    def _rows(self, split: str) -> Rows:
        import datasets

        table = datasets.load_from_disk(str(self.folder / split))
        pads = {name: self._info["pad_id"] if fill == PAD else fill for name, fill in self.pads.items()}
        lengths = np.load(self.folder / f"{split}_lengths.npy")
        return Rows(table, lengths, pads, self.length_group, self.finish)

    def _write(self, folder: Path) -> None:
        import datasets

        from bigtrain.data.tokenizer import load, save, take
        from bigtrain.data.tokenizer import train as train_tokenizer

        tables = [table.read() for table in self.tables]
        rows = self.rows(tables[0])
        if not rows.values:
            raise UserError("data.path has no row that can be used: " + "; ".join(rows.notes or ["all were left out"]))
        held = np.zeros(len(rows.values), np.bool_)
        if len(tables) == 1:
            held = split_rows(rows.keys, rows.strata, self.held_out, self.folds, self.fold, self.seed)
            sides = {"train": rows.taken(~held), "eval": rows.taken(held)}
        else:
            sides = {"train": rows, "eval": self.rows(tables[1])}
            if sides["eval"].label_names != rows.label_names:
                raise UserError(
                    f"data.eval_path has the labels {sides['eval'].label_names}, data.path {rows.label_names}: name "
                    "all of them in data.labels."
                )
        if self.tokenizer is not None:
            take(self.tokenizer, folder / "tokenizer")
        else:
            own = (text for text, out in zip(rows.texts, held, strict=True) if not out)
            save(train_tokenizer(own, self.vocab_size), folder / "tokenizer")
        tokenizer = load(folder / "tokenizer")
        counts, digest = {}, hashlib.sha256()
        for split, side in sides.items():
            encoded = self.encode(side, tokenizer)
            lists = [encoded[name] for name in self.pads]
            lengths = np.array([max(map(len, row)) for row in zip(*lists, strict=True)])
            table = datasets.Dataset.from_dict(encoded)
            datasets.disable_progress_bars()
            table.save_to_disk(str(folder / split))
            np.save(folder / f"{split}_lengths.npy", lengths.astype(np.int32))
            counts[split] = len(table)
            digest.update(json.dumps(encoded, sort_keys=True).encode())
        for note in rows.notes or []:
            print(f"data: {note}", file=sys.stderr)
        of = f"{counts['train']:,} training rows, {counts['eval']:,} held out"
        print(f"data: {of}, in {self.folder}", file=sys.stderr)
        if not counts["eval"] and (self.held_out or len(tables) > 1):
            print("data: note: nothing is held out, so nothing will be evaluated", file=sys.stderr)
        info = {
            "rows": counts,
            "label_names": rows.label_names,
            "pad_id": tokenizer.pad_token_id,
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,
            "fingerprint": digest.hexdigest()[:16],
        }
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


class Rows:
    """Encoded rows: a batch is padded on the right to its own longest row."""

    def __init__(
        self,
        table: Any,
        lengths: NDArray[np.int32],
        pads: Mapping[str, float],
        group: int,
        finish: Callable[[Arrays], Arrays],
    ) -> None:
        self._table, self._lengths, self._pads, self._group, self._finish = table, lengths, pads, group, finish

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Arrays:
        """One row, padded as a batch of its own."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | Integers) -> Arrays:
        """The rows `indices`: arrays whose first dimension is theirs."""
        stored = self._table[np.asarray(indices).tolist()]
        return self._finish({name: self._array(name, values) for name, values in stored.items()})

    def order(self, seed: int) -> LengthGroups:
        """The order of training: shuffled anew in each epoch, rows of about one length together."""
        return LengthGroups(self._lengths, seed, self._group)

    def _array(self, name: str, values: list[Any]) -> NDArray[Any]:
        if name not in self._pads:
            return np.array(values, np.float32 if isinstance(values[0], float) else np.int64)
        longest = -(-max(map(len, values)) // MULTIPLE) * MULTIPLE
        array = np.full((len(values), longest), self._pads[name], np.int64)
        for row, value in enumerate(values):
            array[row, : len(value)] = value
        return array


def _several(given: str | list[str] | None) -> Any:
    return (given,) if isinstance(given, str) else given if given is None else tuple(given)


def check_split(held_out: float, folds: int | None, fold: int | None) -> None:
    """A `UserError` where the held-out share or the folds mean nothing."""
    if not 0 <= held_out < 1:
        raise UserError(f"data.held_out={held_out}: a share of the rows, at least 0 and below 1.")
    if folds is not None and folds < 2:
        raise UserError(f"data.folds={folds}: at least 2.")
    if (folds is None) != (fold is None) or (folds and not 0 <= (fold or 0) < folds):
        raise UserError(f"data.folds={folds} and data.fold={fold}: a fold from 0 to {(folds or 2) - 1} of them.")


def tokenizer_hash(given: str) -> Any:
    """What a given tokenizer's ids depend on; empty for a name of the hub."""
    here = Path(given).expanduser()
    if here.is_file():
        stat = here.stat()
        return {here.name: [stat.st_size, stat.st_mtime_ns]}
    found: dict[str, Any] = dict(files_hash(here))
    return found | {file.name: file.stat().st_size for file in sorted(here.glob("*.gguf"))}
