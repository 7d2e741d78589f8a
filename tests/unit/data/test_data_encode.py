"""Tokenising: the ids of the reference on any text, whichever library gives them, and word of which one did."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bigtrain.data import encode
from bigtrain.data.text_data import TextData

from .conftest import Make

pytest.importorskip("gigatoken", reason="pip install 'bigtrain[data]'")

NASTY = [
    "", "\x00", "a\x00b\x00\x00", "\u0301", "e\u0301\u0302\u0303 \u0301\u0301", "👩‍👩‍👧‍👦", "👍🏽👍🏿 🏳️‍🌈",
    "\u200d\u200d", "שלום עולם \u202eabc\u202c", "مرحبا بالعالم ١٢٣", "\ufeffbom", "a\u2028b\u2029c\u0085d",
    "x" * 100_000, "漢" * 20_000, "ab1!" * 10_000, " " * 10_000 + "x", "\n" * 5_000, "a\r\nb\rc\nd\r\r\n\n\r",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|ENDOFTEXT|>", "<|endo\u200dftext|>", "don't DON'T 'tis we''ve '", "\ue000\uffff\U0010ffff", "ſt ﬁ Ⅷ ½ ²",
    "\t\t  \t x  y   z",
]  # fmt: skip


def reference(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What transformers makes of each text, with the end of text where it gives an id."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    return [[*ids, tokenizer.eos_token_id] if ids else [] for ids in tokenizer(list(texts))["input_ids"]]


def rows(encoded: encode.Encoded) -> list[list[int]]:
    ids, lengths = encoded
    assert len(ids) == lengths.sum()
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """No tokenizer of another test."""
    encode.opened.cache_clear()
    yield
    encode.opened.cache_clear()


def same_as_reference(folder: Path, texts: Sequence[str]) -> None:
    wanted = reference(folder, texts)
    for library in encode.CANDIDATES:
        assert rows(encode.opened(folder, library)(texts)) == wanted, library


def test_the_ids_of_texts_that_break_tokenizers(prepared: TextData) -> None:
    same_as_reference(prepared.tokenizer_path, NASTY)


def test_the_ids_of_every_kind_of_character_alone_and_among_others(prepared: TextData) -> None:
    """All of the first plane, and every seventh of the others."""
    points = [chr(point) for point in (*range(1 << 16), *range(1 << 16, sys.maxunicode + 1, 7))]
    points = [point for point in points if unicodedata.category(point) != "Cs"]
    assert len({unicodedata.category(point) for point in points}) == 29  # all that there are
    texts = [" ".join(points[at : at + 500]) for at in range(0, len(points), 500)]
    texts += ["".join(points[at::999]) for at in range(99)]
    same_as_reference(prepared.tokenizer_path, [*texts, *points[:: len(points) // 3000]])


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.one_of(st.text(), st.text("a 'st\n\r\t\u0301\u200d<|>1é漢", max_size=60)), max_size=5))
def test_the_ids_of_any_text(prepared: TextData, texts: list[str]) -> None:
    if texts:
        same_as_reference(prepared.tokenizer_path, texts)


class Other(encode.Gigatoken):
    """Knows no combining mark."""

    def __call__(self, texts: Sequence[str]) -> encode.Encoded:
        return super().__call__([text.replace("\u0301", "") for text in texts])


class Late(encode.Gigatoken):
    """Gives other ids in chapter 3, which begins a unit, and nowhere in the probe."""

    def __call__(self, texts: Sequence[str]) -> encode.Encoded:
        return super().__call__([text.replace("CHAPTER 3. ", "CHAPTER 4. ") for text in texts])


class Panic(BaseException):
    """As libraries in Rust raise it: no Exception."""


class Raises(encode.Gigatoken):
    """Fails far behind the beginning of a unit."""

    def __call__(self, texts: Sequence[str]) -> encode.Encoded:
        if any("harpooneer" in text[encode.CHECKED_CHARACTERS :] for text in texts):
            raise Panic("index out of bounds")
        return super().__call__(texts)


class Missing:
    """Not installed."""

    def __init__(self, folder: Path) -> None:
        raise ImportError


class Refuses:
    """Knows no tokenizer of this kind."""

    def __init__(self, folder: Path) -> None:
        raise ValueError("unsupported model: Unigram\nand more")


@pytest.fixture
def shards(make: Make, chapters: list[str], tmp_path: Path, prepared: TextData, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepares a file of 12 chapters with a library in gigatoken's place: (what a split's file holds, what is said)."""
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": chapter}) + "\n" for chapter in chapters[2:14]))

    def prepare(library: Any, capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, bytes], str]:
        encode.opened.cache_clear()
        monkeypatch.setattr(encode, "CANDIDATES", {"gigatoken": library, "tokenizers": encode.Tokenizers})
        cache = str(tmp_path / f"cache-{library.__name__}")
        data = make(path=str(path), tokenizer=str(prepared.tokenizer_path), cache=cache, workers=1)
        data.prepare()
        data.verify()
        files = {file.name: file.read_bytes() for file in sorted(data.folder.glob("*.bin"))}
        return files, re.sub(r"\s+", " ", capfd.readouterr().err)

    return prepare


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (Missing, "tokenising with tokenizers (gigatoken is not installed: pip install 'bigtrain[data]')"),
        (Other, "tokenising with tokenizers (gigatoken gives other ids)"),
        (Refuses, "tokenising with tokenizers (gigatoken does not take this tokenizer (unsupported model: Unigram))"),
        (Late, "1 units were tokenised with tokenizers: gigatoken failed there, or gave other ids."),
        (Raises, "1 units were tokenised with tokenizers: gigatoken failed there, or gave other ids."),
    ],
)
def test_the_shards_are_the_same_whichever_library_and_the_choice_is_said(
    shards: Any, library: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted, usual = shards(encode.Gigatoken, capfd)
    assert "tokenising with gigatoken, its ids proved equal to tokenizers" in usual and "units were" not in usual
    files, words = shards(library, capfd)
    assert said in words
    assert files == wanted and sum(map(len, files.values())) > 10_000


def test_one_that_is_right_at_first_and_fails_later_was_at_work_until_then(prepared: TextData) -> None:
    """The planted faults are met where they are meant to be: in the proof, at a unit's beginning, behind it."""
    folder = prepared.tokenizer_path
    for library, (first, then) in {Raises: ("gigatoken", "tokenizers"), encode.Gigatoken: ("gigatoken",) * 2}.items():
        encode.opened.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encode, "CANDIDATES", {"gigatoken": library, "tokenizers": encode.Tokenizers})
            assert encode.choose(folder) == ("gigatoken", "")
            checked = encode.Checked(folder, "gigatoken")
            for text, at_work in (("whale " * 5000, first), ("whale " * 5000 + "harpooneer", then), ("after", then)):
                assert rows(checked([text])) == reference(folder, [text])
                assert checked.library == at_work


def test_a_stop_is_not_taken_for_a_fault_of_the_library(prepared: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Any, texts: Sequence[str]) -> encode.Encoded:
        raise KeyboardInterrupt

    monkeypatch.setattr(encode.Gigatoken, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode.choose(prepared.tokenizer_path)
    with pytest.raises(KeyboardInterrupt):
        encode.Checked(prepared.tokenizer_path, "gigatoken")(["text"])
