"""Cleaning: the steps of `data.clean`. This door imports nothing heavy; each builder's signature is its settings.

A step takes a document's text and gives the text that goes on, or a `Drop` with its reason. Anyone's function is a
step if its first argument is called `text`: `def f(text: str, *, setting: int = 3) -> str | Drop`. Any other target is
called with its settings and makes the step, as those here do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bigtrain.data.clean.contamination import Decontaminate
    from bigtrain.data.clean.exact import ExactDedup
    from bigtrain.data.clean.near import NearDedup
    from bigtrain.data.clean.personal import Scrub

__all__ = [
    "boilerplate_lines",
    "c4",
    "control_characters",
    "decontaminate",
    "exact_dedup",
    "fix_unicode",
    "gopher_quality",
    "gopher_repetition",
    "language",
    "length",
    "near_dedup",
    "normalise",
    "scrub",
]


@dataclass(frozen=True, slots=True)
class Drop:
    """The document is left out."""

    reason: str
    """A few words, the same for every document dropped for it, as they are counted."""
    detail: str = ""
    """What was seen in this one, such as "31 words"; shown beside examples."""


def exact_dedup() -> ExactDedup:
    """Of documents with the same text, byte for byte, the first stays."""
    from bigtrain.data.clean.exact import ExactDedup

    return ExactDedup()


def fix_unicode(*, unescape_html: bool = True) -> Callable[[str], str]:
    """Repairs what was decoded wrongly (`â€™` is `’` again), with ftfy (Speer 2019, doi:10.5281/zenodo.2591652).

    Args:
        unescape_html: also turn `&amp;` and its like into characters, where the text holds no `<`.
    """
    from bigtrain.data.clean.characters import repairing

    return repairing(unescape_html)


def control_characters() -> Callable[[str], str]:
    """Takes out what no reader sees: control characters but for tab and line ends, terminal escapes, soft hyphens,
    zero-width spaces, marks of byte order and of direction. Joiners stay, as scripts and emoji need them. Half a
    surrogate pair, which no file can hold, becomes U+FFFD.
    """
    from bigtrain.data.clean.characters import control_characters as step

    return step


def normalise(*, form: Literal["NFC", "NFKC"] = "NFC", blank_lines: int = 1) -> Callable[[str], str]:
    """One spelling of the same text: Unicode form, line ends, each kind of space as a plain one, no space at the end of
    a line, few blank lines, none at the ends. Indentation and runs of spaces within lines stay.

    Args:
        form: NFC composes characters; NFKC also replaces what merely looks different, such as `ﬁ` and `２`
            (Unicode Standard Annex 15).
        blank_lines: at most so many in a row.
    """
    from bigtrain.data.clean.characters import normalise as step

    return partial(step, form=form, blank_lines=blank_lines)


def boilerplate_lines(*, patterns: list[str] | None = None, max_share: float = 0.05) -> Callable[[str], str | Drop]:
    """Takes out the furniture of web pages: short lines (10 words at most) such as `Sign in`, `3 likes`, `Read more…`,
    `All rights reserved`, or numbers alone. After the line-wise corrections of RefinedWeb (Penedo et al. 2023,
    arXiv:2306.01116, Appendix G.2).

    Args:
        patterns: regular expressions of your own: lines of any length that one of them is found in go, too.
        max_share: the document is dropped where such lines hold more than this share of its words.
    """
    from bigtrain.data.clean.lines import boilerplate, compiled

    return partial(boilerplate, pattern=compiled(patterns), most=max_share)


def gopher_quality(
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_word_length: float = 3,
    max_word_length: float = 10,
    max_symbols_per_word: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8,
    min_stop_words: int = 2,
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with"),
) -> Callable[[str], str | Drop]:
    """Drops what is no prose, by the quality rules of Gopher (Rae et al. 2021, arXiv:2112.11446, Appendix A.1.1).

    Words are what stands between white space; those of punctuation alone count for neither number nor mean length.

    Args:
        min_words: fewer words are too short a document.
        max_words: more are too long.
        min_word_length: the least mean length of the words, in characters.
        max_word_length: the greatest.
        max_symbols_per_word: the most hash signs, and the most ellipses, a word.
        max_bullet_lines: the largest share of lines that begin with a bullet.
        max_ellipsis_lines: the largest share of lines that end with an ellipsis.
        min_alphabetic_words: the smallest share of words with a letter.
        min_stop_words: so many different ones of `stop_words` must be there.
        stop_words: of English, as in the paper; give those of your language.
    """
    from bigtrain.data.clean.gopher import quality

    return partial(
        quality,
        min_words=min_words,
        max_words=max_words,
        min_word_length=min_word_length,
        max_word_length=max_word_length,
        max_symbols_per_word=max_symbols_per_word,
        max_bullet_lines=max_bullet_lines,
        max_ellipsis_lines=max_ellipsis_lines,
        min_alphabetic_words=min_alphabetic_words,
        min_stop_words=min_stop_words,
        stop_words=frozenset(stop_words),
    )


def gopher_repetition(
    *,
    duplicate_lines: float = 0.30,
    duplicate_line_characters: float = 0.20,
    duplicate_paragraphs: float = 0.30,
    duplicate_paragraph_characters: float = 0.20,
    top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16),
    duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
) -> Callable[[str], str | Drop]:
    """Drops what repeats itself, by the rules of Gopher (Rae et al. 2021, arXiv:2112.11446, Table A1).

    Args:
        duplicate_lines: the largest share of lines that came before in the document.
        duplicate_line_characters: the largest share of its characters in such lines.
        duplicate_paragraphs: the same of paragraphs, which blank lines part.
        duplicate_paragraph_characters: the same of their characters.
        top_ngrams: the largest share of characters in the most frequent 2-gram of words, 3-gram, and so on.
        duplicate_ngrams: the largest share of characters in repeated n-grams, n from where `top_ngrams` ends (5 to 10).
    """
    from bigtrain.data.clean.gopher import repetition

    return partial(
        repetition,
        duplicate_lines=duplicate_lines,
        duplicate_line_characters=duplicate_line_characters,
        duplicate_paragraphs=duplicate_paragraphs,
        duplicate_paragraph_characters=duplicate_paragraph_characters,
        top_ngrams=top_ngrams,
        duplicate_ngrams=duplicate_ngrams,
    )


def c4(
    *, min_words_per_line: int = 3, min_sentences: int = 5, max_word_length: int = 1000
) -> Callable[[str], str | Drop]:
    """Keeps the lines that are sentences, by the rules of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2).

    Lines go that do not end in `.`, `?`, `!` or a quote, that are too short, that speak of JavaScript, cookies or
    privacy policies; citation marks such as `[1]` go; documents with `lorem ipsum` or a curly bracket are dropped. The
    list of bad words is left out, as it takes much with it that is none (Dodge et al. 2021, arXiv:2104.08758).

    Args:
        min_words_per_line: shorter lines go.
        min_sentences: documents with fewer in the lines that stay are dropped.
        max_word_length: lines with a longer word go.
    """
    from bigtrain.data.clean.lines import c4 as step

    return partial(
        step, min_words_per_line=min_words_per_line, min_sentences=min_sentences, max_word_length=max_word_length
    )


def language(*, keep: tuple[str, ...] = ("en",), min_probability: float = 0.5) -> Callable[[str], str | Drop]:
    """Drops texts in other languages, as py3langid tells them (97 languages; Lui and Baldwin 2012, `langid.py`).

    Long texts are judged by 1000 characters of their beginning, middle and end each.

    Args:
        keep: the languages that stay, as codes of ISO 639-1.
        min_probability: texts go whose language is less sure than this.
    """
    from bigtrain.data.clean.languages import keeping

    return keeping(keep, min_probability)


def length(*, min_characters: int = 1, max_characters: int | None = None) -> Callable[[str], str | Drop]:
    """Drops what is shorter or longer, in characters."""
    from bigtrain.data.clean.characters import length as step

    return partial(step, min_characters=min_characters, max_characters=max_characters)


def near_dedup(
    *,
    threshold: float = 0.8,
    unit: Literal["words", "characters"] = "words",
    ngram: int = 5,
    permutations: int = 128,
    recall: float = 0.99,
) -> NearDedup:
    """Of documents that are nearly the same, the first stays: MinHash and locality-sensitive hashing, then each pair
    that was found is compared by its texts (Broder 1997; Lee et al. 2021, arXiv:2107.06499). Letter case, punctuation
    and white space do not count. What it finds and what it misses is told in `bigtrain/data/clean/near.py`.

    Args:
        threshold: near are two documents whose sets of n-grams have at least this Jaccard similarity; 0.8 as in
            SlimPajama. Documents that others connect are near, too.
        unit: n-grams of words; of characters for languages that put no spaces between words (then with `ngram` 10).
        ngram: how many in a row make an n-gram; 5 words as in Lee et al.
        permutations: hash values a document; more find more of the pairs below the threshold's curve.
        recall: pairs at the threshold are found with this probability at least; those above it more surely.
    """
    from bigtrain.data.clean.near import NearDedup

    return NearDedup(threshold=threshold, unit=unit, ngram=ngram, permutations=permutations, recall=recall)


def decontaminate(
    *,
    against: str | list[str],
    text_column: str | list[str] = "text",
    name: str | None = None,
    split: str = "test",
    ngram: int = 13,
    shortest: int = 8,
) -> Decontaminate:
    """Drops documents that share a run of words with evaluation data, after GPT-3 (Brown et al. 2020,
    arXiv:2005.14165, Appendix C). Letter case, punctuation and white space do not count.

    Args:
        against: files, folders, globs or hub names with the evaluation data, in any form that `data.path` reads.
        text_column: the field or fields of JSON lines and tables that hold their texts, such as
            `[question, answer]`; each is protected on its own.
        name: the configuration (subset) of a hub data set.
        split: the split of a hub data set.
        ngram: so many words in a row; 13 as in GPT-3.
        shortest: an evaluation text shorter than `ngram` counts as one run if it has this many words; 8 as in GPT-3.
            Shorter ones are common speech, and are not looked for.
    """
    from bigtrain.data.clean.contamination import Decontaminate

    return Decontaminate(
        against=against, text_column=text_column, name=name, split=split, ngram=ngram, shortest=shortest
    )


def scrub(
    *,
    kinds: tuple[str, ...] = ("key", "email", "card", "ip", "phone"),
    phone_regions: tuple[str, ...] = ("US",),
) -> Scrub:
    """Puts tags in the place of personal data: `<KEY>`, `<EMAIL>`, `<CARD>`, `<IP_ADDRESS>`, `<PHONE>`, after StarCoder
    (Li et al. 2023, arXiv:2305.06161, section 4). What is found, and what is left alone, is told in
    `bigtrain/data/clean/personal.py`.

    Args:
        kinds: which: `key` (of services, private, JSON web tokens, whatever is as random), `email`, `card` (by length,
            issuer and Luhn's check digit), `ip` (public addresses of version 4 and 6), `phone`.
        phone_regions: countries (ISO 3166) whose own notation of phone numbers is known; those with a `+` always are.
    """
    from bigtrain.data.clean.personal import Scrub

    return Scrub(kinds=kinds, phone_regions=phone_regions)
