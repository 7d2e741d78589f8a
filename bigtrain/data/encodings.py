"""Kinds of rows: texts with labels, tagged words, pairs of texts. Conversations and preferences: `chats.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bigtrain.data.examples import PAD, Arrays, Encoded, Examples, Read
from bigtrain.data.sets import IGNORE
from bigtrain.data.tables import column, texts
from bigtrain.errors import UserError, nearest

MASK_COLUMN = "attention_mask"


@dataclass(kw_only=True)
class LabelledTexts(Examples):
    """A text, or a pair of texts, with a class or a number."""

    sequence_length: int = 128
    """Tokens; longer texts are cut."""
    text_column: str = "text"
    pair_column: str | None = None
    """A second text of each row."""
    label_column: str = "label"
    label_ranges: dict[str, list[float | None]] | None = None
    """Labels made of numbers: `{negative: [null, -1], positive: [1, null]}`; rows in no range are left out."""
    labels: list[str] | None = None
    """Names of the classes, in order; null: those that there are."""
    numbers: bool = False
    """The labels are numbers to be predicted (objective=regression)."""

    kind: ClassVar[str] = "labelled"
    pads: ClassVar[Mapping[str, float]] = {"input_ids": PAD, MASK_COLUMN: 0, "token_type_ids": 0}

    @property
    def classes(self) -> int | None:
        """See `Examples`; a number needs a head of one."""
        return 1 if self.numbers else super().classes

    def rows(self, table: Any) -> Read:
        """See `Examples`; a row's value is (text, second text or None, label)."""
        first = texts(table, self.text_column, "text_column")
        second = texts(table, self.pair_column, "pair_column") if self.pair_column else [None] * len(first)
        given, notes = column(table, self.label_column, "label_column"), []
        names: list[str] | None = None
        if self.numbers:
            labels: list[Any] = [_number(value, row, self.label_column) for row, value in enumerate(given)]
        elif self.label_ranges:
            names = list(self.label_ranges)
            labels = [_in_range(_number(value, row, self.label_column), self.label_ranges)
                      for row, value in enumerate(given)]  # fmt: skip
            outside = labels.count(None)
            notes = [f"{outside:,} of {len(labels):,} rows have a {self.label_column} in no range of data.label_ranges"]
        else:
            names, labels = number_labels(given, self.labels, self.label_column, class_names(table, self.label_column))
        kept = [row for row, label in enumerate(labels) if label is not None]
        values = [(first[row], second[row], labels[row]) for row in kept]
        keys = ["\0".join(filter(None, value[:2])) for value in values]
        strata = [None if names is None else names[value[2]] for value in values]
        if names is not None:
            there = set(strata)
            missing = [name for name in names if name not in there]
            if len(missing) == len(names) - 1:
                (only,) = set(names) - set(missing)
                raise UserError(f"data: all rows have the label '{only}': nothing to tell apart.")
            if missing:
                notes.append(f"note: no row has the label {', '.join(missing)}")
        return Read(values, keys, strata, keys, names, notes)

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """See `Examples`."""
        if not rows.values:
            return {name: [] for name in (*self.pads, "labels")}
        pair = [value[1] for value in rows.values] if self.pair_column else None
        found = tokenizer(
            [value[0] for value in rows.values], pair, truncation=True, max_length=self.sequence_length,
            return_token_type_ids=True,
        )  # fmt: skip
        return {**{name: found[name] for name in self.pads}, "labels": [value[2] for value in rows.values]}

    def finish(self, batch: Arrays) -> Arrays:
        """See `Examples`: which of two texts a token is of is told only where there are two."""
        if not self.pair_column:
            del batch["token_type_ids"]
        return batch


@dataclass(kw_only=True)
class TaggedWords(Examples):
    """Words with a tag each (names, parts of speech); a word's tag is its first token's label."""

    sequence_length: int = 128
    words_column: str = "tokens"
    tags_column: str = "tags"
    labels: list[str] | None = None
    """Names of the tags, in order; null: those that there are."""

    kind: ClassVar[str] = "tagged"
    pads: ClassVar[Mapping[str, float]] = {"input_ids": PAD, MASK_COLUMN: 0, "labels": IGNORE}

    def rows(self, table: Any) -> Read:
        """See `Examples`; a row's value is (words, numbers of their tags)."""
        words, tags = column(table, self.words_column, "words_column"), column(table, self.tags_column, "tags_column")
        for row, (some, theirs) in enumerate(zip(words, tags, strict=True)):
            if not isinstance(some, list) or not isinstance(theirs, list) or len(some) != len(theirs):
                raise UserError(
                    f"data: row {row + 1} needs as many {self.tags_column} as {self.words_column}, in lists."
                )
        flat = [tag for row in tags for tag in row]
        names, numbers = number_labels(flat, self.labels, self.tags_column, class_names(table, self.tags_column))
        left = iter(numbers)
        values = [(list(map(str, some)), [next(left) for _ in some]) for some in words]
        keys = [" ".join(value[0]) for value in values]
        return Read(values, keys, [None] * len(values), keys, names)

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """See `Examples`."""
        encoded: Encoded = {name: [] for name in self.pads}
        for words, tags in rows.values:
            found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=self.sequence_length)
            of, before = found.word_ids(), [None, *found.word_ids()[:-1]]
            labels = [
                IGNORE if word is None or word == last else tags[word] for word, last in zip(of, before, strict=True)
            ]
            for name, values in (("input_ids", found["input_ids"]), (MASK_COLUMN, [1] * len(of)), ("labels", labels)):
                encoded[name].append(values)
        return encoded


