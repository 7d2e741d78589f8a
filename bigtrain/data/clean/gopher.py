"""Quality and repetition rules of Gopher (Rae et al. 2021, arXiv:2112.11446, Appendix A.1 and Table A1).

A word is what stands between white space, as the paper says no more about it. datatrove, whose verdicts are the same
for the same words, takes spaCy's, where punctuation is a word, too: then "80% of words have a letter" drops good prose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.clean import Drop

BULLETS = ("•", "-")
ELLIPSES = ("...", "…")


def quality(
    text: str,
    min_words: int,
    max_words: int,
    min_word_length: float,
    max_word_length: float,
    max_symbols_per_word: float,
    max_bullet_lines: float,
    max_ellipsis_lines: float,
    min_alphabetic_words: float,
    min_stop_words: int,
    stop_words: frozenset[str],
) -> str | Drop:
    """The text, if it looks like prose by its words and lines; the settings are told at `gopher_quality`."""
    every = text.split()
    words = [word for word in every if word[0].isalnum() or any(map(str.isalnum, word))]  # "--" and "*" are none
    if len(words) < min_words:
        return Drop(f"fewer than {min_words:,} words", f"{len(words):,} words")
    if len(words) > max_words:
        return Drop(f"more than {max_words:,} words", f"{len(words):,} words")
    mean = sum(map(len, words)) / len(words) if words else 0.0
    if mean < min_word_length:
        return Drop(f"mean word length below {min_word_length:g}", f"{mean:.1f} characters")
    if mean > max_word_length:
        return Drop(f"mean word length above {max_word_length:g}", f"{mean:.1f} characters")
    hashes, ellipses = text.count("#"), sum(map(text.count, ELLIPSES))
    if hashes > max_symbols_per_word * len(every):
        return Drop(f"more than {max_symbols_per_word:g} hash signs a word", f"{hashes:,} in {len(every):,} words")
    if ellipses > max_symbols_per_word * len(every):
        return Drop(f"more than {max_symbols_per_word:g} ellipses a word", f"{ellipses:,} in {len(every):,} words")
    lines = [line.strip() for line in text.splitlines()]
    bullets = sum(line.startswith(BULLETS) for line in lines)
    if bullets > max_bullet_lines * len(lines):
        return Drop(f"more than {max_bullet_lines:.0%} of lines begin with a bullet", f"{bullets / len(lines):.0%}")
    endings = sum(line.endswith(ELLIPSES) for line in lines)
    if endings > max_ellipsis_lines * len(lines):
        return Drop(f"more than {max_ellipsis_lines:.0%} of lines end with an ellipsis", f"{endings / len(lines):.0%}")
    alphabetic = sum(word[0].isalpha() or any(map(str.isalpha, word)) for word in every)
    if alphabetic < min_alphabetic_words * len(every):
        return Drop(
            f"fewer than {min_alphabetic_words:.0%} of words have a letter", f"{alphabetic / max(1, len(every)):.0%}"
        )
    found = stop_words.intersection(every)
    if len(found) < min_stop_words:
        return Drop(f"fewer than {min_stop_words} of the stop words", f"found: {', '.join(sorted(found)) or 'none'}")
    return text


def repetition(
    text: str,
    duplicate_lines: float,
    duplicate_line_characters: float,
    duplicate_paragraphs: float,
    duplicate_paragraph_characters: float,
    top_ngrams: Sequence[float],
    duplicate_ngrams: Sequence[float],
) -> str | Drop:
    """The text, if it does not repeat itself; the settings are told at `gopher_repetition`."""
    for what, parts, most, most_characters in (
        ("paragraphs", re.split(r"\n{2,}", text.strip()), duplicate_paragraphs, duplicate_paragraph_characters),
        ("lines", re.split(r"\n+", text), duplicate_lines, duplicate_line_characters),
    ):
        again, characters = _repeated(parts)
        if again > most * len(parts):
            return Drop(f"more than {most:.0%} of {what} are repeated", f"{again / len(parts):.0%}")
        if characters > most_characters * len(text):
            share = f"{characters / len(text):.0%}"
            return Drop(f"more than {most_characters:.0%} of characters in repeated {what}", share)
    return _ngrams(text, top_ngrams, duplicate_ngrams) or text


def _repeated(parts: Sequence[str]) -> tuple[int, int]:
    """(number, characters) of the parts that came before."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number, characters


def _ngrams(text: str, top: Sequence[float], repeated: Sequence[float]) -> Drop | None:
    """The verdict on n-grams of words: n = 2, 3, … for `top`, and then on for `repeated`.

    An n-gram's number comes from that of its first n-1 words and its last one. Only where all repeated n-grams,
    overlaps counted twice, hold too many characters are they walked through as the rule wants it.
    """
    words = text.split()
    index: dict[str, int] = {}
    ids = np.fromiter((index.setdefault(word, len(index)) for word in words), np.int64, len(words))
    ends = np.concatenate([[0], np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))])
    grams = ids
    for n, most in enumerate([*top, *repeated], 2):
        if len(words) < n:
            return None
        distinct, first, grams, counts = np.unique(
            grams[:-1] * len(index) + ids[n - 1 :], return_index=True, return_inverse=True, return_counts=True
        )
        characters = ends[n:] - ends[:-n]  # of each n-gram, without spaces
        if n - 2 < len(top):
            most_frequent = first[counts == counts.max()].min()
            share = (characters[most_frequent] + n - 1) * counts.max() / len(text)
            if share > most:
                said = " ".join(words[most_frequent : most_frequent + n])
                return Drop(f"the top {n}-gram holds more than {most:.0%} of characters", f"{share:.0%}: “{said}”")
            continue
        if len(distinct) == len(grams):  # none is repeated, and no longer one
            return None
        again = np.ones(len(grams), bool)
        again[first] = False
        if characters[again].sum() <= most * len(text):
            continue
        share = _walk(grams, characters, n) / len(text)
        if share > most:
            return Drop(f"more than {most:.0%} of characters in repeated {n}-grams", f"{share:.0%}")
    return None


def _walk(grams: NDArray[np.int64], characters: NDArray[np.int64], n: int) -> int:
    """Characters of repeated n-grams, none counted twice: after a repeated one goes on behind it."""
    seen: set[int] = set()
    numbers = grams.tolist()
    position = total = 0
    while position < len(numbers):
        if numbers[position] in seen:
            total += int(characters[position])
            position += n
        else:
            seen.add(numbers[position])
            position += 1
    return total
