"""What German words become in English, learnt from pairs of texts: IBM's model 1 (Brown et al. 1993, section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

WORD = re.compile(r"\w+(?:[’']\w+)*")
ROUNDS = 6
LONGEST = 25
"""Words of a text; longer ones tell little of a single word."""
LEAST = 0.2
"""Times that a word must be a translation, as EM counts."""
CLOSE, MOST = 0.25, 3
"""As good as the best one by so much, and so many at most."""
BACK = 0.15
"""How much the other direction counts: an exponent."""


def lexicon(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """German word in lower case -> its translations, the best first: by the probability of the English word given the
    German one, and a little by the other direction, so that `the` is no translation of everything.

    Model 1: every English word comes from one German word of its text, or from none, whatever their places.
    """
    german: dict[str, int] = {"": 0}
    english: dict[str, int] = {}
    links: list[tuple[int, int, int]] = []  # (German word, English word, number of the English word's place)
    places = 0
    for de, en in pairs:
        words = [german.setdefault(word, len(german)) for word in WORD.findall(de.lower())]
        others = [english.setdefault(word, len(english)) for word in WORD.findall(en.lower().replace("'", "’"))]
        if not (1 <= len(words) <= LONGEST and 1 <= len(others) <= LONGEST):
            continue
        for other in others:
            links += [(word, other, places) for word in (0, *words)]
            places += 1
    de_of, en_of, place = np.array(links, np.int64).reshape(-1, 3).T
    kinds, kind = np.unique(de_of * max(1, len(english)) + en_of, return_inverse=True)
    de, en = np.divmod(kinds, max(1, len(english)))
    given, counts = np.ones(len(kinds)), np.ones(len(kinds))
    for _ in range(ROUNDS):
        share = given[kind]
        counts = np.bincount(kind, share / np.bincount(place, share)[place], len(kinds))
        given = counts / np.bincount(de, counts)[de]
    score = given * (counts / np.bincount(en, counts)[en]) ** BACK
    names, others_names = list(german), list(english)
    best: dict[int, float] = {}
    found: dict[str, list[str]] = {}
    for at in np.argsort(-score, kind="stable").tolist():
        word = int(de[at])
        if word == 0 or counts[at] < LEAST:
            continue
        so_far = found.setdefault(names[word], [])
        if len(so_far) < MOST and score[at] > CLOSE * best.setdefault(word, float(score[at])):
            so_far.append(others_names[en[at]])
    return found
