"""The pipeline: order, counts that add up however the work was parted, and faults that name the document."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bigtrain.data.clean import Drop
from bigtrain.data.clean.funnel import Funnel, nothing_left
from bigtrain.data.clean.pipeline import Pipeline, apply
from bigtrain.data.documents import Document
from bigtrain.data.sources import Source
from bigtrain.errors import UserError

SOURCES = [Source("/data/notes.jsonl", "jsonl", 1000), Source("/data/table.parquet", "parquet", 1000)]
HERE = "tests.unit.data.test_data_clean_pipeline"
DOOR = "bigtrain.data.clean"


def no_shouting(text: str, *, marks: int = 3) -> str | Drop:
    """A step of a user's own."""
    return Drop("shouting", f"{text.count('!')} marks") if text.count("!") >= marks else text.replace("!", ".")


def breaks_on_zero(text: str) -> str:
    return str(1 / (len(text) - 5))


def returns_nothing(text: str) -> None:
    return None


def makes_a_list() -> list[str]:
    return []


class SameLength:
    """A corpus step of a user's own: of the documents of one length, the first stays."""

    corpus = True
    reason = "of the same length"

    def sketch(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return np.array([[len(text)] for text in texts], np.int64)

    def duplicates(
        self, sketches: NDArray[Any], alive: NDArray[np.bool_], text_of: Callable[[int], str]
    ) -> NDArray[np.int64]:
        first: dict[int, int] = {}
        kept = np.full(len(sketches), -1, np.int64)
        for index in np.flatnonzero(alive).tolist():
            length = int(sketches[index, 0])
            if length in first:
                kept[index] = first[length]
            else:
                first[length] = index
        return kept


def documents(number: int, seed: int = 0) -> list[Document]:
    draw = random.Random(seed)
    texts = ["a b! " * draw.randrange(1, 9) + "x" * draw.randrange(40) for _ in range(number)]
    return [Document(text, index % 2, 10 * index) for index, text in enumerate(texts)]


STEPS = [
    {"_target_": f"{DOOR}.normalise"},
    {"_target_": f"{HERE}.no_shouting", "marks": 6},
    {"_target_": f"{DOOR}.length", "min_characters": 12},
]


def run(pipeline: Pipeline, given_: Iterable[Document]) -> tuple[list[Document], Funnel]:
    funnel = pipeline.funnel()
    left = list(funnel.after.count(apply(funnel.before.count(given_), pipeline.before, funnel, SOURCES)))
    return left, funnel


def without_seconds(funnel: Funnel) -> Funnel:
    for step in funnel.steps:
        step.seconds = 0.0
    return funnel


def test_documents_pass_the_steps_in_order_and_the_counts_add_up() -> None:
    given_ = documents(300)
    left, funnel = run(Pipeline(STEPS), given_)
    by_hand = [d for d in given_ if d.text.count("!") < 6 and len(d.text.strip("\n").rstrip(" ")) >= 12]
    assert [(d.source, d.offset) for d in left] == [(d.source, d.offset) for d in by_hand]
    assert not any("!" in document.text for document in left)
    assert funnel.before.documents == 300 and funnel.before.characters == sum(len(d.text) for d in given_)
    assert funnel.after.documents == len(left) and funnel.after.characters == sum(len(d.text) for d in left)
    assert sum(funnel.before.histogram) == 300 and sum(funnel.after.histogram) == len(left)
    into, characters = 300, funnel.before.characters
    for step in funnel.steps:
        assert (step.documents_in, step.characters_in) == (into, characters)
        assert step.documents_in - step.documents_out == sum(reason.documents for reason in step.reasons.values())
        into, characters = step.documents_out, step.characters_out
    assert (into, characters) == (funnel.after.documents, funnel.after.characters)
    assert list(funnel.steps[1].reasons) == ["shouting"] and funnel.steps[1].settings == {"marks": 6}
    example = funnel.steps[1].reasons["shouting"].examples[0]
    original = next(d for d in given_ if (d.source, d.offset) == (example.source, example.offset))
    assert original.text.startswith(example.text) and example.detail == f"{original.text.count('!')} marks"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=5), st.randoms(use_true_random=False))