@dataclass(kw_only=True)
class Pairs(Examples):
    """A text and what is to be made of it: translation, summaries, answers."""

    source_column: str = "source"
    target_column: str = "target"
    sequence_length: int = 128
    """Tokens of a source; longer ones are cut."""
    target_length: int = 128
    prefix: str = ""
    """In front of every source, as T5 knows it: "translate German to English: "."""

    kind: ClassVar[str] = "pairs"
    pads: ClassVar[Mapping[str, float]] = {"input_ids": PAD, MASK_COLUMN: 0, "labels": IGNORE}

    def rows(self, table: Any) -> Read:
        """See `Examples`; a row's value is (source, target). Copies of a pair are one."""
        if self.source_column not in table.column_names and "conversations" in table.column_names:
            pairs = turns(column(table, "conversations", "source_column"))
        else:
            sources = texts(table, self.source_column, "source_column")
            pairs = list(zip(sources, texts(table, self.target_column, "target_column"), strict=True))
        values = list(dict.fromkeys(pairs))
        notes = [f"{len(pairs) - len(values):,} of {len(pairs):,} pairs are copies: left out"]
        keys = [_letters(value[0]) for value in values]
        both = [f"{source}\n{target}" for source, target in values]
        copied = len(values) < len(pairs)
        return Read(values, keys, [None] * len(values), both, None, notes if copied else None)

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """See `Examples`; both sides end with the end of text."""
        encoded: Encoded = {name: [] for name in self.pads}
        for source, target in rows.values:
            ids, labels = (
                [*tokenizer(text, add_special_tokens=False)["input_ids"][: length - 1], tokenizer.eos_token_id]
                for text, length in ((self.prefix + source, self.sequence_length), (target, self.target_length))
            )
            for name, values in (("input_ids", ids), (MASK_COLUMN, [1] * len(ids)), ("labels", labels)):
                encoded[name].append(values)
        return encoded


def turns(conversations: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Every turn of a dialogue with the answer to it."""
    return [(str(talk[at]), str(talk[at + 1])) for talk in conversations for at in range(len(talk) - 1)]


def number_labels(
    given: Sequence[Any], labels: Sequence[str] | None, name: str, known: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    """(the names of the classes, the number of each label).

    `labels`: the names in their order, where the user gives them; `known`: what a data set of the hub says of itself.
    Else the labels that there are, sorted: numbers by size, words by the alphabet.

    Raises:
        UserError: a label is missing, or is none of `labels`.
    """
    for row, value in enumerate(given):
        if value is None or value == "":
            raise UserError(f"data: row {row + 1} has no {name}: give every row a label, or leave the row out.")
    if labels is None and known is not None:
        labels = known
        given = [known[value] if isinstance(value, int) else value for value in given]
    if labels is None:
        counts = Counter(given)
        ordered = sorted(counts, key=lambda value: (isinstance(value, str), value))
        if len(ordered) > 1000 or any(isinstance(value, float) and not value.is_integer() for value in ordered):
            one = repr(ordered[-1])[:40]
            hint = (
                "is it the column of the labels (data.label_column)?"
                if isinstance(ordered[-1], str)
                else "are they numbers to be predicted (data.numbers=true with objective=regression), or in need of "
                "data.label_ranges?"
            )
            raise UserError(f"data: {name} has {len(ordered):,} different values, such as {one}: {hint}")
        return [str(value) for value in ordered], [ordered.index(value) for value in given]
    number = {str(label): at for at, label in enumerate(labels)}
    for row, value in enumerate(given):
        if str(value) not in number:
            raise UserError(
                f"data: row {row + 1} has the {name} {value!r}, which is none of the {len(number)} in data.labels."
                f"{nearest(str(value), number)}"
            )
    return list(number), [number[str(value)] for value in given]


def class_names(table: Any, name: str) -> list[str] | None:
    """The names that a `datasets` set gives to the numbers of a column; None where it has none."""
    import json

    told = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(told)["info"]["features"] if told else {}
    feature = features.get(name, {})
    feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
    names: list[str] | None = feature.get("names") if isinstance(feature, dict) else None
    return names


def _number(value: Any, row: int, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if np.isnan(number):
        raise UserError(f"data: row {row + 1} has no number in {name}, but {value!r}.")
    return number


def _in_range(value: float, ranges: Mapping[str, Sequence[float | None]]) -> int | None:
    for number, (low, high) in enumerate(ranges.values()):
        if (low is None or value >= low) and (high is None or value <= high):
            return number
    return None


def _letters(text: str) -> str:
    """What near-copies share: letters and digits alone, in lower case."""
    return "".join(filter(str.isalnum, text.lower())) or text
