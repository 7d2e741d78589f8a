"""Near-deduplication: its error curve, its exactness, and real documents with planted copies."""

from __future__ import annotations

import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bigtrain.data.clean import near_dedup
from bigtrain.data.clean.near import bands_and_rows, found
from bigtrain.errors import UserError

MOBY_DICK = resources.files("bigtrain.data") / "corpus" / "moby-dick.txt.xz"
WORDS = lzma.decompress(MOBY_DICK.read_bytes()).decode().split()


def kept(texts: list[str], alive: list[bool] | None = None, **given: object) -> list[int]:
    step = near_dedup(**given)  # type: ignore[arg-type]
    sketches = np.concatenate([step.sketch(texts[:3]), step.sketch(texts[3:])])
    living = np.ones(len(texts), bool) if alive is None else np.array(alive)
    return step.duplicates(sketches, living, texts.__getitem__).tolist()


def shingles(text: str) -> set[tuple[str, ...]]:
    """Written otherwise than the step does it: Moby Dick's words have no capitals or signs here."""
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def similarity(a: str, b: str) -> float:
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def plain(words: list[str]) -> list[str]:
    return [w for w in ("".join(c for c in word.lower() if c.isalnum()) for word in words) if w]


def test_real_documents_with_planted_copies() -> None:
    """700 pieces of Moby Dick; every second one has a copy with a run of words replaced, J from 0.7 to 0.95.

    What should go is known exactly: the J of each copy. Recall and precision must be at least 98 %.
    """
    draw, words = random.Random(0), plain(WORDS)
    originals = [" ".join(words[i : i + 200]) for i in range(0, 140_000, 200)]
    copies, near = [], set()
    for original in originals[::2]:
        copy, length = original.split(), draw.randrange(1, 31)
        start = draw.randrange(200 - length)
        copy[start : start + length] = draw.choices(words, k=length)
        copies.append(" ".join(copy))
        if similarity(original, copies[-1]) >= 0.8:
            near.add(len(originals) + len(copies) - 1)
    answers = kept(originals + copies)
    gone = {n for n, instead in enumerate(answers) if instead >= 0}
    assert 150 < len(near) < 300
    assert len(gone & near) >= 0.98 * len(near)
    assert len(gone & near) >= 0.98 * len(gone)
    assert all(answers[n] == 2 * (n - len(originals)) for n in gone & near)


def test_letter_case_and_punctuation_do_not_count_and_order_does() -> None:
    text = "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse."
    assert kept([text, text.upper().replace("—", " , "), " ".join(reversed(text.split()))]) == [-1, 0, -1]


def test_the_first_living_document_of_a_cluster_stays() -> None:
    text = WORDS[:120]
    texts = [" ".join(w) for w in (WORDS[500:700], text, [*text, "a"], ["b", *text], WORDS[500:700], ["c", *text])]
    assert kept(texts) == [-1, -1, 1, 1, 0, 1]
    assert kept(texts, [False, False, True, True, True, True]) == [-1, -1, -1, 2, -1, 2]
    assert kept(texts, [False] * 6) == [-1] * 6


def test_clusters_are_joined_over_others() -> None:
    """A is near to B and B to C, but A not to C."""
    words = plain(WORDS[:400])
    a, b, c = (" ".join(words[start : start + 100]) for start in (0, 9, 18))
    assert similarity(a, b) >= 0.8 > similarity(a, c)
    assert kept([a, b, c]) == [-1, 0, 0]
    assert kept([a, b, c], [True, False, True]) == [-1, -1, -1]


def test_a_group_of_unlike_documents_hides_no_pair() -> None:
    """All sketches agree in every band: only the texts tell who is near to whom."""
    texts = [" ".join(WORDS[i * 300 : i * 300 + 100]) for i in (0, 1, 2, 1, 0, 2)]
    step = near_dedup()
    assert step.duplicates(np.zeros((6, 21), np.uint64), np.ones(6, bool), texts.__getitem__).tolist() == [
        -1, -1, -1, 1, 0, 2
    ]  # fmt: skip


def test_short_texts_and_texts_without_words() -> None:
    assert kept(["a b", "A, b!", "a b c", "…", "", "b a"]) == [-1, 0, -1, -1, 3, -1]


def test_characters_for_languages_without_spaces() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"
    texts = [text, text.replace("。", "、") + "吾輩", text[::-1]]
    assert kept(texts) == [-1, -1, -1]
    assert kept(texts, unit="characters", ngram=4) == [-1, 0, -1]


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 1), st.sampled_from([64, 128, 256]), st.sampled_from([0.9, 0.99]))
@example(0.0625, 64, 0.99)
def test_bands_and_rows_reach_the_recall_and_no_more_rows_would(threshold: float, hashes: int, recall: float) -> None:
    if found(threshold, hashes, 1) < recall:
        with pytest.raises(UserError, match="more permutations, or a higher threshold"):
            bands_and_rows(threshold, hashes, recall)
        return
    bands, rows = bands_and_rows(threshold, hashes, recall)
    assert bands * rows <= hashes and found(threshold, bands, rows) >= recall
    more = [found(threshold, hashes // r, r) for r in range(rows + 1, hashes + 1)]
    assert all(p < recall for p in more)


@pytest.mark.parametrize("target", [0.5, 0.65, 0.8])
def test_pairs_become_candidates_as_the_curve_says(target: float) -> None:
    """400 pairs of sets with one J: the share that agrees in a band lies within 4 standard errors of P(J)."""
    step, draw, pairs = near_dedup(ngram=1), random.Random(1), 400
    common = round(2 * target * 200 / (1 + target))  # of two sets of 200 each
    words = [[f"w{draw.getrandbits(60)}" for _ in range(200 * 2 - common)] for _ in range(pairs)]
    a = step.sketch([" ".join(some[:200]) for some in words])
    b = step.sketch([" ".join(some[-200:]) for some in words])
    expected = found(common / (400 - common), step.bands, step.rows)
    measured = (a == b).any(axis=1).mean()
    assert abs(measured - expected) <= 4 * (expected * (1 - expected) / pairs) ** 0.5 + 1 / pairs


def test_sketches_do_not_depend_on_the_process() -> None:
    code = "from bigtrain.data.clean import near_dedup as n; print(n().sketch(['the white whale', 'Ahab']).sum())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("0", "1")
    }
    assert printed == {f"{near_dedup().sketch(['the white whale', 'Ahab']).sum()}\n"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: near_dedup(threshold=80), "threshold=80 is a Jaccard similarity"),
        (lambda: near_dedup(ngram=0), "ngram=0"),
        (lambda: near_dedup(recall=1.0), "recall=1.0"),
        (lambda: near_dedup(threshold=0.01, permutations=16), "more permutations, or a higher threshold"),
    ],
)
def test_wrong_settings(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
