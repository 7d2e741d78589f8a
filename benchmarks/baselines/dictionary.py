"""Sentence pairs from a German-English dictionary, and what a model trained on them must beat: word-by-word look-up.

    python benchmarks/baselines/dictionary.py prepare DE_EN_TXT PAIRS.tsv
    python benchmarks/baselines/dictionary.py score DE_EN_TXT PAIRS.tsv

DE_EN_TXT is the dictionary of TU Chemnitz (GPL, never shipped here): a line is `German :: English`, both sides hold as
many variants, split by `|`, and a variant holds synonyms, split by `;`. {m}, [geogr.], (comments), <spellings> and
/ABBR/ are annotations. `prepare` writes all sentence pairs as `German<TAB>English`, and beside them what a model is
given, PAIRS.train.tsv and PAIRS.held_out.tsv: glosses of the German sentence, that is its words in their order, each
with its likeliest translations (`alignment.py`), or a phrase of the dictionary; a model knows then what the dictionary
knows (as arXiv:1606.02006 gives a model a dictionary's probabilities). The translations of a sentence's words are
learnt from all entries but those of its own part: no sentence is glossed by what its own translation says. `score`
prints one line of JSON with the BLEU and chrF of the word-by-word look-up on the held-out sentences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from alignment import lexicon

HELD_OUT = 20
"""One German sentence of so many is held out."""
PARTS = (range(1), range(1, HELD_OUT // 2), range(HELD_OUT // 2, HELD_OUT))
"""Places of the sentences that are glossed by what all others say: the held-out ones, and two halves of the others."""

ANNOTATION = re.compile(r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>|(?<!\S)/\S(?:[^/|]*\S)?/(?=[\s.!?,]|$)")
COMMENT = re.compile(r"\([^()]*\)")
WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"[„“\"‚‘]?[A-ZÄÖÜ0-9][^/…]*[.!?][”“\"’‘]?")
PLACEHOLDER = re.compile(r"\b(jdn?|jdm|jds|etw|sb|sth)\b")
DROPPED_DE = re.compile(r"^(?:(?:jdn|jdm|jds|etw)\.[ /]*|(?:sich|der|die|das|ein|eine|ich|du|er|sie|es|wir|ihr)[ /]+)+")
DROPPED_EN = re.compile(r"^(?:(?:to|the|an?|I|you|he|she|it|we|they)[ /]+)+|[ /]*\b(?:sb|sth)\.(?:’s)?")
SUFFIXES = ("e", "n", "s", "t", "en", "er", "es", "em", "st", "te", "ten", "est", "ens", "ete", "eten", "ern")
LONGEST = 7
"""Words of a phrase that is looked up."""

ARTICLES = {"am": "on the", "beim": "at the", "dem": "the", "den": "the", "des": "of the", "im": "in the"}
ARTICLES |= {"vom": "from the", "zum": "to the", "zur": "to the"}
"""What the dictionary lists as pronouns, or not at all."""

Pair = tuple[str, str]


def variants(lines: Iterable[str]) -> Iterator[Pair]:
    """Each German part with its English part, without annotations. Variants are matched by their place; so are the
    synonyms where both sides have as many, and else each German one goes with the first English one."""
    for line in lines:
        if line.startswith("#") or " :: " not in line:
            continue
        # Annotations go first: they hold separators too. Comments may hold annotations, and comments.
        sides = (COMMENT.sub("", COMMENT.sub("", ANNOTATION.sub("", side))) for side in line.split(" :: ", 1))
        german, english = (side.split("|") for side in sides)
        if len(german) != len(english):
            continue
        for de, en in zip(german, english, strict=True):
            left, right = ([" ".join(part.split()) for part in side.split(";")] for side in (de, en))
            for number, part in enumerate(left):
                other = right[number if len(left) == len(right) else 0]
                if part and other:
                    yield re.sub(r" (?=[.,!?])", "", part), re.sub(r" (?=[.,!?])", "", other)


def sentence_pairs(lines: Iterable[str]) -> list[Pair]:
    """Full sentences: both sides begin with a capital letter or a figure and end with . ! or ?, the German one has
    three words or more, and neither has a placeholder (jdn., sth.), a choice (a/b) or an omission (…).

    Of sentences with the same letters and figures, German or English, only the first pair stays: a text that is held
    out cannot have been learnt in another spelling, nor as the translation of another wording."""
    found, seen = [], set()
    for de, en in variants(lines):
        full = SENTENCE.fullmatch(de) and SENTENCE.fullmatch(en) and len(de.split()) >= 3
        names = {"de" + letters(de), "en" + letters(en)}
        if full and not PLACEHOLDER.search(de) and not PLACEHOLDER.search(en) and not names & seen:
            seen |= names
            found.append((de, en))
    return found


def plain(german: str, english: str) -> bool:
    """Whether a pair has no choices (a/b), no omissions (…), no placeholders, and a translation of a usual length."""
    short = len(english.split()) <= 2 * len(german.split()) + 2
    return short and not re.search("[/…]", german + english) and not PLACEHOLDER.search(f"{german} {english}")


def letters(text: str) -> str:
    """What near-copies share: letters and figures, without case."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", text).casefold() if sign.isalnum())