def test_the_funnel_is_the_same_however_the_work_is_parted(cuts: list[int], shuffle: random.Random) -> None:
    given_ = documents(120)
    pipeline = Pipeline(STEPS)
    whole = without_seconds(run(pipeline, given_)[1])
    edges = [0, *sorted(cuts), 120]
    parts = [run(pipeline, given_[start:end])[1] for start, end in pairwise(edges)]
    shuffle.shuffle(parts)
    merged = pipeline.funnel()
    for part in parts:
        merged.merge(part)
    assert without_seconds(merged) == whole


def test_a_funnel_comes_back_from_its_file(tmp_path: Path) -> None:
    given_ = [*documents(50), Document("half a \ud800 pair", 0, 7), Document("\x00\u200b", 1, 3)]
    _, funnel = run(Pipeline([{"_target_": f"{DOOR}.control_characters"}, *STEPS]), given_)
    assert funnel.steps[0].reasons["nothing left of the text"].documents == 1
    funnel.write(tmp_path / "funnel.json")
    read = Funnel.read(tmp_path / "funnel.json")
    assert read.before == funnel.before and read.after == funnel.after and read.table() == funnel.table()
    (tmp_path / "funnel.json").write_text("[]")
    with pytest.raises(UserError, match="is no funnel"):
        Funnel.read(tmp_path / "funnel.json")


def test_a_corpus_step_is_counted_with_the_document_that_stays() -> None:
    pipeline = Pipeline([*STEPS[:1], {"_target_": f"{HERE}.SameLength"}, *STEPS[2:]])
    assert [len(steps) for steps in (pipeline.before, pipeline.corpus, pipeline.after)] == [1, 1, 1]
    texts = ["aa", "bb", "ccc", "dd", "eee"]
    step = pipeline.corpus[0].run
    alive = np.array([True, True, True, False, True])
    kept = step.duplicates(step.sketch(texts), alive, texts.__getitem__)
    funnel = pipeline.funnel()
    counts = funnel.steps[1]
    lengths = np.array([len(text) for text in texts])
    counts.deduplicated(step.reason, lengths, alive, kept, lambda index: Document(texts[index], 0, index))
    assert (counts.documents_in, counts.documents_out, counts.characters_in, counts.characters_out) == (4, 2, 10, 5)
    pairs = {(e.text, e.other, e.other_place) for e in counts.reasons["of the same length"].examples}
    assert pairs == {("bb", "aa", (0, 0)), ("eee", "ccc", (0, 2))}


def test_corpus_steps_stand_together() -> None:
    same = {"_target_": f"{HERE}.SameLength"}
    with pytest.raises(UserError, match=r"data\.clean\[1\] \(bigtrain\.data\.clean\.normalise\) stands between"):
        Pipeline([same, STEPS[0], same])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "breaks_on_zero",
            r"data\.clean\[1\] \(.*breaks_on_zero\) failed on the document at /data/notes\.jsonl, byte 20: "
            r"ZeroDivisionError: division by zero \(test_data_clean_pipeline\.py, line \d+\)",
        ),
        ("returns_nothing", r"returned a NoneType for the document at /data/table\.parquet, row 10: a step returns"),
    ],
)
def test_a_step_that_fails_is_named_with_its_document(name: str, message: str) -> None:
    given_ = [Document("whale", 1, 10), Document("whale", 0, 20)]
    given_ = given_[1:] if name == "breaks_on_zero" else given_
    with pytest.raises(UserError, match=message):
        run(Pipeline([STEPS[0], {"_target_": f"{HERE}.{name}"}]), given_)


def test_what_makes_no_step_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.clean\[0\]\._target_=.* made a list, which is no step"):
        Pipeline([{"_target_": f"{HERE}.makes_a_list"}])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"needs ftfy: pip install 'bigtrain\[data\]'"):
        Pipeline([{"_target_": f"{DOOR}.fix_unicode"}])


def test_nothing_left_shows_the_funnel() -> None:
    pipeline = Pipeline([STEPS[0], {"_target_": f"{DOOR}.length", "min_characters": 10_000}])
    _, funnel = run(pipeline, documents(40))
    message = str(nothing_left(funnel, "/data/notes.jsonl"))
    first, *rows = message.splitlines()
    assert first.startswith("Cleaning left none of the 40 documents of /data/notes.jsonl. length dropped the last")
    assert [row.split()[0] for row in rows] == ["read", "normalise", "length"]
    assert rows[-1].endswith("dropped: fewer than 10,000 characters (40)")
