"""Texts to ids, with the fastest installed library whose ids are proved equal to those of `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    "café cafe\u0301 \u212b \ufb01 Ǆ ß İ ı", "各国語の文章。漢字かな交じり文", "한국어 텍스트", "नमस्ते दुनिया", "שלום עולם",
    "مرحبا", "ไทย", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "\u200b\u200d\u2028\u2029\ufeff", "a\u00a0b\u3000c\u2003d\u1680e", "\x00\x01\x7f\x85\x9f",
    "\ufffd\ufffe\uffff\U0010ffff\U000e0001", "𝒳𝔘 𐍈 𒀀", "a" * 5000, "ab" * 3000, " " * 3000, "\n" * 3000, "é" * 2000,
    "0" * 2000, "漢" * 2000, "!?" * 1500, "x\n\n\n  y \n z   ", "<|endoftext|", "<|endoftext |>", "<s> </s> <pad> [MASK]",
    "def f(x):\n\treturn {'a': x ** 2}  # end\n", "http://a.b/c?d=e&f=%20", "Ünïcödé\u0300\u0301\u0302 Z\u0351\u036b\u0343a",
)  # fmt: skip


class Encoding(Protocol):
    """A tokenizer at work."""

    def __call__(self, texts: Sequence[str]) -> Encoded: ...


class Tokenizers:
    """The reference: Hugging Face's `tokenizers`."""

    def __init__(self, folder: Path) -> None:
        self.encoder = Encoder(folder)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        encoded = [e.ids for e in self.encoder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = np.fromiter((i for ids in encoded for i in ids), np.uint32, int(lengths.sum()))
        return closed(flat, lengths, self.encoder.eos_id)


class Gigatoken:
    """gigatoken, on one thread: the processes beside it have the other cores."""

    def __init__(self, folder: Path) -> None:
        import awkward
        import gigatoken

        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        whole.update(post_processor=None, truncation=None, padding=None)  # they only frame or cut the ids
        self.tokenizer: Any = gigatoken.Tokenizer.from_json(json.dumps(whole))
        self.awkward, self.eos_id = awkward, Encoder(folder).eos_id

    def __call__(self, texts: Sequence[str]) -> Encoded:
        rows = self.tokenizer.encode_batch(list(texts), parallel=False)
        lengths = self.awkward.to_numpy(self.awkward.num(rows)).astype(np.int64)
        return closed(self.awkward.to_numpy(self.awkward.flatten(rows)), lengths, self.eos_id)


CANDIDATES: dict[str, type[Gigatoken] | type[Tokenizers]] = {"gigatoken": Gigatoken, REFERENCE: Tokenizers}
"""By name, the fastest first."""


def choose(folder: Path) -> tuple[str, str]:
    """(the library to tokenise with, why none that is faster) for a saved tokenizer."""
    reference = Tokenizers(folder)
    probe = [*PROBE, *_spelled(reference.encoder.tokenizer)]
    expected = reference(probe)
    why = []
    for name, make in CANDIDATES.items():
        if name == REFERENCE:
            break
        try:
            if same(make(folder)(probe), expected):
                return name, "; ".join(why)
            why.append(f"{name} gives other ids")
        except ImportError:
            why.append(f"{name} is not installed: pip install 'bigtrain[data]'")
        except BaseException as error:  # whatever a library makes of a tokenizer that it does not know, panics too
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
            why.append(f"{name} does not take this tokenizer ({said[:100]})")
    return REFERENCE, "; ".join(why)


def same(one: Encoded, other: Encoded) -> bool:
    """Whether all ids and lengths are equal."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


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
