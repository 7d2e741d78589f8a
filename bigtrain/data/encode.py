"""Texts to ids, with the fastest installed library whose ids are proved equal to those of `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.tokenizer import Encoder

Encoded = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""(ids of all documents end to end, each closed by the end of text; the length of each with it, 0: it gave no id)."""

REFERENCE = "tokenizers"
CHECKED_CHARACTERS = 1 << 14
"""Of the beginning of each unit, whose ids are compared."""

PROBE = (
    "", " ", "  ", "\n", "\r\n\r\n", "\t\t x", "a", " a", "a ", "it's I'LL we've 'tis '' ''s", "1234567890 3.14 1e-9",
    "café cafe\u0301 \u212b \ufb01 Ǆ ß İ ı", "各国語の文章。漢字かな交じり文", "한국어 텍스트", "नमस्ते दुनिया", "שלום עולם",  # noqa: E501
    "مرحبا", "ไทย", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "\u200b\u200d\u2028\u2029\ufeff", "a\u00a0b\u3000c\u2003d\u1680e", "\x00\x01\x7f\x85\x9f",  # noqa: E501
    "\ufffd\ufffe\uffff\U0010ffff\U000e0001", "𝒳𝔘 𐍈 𒀀", "a" * 5000, "ab" * 3000, " " * 3000, "\n" * 3000, "é" * 2000,
    "0" * 2000, "漢" * 2000, "!?" * 1500, "x\n\n\n  y \n z   ", "<|endoftext|", "<|endoftext |>", "<s> </s> <pad> [MASK]",  # noqa: E501
    "def f(x):\n\treturn {'a': x ** 2}  # end\n", "http://a.b/c?d=e&f=%20", "Ünïcödé\u0300\u0301\u0302 Z\u0351\u036b\u0343a",  # noqa: E501
)  # fmt: skip


class Encoding(Protocol):
    """A tokenizer at work."""

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Of each text by itself, without special tokens."""


class Tokenizers:
    """The reference: Hugging Face's `tokenizers`."""

    def __init__(self, folder: Path) -> None:
        self.encoder = Encoder(folder)
        self.encoder.tokenizer.post_processor = None  # it only frames the ids

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The ids of all texts, laid end to end, and how many each has."""
        encoded = [e.ids for e in self.encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = np.fromiter((i for ids in encoded for i in ids), np.uint32, int(lengths.sum()))
        return closed(flat, lengths, self.encoder.eos_id)


class Gigatoken:
    """gigatoken, on one thread: the processes beside it have the other cores."""

    def __init__(self, folder: Path) -> None:
        import awkward
        import gigatoken

        reference = opened(folder, REFERENCE).encoder
        self.tokenizer: Any = gigatoken.Tokenizer.from_json(reference.tokenizer.to_str())
        self.awkward, self.eos_id = awkward, reference.eos_id

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """As `Tokenizers`."""
        rows = self.tokenizer.encode_batch(list(texts), parallel=False)
        lengths = self.awkward.to_numpy(self.awkward.num(rows)).astype(np.int64)
        return closed(self.awkward.to_numpy(self.awkward.flatten(rows)), lengths, self.eos_id)


CANDIDATES: dict[str, type[Gigatoken] | type[Tokenizers]] = {"gigatoken": Gigatoken, REFERENCE: Tokenizers}
"""By name, the fastest first."""


@lru_cache(4)
def opened(folder: Path, library: str) -> Any:
    """A saved tokenizer in a library, loaded once a process: that takes as long as some megabytes of text."""
    return CANDIDATES[library](folder)


def choose(folder: Path) -> tuple[str, str]:
    """(the library to tokenise with, why none that is faster) for a saved tokenizer."""
    reference = opened(folder, REFERENCE)
    probe = [*PROBE, *_spelled(reference.encoder.tokenizer)]
    expected = reference(probe)
    why: list[str] = []
    for name in CANDIDATES:
        if name == REFERENCE:
            break
        try:
            if same(opened(folder, name)(probe), expected):
                return name, "; ".join(why)
            why.append(f"{name} gives other ids")
        except ImportError:
            why.append(f"{name} is not installed: pip install 'bigtrain[data]'")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # whatever a library makes of a tokenizer that it does not know, panics too
            said = (str(error).splitlines() or [type(error).__name__])[0]
            why.append(f"{name} does not take this tokenizer ({said[:100]})")
    return REFERENCE, "; ".join(why)


class Checked:
    """A library at work on one unit: the reference takes over where ids of the unit's beginning differ, or it fails."""

    def __init__(self, folder: Path, library: str) -> None:
        self.folder, self.library, self.left = folder, library, CHECKED_CHARACTERS

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """The ids of the reference. `library` is then what gave them."""
        if self.library != REFERENCE:
            try:
                if self._right(texts):
                    return opened(self.folder, self.library)(texts)  # type: ignore[no-any-return]
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # a panic too; the reference does it, or says what is wrong
                pass
            self.library = REFERENCE
        return opened(self.folder, REFERENCE)(texts)  # type: ignore[no-any-return]

    def _right(self, texts: Sequence[str]) -> bool:
        some: list[str] = []
        for text in texts:
            if self.left <= 0:
                break
            some.append(text[: self.left])
            self.left -= len(some[-1])
        return not some or same(opened(self.folder, self.library)(some), opened(self.folder, REFERENCE)(some))


def same(one: Encoded, other: Encoded) -> bool:
    """Whether all ids and lengths are equal."""
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def closed(ids: NDArray[Any], lengths: NDArray[np.int64], eos_id: int) -> Encoded:
    """Ends every document that gave an id with the end of text."""
    some = lengths > 0
    return np.insert(ids.astype(np.uint32), np.cumsum(lengths)[some], eos_id), np.where(some, lengths + 1, 0)


def _spelled(tokenizer: Any) -> list[str]:
    """Texts with the spelling of the special and added tokens in them."""
    added = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())][:64]
    return [
        *added,
        *(f"a{token}b {token} c\n{token}{token}\n{token[:-1]}" for token in added),
        "".join(added),
        " ".join(token.lower() for token in added),
    ]
