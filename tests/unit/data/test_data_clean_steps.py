"""The cleaning steps: each rule drops what it names, and the published rules judge as datatrove's do."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document as TheirDocument
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import clean
from bigtrain.data.clean import Drop
from bigtrain.data.clean.lines import SENTENCE_END
from bigtrain.errors import UserError

Step = Callable[[str], str | Drop]


class SameWords(WordTokenizer):  # type: ignore[misc]
    """Our words and sentences for datatrove, whose own come from spaCy: it parts punctuation and `'s` from words."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [found.end() for found in SENTENCE_END.finditer(text)] + [len(text)]
        return list(zip([0, *ends], ends, strict=False))


PAIRS = {
    "quality": (clean.gopher_quality(), GopherQualityFilter(language=SameWords())),
    "repetition": (clean.gopher_repetition(), GopherRepetitionFilter(language=SameWords())),
    "c4": (clean.c4(), C4QualityFilter(language=SameWords())),
}


def theirs(their: Any, text: str) -> str | None:
    """The text that their filter lets pass, as it leaves it."""
    document = TheirDocument(text=text, id="0")
    return document.text if their.filter(document) is True else None


@pytest.fixture(scope="session")
def pages(chapters: list[str]) -> list[str]:
    """Real texts of all sorts: a novel in pieces, licences, programs, tables, and some that repeat themselves."""
    novel = "\n".join(chapters)
    found = [novel[at : at + 1500].replace("\n", " " if at % 2 else "\n") for at in range(0, 450_000, 1500)]
    library = Path(sys.modules["os"].__file__ or "").parent
    found += [file.read_text(errors="replace")[:12_000] for file in sorted(library.glob("*.py"))[:120]]
    packages = Path(pytest.__file__).parents[1]
    found += [file.read_text(errors="replace")[:12_000] for file in sorted(packages.glob("*/*/LICENSE*"))[:60]]
    found += [file.read_text(errors="replace")[:12_000] for file in sorted(packages.glob("*/entry_points.txt"))[:60]]
    for number, text in enumerate(found[:60]):  # with repeated lines, paragraphs, phrases
        lines = text.splitlines()
        found.append("\n".join(lines[: 3 + number % 7] * (1 + number % 5) + lines[:number]))
        found.append("\n\n".join([text[:200], text[200:400]] * (number % 4 + 1)))
        found.append(" ".join(text.split()[: 4 + number] * 6 + text.split()[: 10 * number]))
    return [text for text in found if text.strip()]


@pytest.mark.parametrize("name", PAIRS)
def test_the_published_rules_judge_real_documents_as_datatrove_does(name: str, pages: list[str]) -> None:
    ours, their = PAIRS[name]
    verdicts = [(ours(text), theirs(their, text)) for text in pages]
    for text, (mine, other) in zip(pages, verdicts, strict=True):
        assert (None if isinstance(mine, Drop) else mine) == other, (mine, text[:300])
    reasons = {mine.reason for mine, _ in verdicts if isinstance(mine, Drop)}
    assert len(reasons) >= 2 and any(other is not None for _, other in verdicts), reasons


WORDS = st.lists(
    st.sampled_from(["the", "of", "and", "whale", "a.", "-", "#", "...", "1851", "\n", "\n\n"]), min_size=1
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.integers(1, 12))
def test_they_judge_whatever_repeats_itself_alike(phrases: list[list[str]], times: int) -> None:
    text = " ".join(" ".join(phrase) for phrase in phrases * times)
    for name in ("quality", "repetition"):
        ours, their = PAIRS[name]
        if text.strip():
            assert isinstance(ours(text), Drop) == (theirs(their, text) is None)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "bb", "cccc", "dddddddd", "whale"]), min_size=1, max_size=60),
    st.lists(st.floats(0.01, 0.3), min_size=9, max_size=9),
    st.booleans(),
)
def test_ngrams_are_counted_alike_at_any_threshold(words: list[str], shares: list[float], top: bool) -> None:
    shares = shares if top else [1.0] * 3 + shares[3:]
    ours = clean.gopher_repetition(
        duplicate_lines=1, duplicate_line_characters=1, top_ngrams=tuple(shares[:3]), duplicate_ngrams=tuple(shares[3:])
    )
    their = GopherRepetitionFilter(
        top_n_grams=tuple(zip((2, 3, 4), shares, strict=False)),
        dup_n_grams=tuple(zip((5, 6, 7, 8, 9, 10), shares[3:], strict=True)),
        language=SameWords(),
    )
    assert isinstance(ours(" ".join(words)), Drop) == (theirs(their, " ".join(words)) is None)


PROSE = "It is the sea that men have known, and to be with the wind is what they have of old desired to be. " * 4