def place(german: str) -> int:
    """Of a sentence, below `HELD_OUT`: decided by its letters alone, so the same in any set and any order."""
    return int(hashlib.sha256(letters(german).encode()).hexdigest()[:8], 16) % HELD_OUT


def held_out(german: str) -> bool:
    """Whether a sentence is for evaluation."""
    return place(german) == 0


class Dictionary:
    """Single German words, and phrases of 2 to 7 words, with a translation each."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Reads the entries that are no sentences. Words: those whose German side is one word, apart from articles,
        pronouns and placeholders; of the shortest translations the one whose words English uses most, counted in all
        entries but the sentences that are held out. Phrases: the first translation of each; no words of a sentence
        that is held out."""
        lines = list(lines)
        apart = {letters(text) for pair in sentence_pairs(lines) if held_out(pair[0]) for text in pair}
        used: Counter[str] = Counter()
        choices: dict[str, set[str]] = defaultdict(set)
        self.phrases: dict[tuple[str, ...], str] = {}
        for de, en in variants(lines):
            full = SENTENCE.fullmatch(en)
            if full and held_out(de):
                continue
            used.update(WORD.findall(en.lower()))
            word, translation = DROPPED_DE.sub("", de), " ".join(DROPPED_EN.sub("", en).split()) or en
            if WORD.fullmatch(word) and len(translation.split()) <= 3:
                choices[word].add(translation)
            parts = tuple(WORD.findall(de.lower()))
            if not full and plain(de, en) and 2 <= len(parts) <= LONGEST and not {letters(de), letters(en)} & apart:
                self.phrases.setdefault(parts, en)

        def rank(english: str) -> tuple[int, int, str]:
            return (
                len(english.split()),
                -min((used[word] for word in WORD.findall(english.lower())), default=0),
                english,
            )

        self.words = {word: min(of, key=rank) for word, of in choices.items()} | ARTICLES

    def translate(self, sentence: str, phrases: bool = False) -> str:
        """Word by word, all other signs left where they are; a word that is not found stays as it is. With `phrases`,
        the longest phrase that begins at a word goes before the word, but none that is all of the sentence: then it
        would be the answer, and a model would learn to copy."""
        german = sentence[:1].lower() + sentence[1:]
        first = WORD.match(german)  # a word in lower case rather than a noun: it stands at the beginning
        german = german if first and first[0] in self.words else sentence
        found = list(WORD.finditer(german))
        english, at, end = "", 0, 0
        while at < len(found):
            known = self._phrase(german, found, at) if phrases else None
            count, translation = known or (1, self._word(found[at]))
            english += german[end : found[at].start()] + translation
            at, end = at + count, found[at + count - 1].end()
        english += german[end:]
        return english[:1].upper() + english[1:]

    def _phrase(self, german: str, found: list[re.Match[str]], at: int) -> tuple[int, str] | None:
        """(words, translation) of the longest phrase from word `at` on, nothing but blanks between its words."""
        for long in range(min(LONGEST, len(found) - at, len(found) - 1), 1, -1):
            words = found[at : at + long]
            unbroken = all(german[one.end() : two.start()] == " " for one, two in pairwise(words))
            translation = self.phrases.get(tuple(each[0].lower() for each in words))
            if unbroken and translation is not None:
                return long, translation
        return None

    def _word(self, found: re.Match[str]) -> str:
        """As it is written, in lower case, as a noun; without an ending of inflection; then as an infinitive too."""
        german = found[0]
        long = len(german) > 3
        stems = [german.removesuffix(suffix) for suffix in SUFFIXES if long and german.endswith(suffix)]
        for base in (german, *stems, *(stem + ending for stem in stems for ending in ("en", "n", "e"))):
            for form in (base, base.lower(), base.capitalize()):
                if form in self.words:
                    return self.words[form]
        return german


