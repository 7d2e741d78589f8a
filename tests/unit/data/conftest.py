"""A small real corpus, and the prepared data made of it."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import bigtrain.data
from bigtrain.data.text_data import TextData

CHAPTER = r"(?m)^(?=CHAPTER \d+\.)"


@pytest.fixture(scope="session")
def chapters() -> list[str]:
    """The first 30 chapters of Moby Dick, of very different lengths."""
    packed = resources.files("bigtrain").joinpath("data/corpus/moby-dick.txt.xz").read_bytes()
    return [text for text in re.split(CHAPTER, lzma.decompress(packed).decode()) if text][:30]


@pytest.fixture(scope="session")
def corpus(chapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of them, a file each."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(chapters):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


Make = Callable[..., TextData]


@pytest.fixture
def make(corpus: Path, tmp_path: Path) -> Make:
    """`bigtrain.data.text` of that corpus, in a cache of the test's own."""

    def build(**settings: Any) -> TextData:
        defaults = {"path": str(corpus), "sequence_length": 64, "vocab_size": 512, "held_out": 0.1}
        return bigtrain.data.text(**{**defaults, "cache": str(tmp_path / "cache"), **settings})

    return build


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TextData:
    """That corpus, prepared; not to be written to."""
    data = bigtrain.data.text(
        path=str(corpus),
        sequence_length=64,
        vocab_size=512,
        held_out=0.1,
        cache=str(tmp_path_factory.mktemp("prepared")),
    )
    data.prepare()
    return data


def left_in(cache: Path) -> list[str]:
    """What lies in a cache beside locks and tokenizers, which are whole, and good for other data."""
    names = (path.name for path in (cache.iterdir() if cache.exists() else ()))
    return sorted(name for name in names if not name.endswith(".lock") and not name.startswith("tokenizer-"))


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a Python process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def gpt2_files(prepared: TextData, folder: Path) -> Path:
    """The prepared tokenizer as GPT-2's own two files."""
    from tokenizers import Tokenizer

    folder.mkdir()
    Tokenizer.from_file(str(prepared.tokenizer_path / "tokenizer.json")).model.save(str(folder))
    assert {file.name for file in folder.iterdir()} == {"vocab.json", "merges.txt"}
    return folder
