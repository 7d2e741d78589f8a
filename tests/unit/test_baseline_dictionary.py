"""Sentence pairs out of a dictionary, split without leaks, and the look-up that translates word by word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dictionary
import pytest
from alignment import lexicon
from dictionary import Dictionary, Glosses, glossed, held_out, read_pairs, sentence_pairs, variants

LINES = [
    "# Version :: none, written for this test",
    "Hund {m}; Köter {m} [ugs.] (Tier; Freund [zool.]) | Hunde {pl} | Der Hund schläft tief. :: dog; mutt [coll.]"
    " (animal (pet)) | dogs | The dog is fast asleep.",
    "Laterne {f} <Laternne> | Wo ist die Laterne?; Wo steckt die Laterne? :: lantern <lantren> | Where is the lantern?;"
    " Where has the lantern got to?",
    "wachsen {vi} {wächst; wuchs} | Das Gras wächst. | Das Gras wächst! :: to grow {grew; grown} | The grass grows. |"
    " How the grass grows!",
    "das :: the",
    "jdn./etw. bewundern {vt} | /er/ bewundert :: to admire sb./sth. | /he/ admires",
    "oder {conj} /o.; od./ :: or",
    "und :: and; plus; as well as",
    "Eile mit Weile. | Wer zuletzt lacht, lacht am besten. :: More haste, less speed. /MHLS/",
    "Warum nicht? | Er ist Arzt / Doktor. | Es hängt von jdm. ab. | Wie schade … :: Why not? | He is a doctor. |"
    " It depends on sb. | What a pity …",
    "Da ruht das Gras! | Er mäht, und sie ruht.; Er mäht und ruht nicht. :: There rests the grass! | He mows.",
    "Das Gras wächst jetzt. | So wächst das Gras. :: THE grass grows! | Thus grows the grass.",
]


def test_variants_and_synonyms_are_matched_by_their_place() -> None:
    found = list(variants(LINES))
    assert found[:3] == [("Hund", "dog"), ("Köter", "mutt"), ("Hunde", "dogs")]
    assert ("Wo steckt die Laterne?", "Where has the lantern got to?") in found
    assert ("jdn./etw. bewundern", "to admire sb./sth.") in found  # placeholders stay
    assert ("bewundert", "admires") in found
    assert ("oder", "or") in found
    assert ("und", "and") in found  # one German word, three English: the first
    assert not any("Weile" in de for de, _ in found)  # as many variants on both sides, or none


def test_sentence_pairs_are_full_sentences_once() -> None:
    assert sentence_pairs(LINES) == [
        ("Der Hund schläft tief.", "The dog is fast asleep."),
        ("Wo ist die Laterne?", "Where is the lantern?"),
        ("Wo steckt die Laterne?", "Where has the lantern got to?"),
        ("Das Gras wächst.", "The grass grows."),  # with ! it is a near-copy, and so is THE grass grows!
        ("Da ruht das Gras!", "There rests the grass!"),
        ("Er mäht, und sie ruht.", "He mows."),
        ("So wächst das Gras.", "Thus grows the grass."),
    ]


def test_near_copies_are_on_one_side_of_the_split() -> None:
    sentences = [f"Der Zug Nummer {number} hält in Köln, Straße {number % 7}." for number in range(4000)]
    sides = [held_out(sentence) for sentence in sentences]
    assert sides == [held_out(sentence.upper().replace(",", " –").rstrip(".") + "!") for sentence in sentences]
    assert 0.04 < sum(sides) / len(sides) < 0.06


@pytest.mark.parametrize(
    ("german", "english"),
    [
        ("Der Hund bewundert das Gras.", "Der dog admires the Gras."),  # what it has not stays
        ("Das wachsen, und die Hunde!", "The grow, and die dogs!"),
        ("Laternen im Köter", "Lantern in the mutt"),  # an ending off; the article within a preposition
        ("Im Hunde bewunderst", "In the dogs admire"),  # no form of the entry: its infinitive
        ("HUND", "Dog"),
        ("", ""),
    ],
)
def test_translation_word_by_word(german: str, english: str) -> None:
    assert Dictionary(LINES).translate(german) == english


def test_of_several_translations_the_commonest_word_is_taken() -> None:
    lines = ["zu :: toward", "zu :: to", "nahe zu :: close to the", "zu {adv} :: in the direction of"]
    assert Dictionary(lines).translate("zu") == "To"


def test_commands(tmp_path: Path) -> None:
    text, pairs = tmp_path / "de-en.txt", tmp_path / "pairs.tsv"
    many = [f"Das Haus Nummer {n} steht leer. :: The house number {n} stands empty." for n in range(100)]
    text.write_text("\n".join([*LINES, *many, "Haus {n} :: house", "Nummer :: number", "leer :: empty"]) + "\n")

    def run(*words: object) -> dict[str, float]:
        command = [sys.executable, dictionary.__file__, *map(str, words)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(found.stdout)  # type: ignore[no-any-return]

    counted = run("prepare", text, pairs)
    train, apart = (read_pairs(tmp_path / f"pairs.{name}.tsv") for name in ("train", "held_out"))
    assert sorted(en for _, en in [*train, *apart]) == sorted(en for _, en in read_pairs(pairs))
    assert counted == {"pairs": 107, "train": len(train), "held_out": len(apart)} and apart
    assert all("empty" in glosses for glosses, english in apart if "empty" in english), "learnt from the entries"
    scored = run("score", text, pairs)
    assert scored["pairs"] == len(apart)
    assert 25 < scored["bleu"] < 75  # all words but "steht", which it does not know
    assert scored["chrf"] > scored["bleu"]


def test_a_draft_has_the_longest_phrase_that_is_not_all_of_the_text() -> None:
    looked_up = Dictionary(
        [
            *LINES,
            "der :: the",
            "Hund {m} :: dog",
            "auf Trab halten :: to keep busy",
            "Trab {m} :: trot",
            "der Hund auf Trab :: hound at a trot",
        ]
    )
    draft = looked_up.translate("Der Hund auf Trab", phrases=True)
    assert draft == "The dog auf trot"  # all of it is a phrase: no draft is the answer
    assert looked_up.translate("Der Hund auf Trab halten das Gras.", phrases=True).startswith("Hound at a trot")
    assert looked_up.translate("Das Gras auf Trab, halten!", phrases=True) == "The Gras auf trot, halten!"
    assert looked_up.translate("Auf Trab halten und", phrases=True) == "To keep busy and"
    assert looked_up.translate("Auf Trab halten und") == "Auf trot halten and"


def test_a_lexicon_tells_words_apart_by_the_texts_that_have_them_and_those_that_have_not() -> None:
    pairs = [
        ("das Haus", "the house"),
        ("das Buch", "the book"),
        ("ein Buch", "a book"),
        ("Ein Haus brennt", "a house"),
    ]
    found = lexicon(pairs * 3)
    assert [found[word][0] for word in ("das", "haus", "buch", "ein")] == ["the", "house", "book", "a"]
    assert lexicon([]) == {}
    half = lexicon([("Bank", "bank"), ("Bank", "bench"), ("Bank", "bank"), ("Bank", "bench"), ("Ufer", "bank")])
    assert half["bank"] == ["bench", "bank"], "both, that first which is no other word's"


def test_no_sentence_is_glossed_by_what_its_own_part_says() -> None:
    said = [f"Ein Gnu frisst {number} Halme." for number in range(60)]
    lines = [f"{german} :: A gnu eats {number} blades." for number, german in enumerate(said)]
    lines += ["frisst :: eats", "ein :: a", "Ufer :: shore; bank"]
    pairs = sentence_pairs(lines)
    glosses = glossed(lines, Dictionary(lines), pairs)
    assert len(glosses) == 60 and all("gnu" in text.lower() for text in glosses.values()), (
        "the others say what a Gnu is"
    )
    alone = [*lines, "Der Emu ruht heute. :: The emu rests today."]
    found = glossed(alone, Dictionary(alone), sentence_pairs(alone))["Der Emu ruht heute."]
    assert "Emu" in found and "rests" not in found and "today" not in found
    assert Glosses(Dictionary(lines), {"ufer": ["shore", "bank"]}).translate("das Ufer") == "Das shore/bank"


def test_no_phrase_of_a_held_out_sentence_is_looked_up() -> None:
    apart = next(text for number in range(1000) if held_out(text := f"Der Hund Nummer {number} schläft tief und fest."))
    bare = apart.rstrip(".")
    looked_up = Dictionary([f"{apart} :: The dog is asleep.", f"{bare} :: the dog sleeps", "Hund :: dog"])
    assert not looked_up.phrases
