"""Decontamination: documents with runs of words of evaluation data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from bigtrain.data.clean import Drop, decontaminate
from bigtrain.data.settings import Corpus, Preparation
from bigtrain.data.sources import Source
from bigtrain.errors import UserError

WORDS = [f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmnrst"]


def words(seed: int, number: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=number))


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Questions of 40 words, answers of 10, and one of 3."""
    file = tmp_path / "quiz.jsonl"
    records = [{"question": words(n, 40), "answer": words(100 + n, 10)} for n in range(5)]
    records.append({"question": words(50, 40), "answer": "forty two indeed"})
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_a_shared_run_of_thirteen_words_drops_the_document(evaluation: Path) -> None:
    step = decontaminate(against=str(evaluation), text_column=["question", "answer"])
    question = words(2, 40).split()
    for at in (0, 13, 27):
        around = f"{words(7, 100)} {' '.join(question[at : at + 13])} {words(8, 100)}"
        dropped = step(around)
        assert isinstance(dropped, Drop)
        assert dropped.reason == "shares words with quiz.jsonl"
        assert dropped.detail == f"“{' '.join(question[at : at + 13])}”"
    twelve = f"{words(7, 100)} {' '.join(question[3:15])} {words(8, 100)}"
    assert step(twelve) == twelve


def test_letter_case_punctuation_and_space_do_not_count(evaluation: Path) -> None:
    step = decontaminate(against=str(evaluation), text_column="question")
    assert isinstance(
        step("So: “" + ",\n  ".join(w.capitalize() for w in words(1, 40).split()[5:18]) + "!” he said"), Drop
    )


def test_shorter_texts_count_whole_and_the_shortest_not_at_all(evaluation: Path) -> None:
    step = decontaminate(against=str(evaluation), text_column=["answer"])
    answer = words(103, 10)
    assert isinstance(step(f"It is {answer}, they say"), Drop)
    assert step(answer.rsplit(" ", 1)[0]) == answer.rsplit(" ", 1)[0]
    common = "It is forty two indeed, and forty two indeed it was"
    assert step(common) == common


def test_which_of_several_files(evaluation: Path, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"question": [words(200, 30)]}), tmp_path / "other.parquet")
    (tmp_path / "notes.txt").write_text(words(300, 200))
    step = decontaminate(against=[str(evaluation), str(tmp_path / "other.parquet")], text_column="question")
    other = step(words(200, 30))
    assert isinstance(other, Drop) and other.reason == "shares words with other.parquet"
    assert isinstance(decontaminate(against=str(tmp_path / "notes.txt"))(words(300, 20)), Drop)


def test_prepared_data_depends_on_what_the_evaluation_files_say(evaluation: Path) -> None:
    step = {"_target_": "bigtrain.data.clean.decontaminate", "against": str(evaluation), "text_column": "question"}
    corpus = Corpus(path=("a.txt",), clean=({"_target_": "bigtrain.data.clean.exact_dedup"}, step))

    def fingerprint() -> str:
        return Preparation(corpus, None, 300, 0.1, 0, "auto", 1000).fingerprint([Source("a.txt", "text", 5, 6)])

    before = fingerprint()
    assert fingerprint() == before
    evaluation.write_text(json.dumps({"question": words(9, 40)}) + "\n")
    assert fingerprint() != before
    evaluation.unlink()
    with pytest.raises(UserError, match="decontaminate: against=.*no such file"):
        fingerprint()


def test_real_documents_are_not_dropped_by_chance(evaluation: Path) -> None:
    """2,000 documents of the same 120 words: runs of 13 do not come again, and the hashes keep them apart."""
    step = decontaminate(against=str(evaluation), text_column="question")
    assert not any(isinstance(step(words(1000 + n, 100)), Drop) for n in range(2000))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda e: decontaminate(against=str(e)), "decontaminate: .*quiz.jsonl, line 1.*text.*question"),
        (lambda e: decontaminate(against=str(e) + "x"), "decontaminate: against=.*quiz.jsonlx"),
        (lambda e: decontaminate(against=str(e), text_column="answer", shortest=11), "6 texts, all under shortest=11"),
        (
            lambda e: decontaminate(against=str(e), text_column="answer", ngram=5),
            "shortest=8 lies between 1 and ngram=5",
        ),
    ],
)
def test_bad_input(evaluation: Path, build: Callable[[Path], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(evaluation)