class Glosses(Dictionary):
    """A dictionary that gives a word's likeliest translations, `made/carried`."""

    def __init__(self, dictionary: Dictionary, words: dict[str, list[str]]) -> None:
        """The phrases and rare words of the dictionary, and what `alignment.lexicon` found."""
        self.words, self.phrases, self.choices = dictionary.words, dictionary.phrases, words

    def _word(self, found: re.Match[str]) -> str:
        choices = self.choices.get(found[0].lower())
        if choices is None:
            return super()._word(found)
        return re.sub(r"\bi\b", "I", "/".join(choices))


def glossed(lines: list[str], dictionary: Dictionary, pairs: Iterable[Pair]) -> dict[str, str]:
    """German sentence -> its glosses."""
    pairs = list(pairs)
    bare = [(PLACEHOLDER.sub(" ", de), re.sub("^to ", "", PLACEHOLDER.sub(" ", en))) for de, en in variants(lines)]
    entries = {(letters(de), letters(en)): (de, en) for de, en in bare}
    found = {}
    for part in PARTS:
        own = [pair for pair in pairs if place(pair[0]) in part]
        apart = {letters(text) for pair in pairs if place(pair[0]) in (0, *part) for text in pair}
        others = (texts for (de, en), texts in entries.items() if de not in apart and en not in apart)
        glosses = Glosses(dictionary, lexicon(others))
        found |= {german: glosses.translate(german, phrases=True) for german, _ in own}
    return found


def score(dictionary: Dictionary, pairs: list[Pair]) -> dict[str, float]:
    """`{"bleu", "chrf", "pairs"}` of the look-up, as sacrebleu has them."""
    from bigtrain.text_metrics import Bleu, ChrF

    def of(metric: Bleu | ChrF) -> dict[str, float]:
        return metric.score(sum(metric.statistics(dictionary.translate(de), [en]) for de, en in pairs))

    return of(Bleu()) | of(ChrF()) | {"pairs": len(pairs)}


def read_pairs(path: Path) -> list[Pair]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [(de, en) for de, en in rows]


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    path.write_text("".join(f"{de}\t{en}\n" for de, en in pairs), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "score"))
    parser.add_argument("dictionary", type=Path, metavar="DE_EN_TXT")
    parser.add_argument("pairs", type=Path, metavar="PAIRS.tsv")
    given = parser.parse_args()
    lines = given.dictionary.read_text(encoding="utf-8").splitlines()
    dictionary = Dictionary(lines)
    if given.command == "score":
        apart = [pair for pair in read_pairs(given.pairs) if held_out(pair[0])]
        print(json.dumps(score(dictionary, apart)))
        return
    pairs = sentence_pairs(lines)
    glosses = glossed(lines, dictionary, pairs)
    write_pairs(given.pairs, pairs)
    counted = {"pairs": len(pairs)}
    for side, out in (("train", False), ("held_out", True)):
        own = [(glosses[de], en) for de, en in pairs if held_out(de) is out]
        write_pairs(given.pairs.with_suffix(f".{side}.tsv"), own)
        counted[side] = len(own)
    print(json.dumps(counted))


if __name__ == "__main__":
    main()