@pytest.mark.parametrize(
    ("step", "text", "reason", "detail"),
    [
        (clean.gopher_quality(), "too short to be", "fewer than 50 words", "4 words"),
        (clean.gopher_quality(max_words=60), PROSE, "more than 60 words", "92 words"),
        (clean.gopher_quality(), "a b c the of " * 20, "mean word length below 3", "1.6 characters"),
        (clean.gopher_quality(), "incomprehensibilities " * 50, "mean word length above 10", "21.0 characters"),
        (clean.gopher_quality(), "the #tag of " * 30, "more than 0.1 hash signs a word", "30 in 90 words"),
        (clean.gopher_quality(), "the end… of " * 30, "more than 0.1 ellipses a word", "30 in 90 words"),
        (
            clean.gopher_quality(max_symbols_per_word=1),
            "the end of all...\n" * 20,
            "more than 30% of lines end with an ellipsis",
            "100%",
        ),
        (clean.gopher_quality(), "- the point of\n" * 30, "more than 90% of lines begin with a bullet", "100%"),
        (clean.gopher_quality(), "the of 1851 1852 1853 " * 20, "fewer than 80% of words have a letter", "40%"),
        (clean.gopher_quality(), "whale sea ship captain " * 20, "fewer than 2 of the stop words", "found: none"),
        (clean.gopher_repetition(), "one line\n" * 9 + PROSE, "more than 30% of lines are repeated", "80%"),
        (
            clean.gopher_repetition(),
            f"{PROSE.strip()}\n\n" * 3,
            "more than 30% of paragraphs are repeated",
            "67%",
        ),
        (
            clean.gopher_repetition(),
            "buy now " * 30,
            "the top 2-gram holds more than 20% of characters",
            "88%: “buy now”",
        ),
        (
            clean.gopher_repetition(),
            " ".join(f"word{n:05}" for n in [*range(75), *range(10)]),  # one 10-gram, twice
            "more than 10% of characters in repeated 10-grams",
            "11%",
        ),
        (clean.c4(), "One. Two. Three.", "fewer than 5 sentences in whole lines", "3 sentences"),
        (clean.c4(), "They said lorem ipsum dolor.", "contains “lorem ipsum”", ""),
        (clean.c4(), "if (x > 3) { return it.", "contains a curly bracket", "if (x > 3) { return it."),
        (clean.boilerplate_lines(), "Sign in\nWe sailed on.", "more than 5% of words in boilerplate lines", "40%"),
        (clean.language(), "Wir segelten drei Tage lang nach Osten und sahen kein Land.", "in another: de", None),
        (clean.length(min_characters=10), "short", "fewer than 10 characters", ""),
        (clean.length(max_characters=10), "not so short", "more than 10 characters", ""),
    ],
)
def test_each_rule_names_itself_and_what_it_saw(step: Step, text: str, reason: str, detail: str | None) -> None:
    result = step(text)
    assert isinstance(result, Drop), result
    assert result.reason == reason
    if detail is not None:
        assert result.detail == detail


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        (clean.fix_unicode(), "itâ€™s &amp; cafÃ©", "it’s & café"),
        (clean.fix_unicode(unescape_html=False), "R&amp;D naïve “quoted”", "R&amp;D naïve “quoted”"),
        (clean.control_characters(), "\ufeffa\x00b\u200bc\u00add\x1b[31me\u202e\tf\n", "abcde\tf\n"),
        (
            clean.control_characters(),
            "👩\u200d👩\u200d👧 می\u200cخواهم \ud800",
            "👩\u200d👩\u200d👧 می\u200cخواهم \ufffd",
        ),
        (clean.normalise(), "\r\na\u00a0b  \r\n\r\n\r\n\r\n  c\u2028cafe\u0301\n\n", "a b\n\n  c\ncafé"),
        (clean.normalise(blank_lines=0), "a\n\n\n\nb", "a\nb"),
        (clean.normalise(form="NFKC"), "ﬁ ２", "fi 2"),
        (clean.normalise(), "ﬁ ２", "ﬁ ２"),
        (
            clean.boilerplate_lines(max_share=0.7),
            "Sign in\n3 likes\n1851\nPrevious to that, we sailed on.\nRead more...\n© 1851 Harper\n* * *",
            "Previous to that, we sailed on.\n* * *",
        ),
        (clean.boilerplate_lines(patterns=["^Project Gutenberg"], max_share=1), "Project Gutenberg says\nCall", "Call"),
        (
            clean.c4(min_sentences=2),
            "Home | About\nThe whale came up.[12] It blew!\nPlease enable JavaScript now.\nWe use cookies for it.\nNo.",
            "The whale came up. It blew!",
        ),
        (clean.gopher_quality(), PROSE, PROSE),
        (clean.language(keep=("de", "en")), PROSE, PROSE),
        (clean.length(min_characters=5, max_characters=5), "12345", "12345"),
    ],
)
def test_what_stays_is_changed_as_the_step_says_and_no_more(step: Step, before: str, after: str) -> None:
    assert step(before) == after
    again = step(after)
    assert again == after or isinstance(again, Drop)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\r\n \t\u00a0\u2028\ufeff\u0301e"), max_size=60)
)
def test_normal_text_is_normal_whatever_it_was(text: str) -> None:
    control, normalise = clean.control_characters(), clean.normalise()
    once = normalise(control(text))
    assert isinstance(once, str) and normalise(control(once)) == once
    assert unicodedata.is_normalized("NFC", once) and "\r" not in once and "\n\n\n" not in once
    assert not any(line != line.rstrip(" \t") for line in once.split("\n"))


def test_wrong_settings_name_the_nearest_right_thing() -> None:
    with pytest.raises(UserError, match=r"'eng' is no code of a language.*Did you mean 'en'\?"):
        clean.language(keep=("eng",))
    with pytest.raises(UserError, match=r"'\(' in patterns is no regular expression"):
        clean.boilerplate_lines(patterns=["("])


def test_every_builder_stays_a_builder_after_it_was_used() -> None:
    """A file of the room with a builder's name would take its place in the room as soon as it is imported."""
    for name in clean.__all__:
        assert not (Path(clean.__file__).parent / f"{name}.py").exists(), name
