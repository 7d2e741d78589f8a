"""Rules on lines: those of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2) and RefinedWeb's for boilerplate."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bigtrain.data.clean import Drop
from bigtrain.errors import UserError

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
TERMINAL = (".", "?", "!", '"', "'")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SENTENCE_END = re.compile(r"[.?!][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[^\W_a-z])")
"""A mark, and a next word that does not begin with a small letter. The authors count with NLTK's Punkt, which knows
abbreviations: there `Mr. Ahab` is one sentence."""

COUNTER = re.compile(r"\W*[\d.,]+[km]?\+?\s+\w+\W*", re.IGNORECASE)
"""`3 likes`, `1,204 views`."""

BOILERPLATE = re.compile(
    r"^(sign[ -]?(in|up)|log[ -]?(in|out)|register|subscribe|share (this|on)|follow us|skip to|click here"
    r"|posted (by|on|in)|back to top|leave a (reply|comment)|related (posts|articles)|copyright \d{4})\b"
    r"|^(©|tags?:|(previous|next)( (post|page|article))?\W*$)"
    r"|(read more|continue reading|learn more|view all|see more|load more)(\.{3}|…|\W)*$"
    r"|items? in (your )?cart|all rights reserved|accept (all )?cookies|(enable|requires) javascript",
    re.IGNORECASE,
)
NUMBERS = re.compile(r"[\W_]*\d[\d\W_]*")


def c4(text: str, min_words_per_line: int, min_sentences: int, max_word_length: int) -> str | Drop:
    """The lines that are sentences, if there are enough of them; the settings are told at `c4`.

    In the order of the authors' code (tensorflow/datasets, `c4_utils.py: clean_page`).
    """
    kept = []
    sentences = 0
    for line in text.splitlines():
        words = line.split()
        if any(len(word) > max_word_length for word in words):
            continue
        line = CITATION.sub("", line.strip())
        if not line.endswith(TERMINAL) or line.endswith("...") or len(words) < min_words_per_line:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return Drop("contains “lorem ipsum”")
        if "javascript" in lower:
            continue
        if "{" in line:
            return Drop("contains a curly bracket", line[:120])
        if any(words in lower for words in POLICY):
            continue
        sentences += sentence_count(line)
        kept.append(line)
    if sentences < min_sentences:
        return Drop(f"fewer than {min_sentences} sentences in whole lines", f"{sentences} sentences")
    return "\n".join(kept).strip()


def sentence_count(line: str) -> int:
    """Sentences of a line that is one at least."""
    return 1 + len(SENTENCE_END.findall(line))


def compiled(patterns: Sequence[str] | None) -> re.Pattern[str] | None:
    """All patterns as one; a `UserError` names the one that is none."""
    for pattern in patterns or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"bigtrain.data.clean.boilerplate_lines: '{pattern}' in patterns is no regular expression: {error}."
            ) from error
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None


def boilerplate(text: str, pattern: re.Pattern[str] | None, most: float) -> str | Drop:
    """The text without lines that are furniture; the settings are told at `boilerplate_lines`."""
    kept = []
    removed = words = 0
    for line in text.splitlines():
        count = len(line.split())
        words += count
        if count and _is_furniture(line.strip(), count, pattern):
            removed += count
        else:
            kept.append(line)
    if removed > most * words:
        return Drop(f"more than {most:.0%} of words in boilerplate lines", f"{removed / words:.0%}")
    return "\n".join(kept) if removed else text


def _is_furniture(line: str, words: int, pattern: re.Pattern[str] | None) -> bool:
    if pattern is not None and pattern.search(line):
        return True
    return words <= 10 and any((BOILERPLATE.search(line), COUNTER.fullmatch(line), NUMBERS.fullmatch(line)))
