"""Streamed metrics of text: summed over samples and ranks in any way, they are the library's own on the corpus."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from bigtrain.errors import UserError
from bigtrain.text_metrics import ROUGE, Bleu, ChrF, Rouge, TextMetric

WORDS = ["der", "Hund", "bellt", "laut", "the", "dog", "barks.", "loudly,", "Äpfel", "don't", "(a)", "x", "3.5"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=20)
SAMPLE = st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3), st.integers(0, 2))  # with the rank that has it
CORPUS = st.lists(SAMPLE, min_size=1, max_size=12)
Corpus = list[tuple[str, list[str], int]]


def over_ranks(metric: TextMetric, corpus: Corpus) -> dict[str, float]:
    """Three ranks add up their samples one by one, then add up their sums."""
    width = len(metric.statistics("a", ["a"]))
    ranks: NDArray[np.float64] = np.zeros((3, width))
    for hypothesis, references, rank in corpus:
        ranks[rank] += metric.statistics(hypothesis, references)
    return metric.score(ranks.sum(0))


def columns(corpus: Corpus) -> list[list[str | None]]:
    """References as sacrebleu takes them: a column for each, None where a sample has fewer."""
    return [[refs[n] if n < len(refs) else None for _, refs, _ in corpus] for n in range(3)]


@settings(max_examples=150, deadline=None)
@given(CORPUS)
def test_bleu_is_sacrebleu_s(corpus: Corpus) -> None:
    expected = sacrebleu.corpus_bleu([hypothesis for hypothesis, _, _ in corpus], columns(corpus))  # type: ignore[arg-type]
    assert over_ranks(Bleu(), corpus) == {"bleu": expected.score}


@pytest.mark.parametrize("word_order", [0, 2])
@settings(max_examples=100, deadline=None)
@given(CORPUS)
def test_chrf_is_sacrebleu_s(word_order: int, corpus: Corpus) -> None:
    hypotheses = [hypothesis for hypothesis, _, _ in corpus]
    expected = sacrebleu.corpus_chrf(hypotheses, columns(corpus), word_order=word_order)  # type: ignore[arg-type]
    assert over_ranks(ChrF(word_order), corpus) == {"chrf": expected.score}


@pytest.mark.parametrize("stem", [False, True])
@settings(max_examples=60, deadline=None)
@given(CORPUS)
def test_rouge_is_the_mean_of_rouge_score_s(stem: bool, corpus: Corpus) -> None:
    scorer = RougeScorer(ROUGE, use_stemmer=stem)
    found = [scorer.score_multi(references, hypothesis) for hypothesis, references, _ in corpus]
    expected = {name: sum(of[name].fmeasure for of in found) / len(found) for name in ROUGE}
    assert over_ranks(Rouge(stem), corpus) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_bleu_counts_by_hand() -> None:
    """'the cat the cat on the mat' : clipped, 5 of 7 words match, 3 of 6 pairs, 1 of 5, 0 of 4."""
    total = Bleu().statistics("the cat the cat on the mat", ["the cat is on the mat"])
    assert total[:2].tolist() == [7, 6]
    assert total[2:].tolist() == [5, 3, 1, 0, 7, 6, 5, 4]


def test_tokenizers_differ_and_a_wrong_one_is_told() -> None:
    assert Bleu("char").statistics("ab", ["ab"])[0] == 2
    with pytest.raises(UserError, match="no tokenizer 'intel'. Did you mean 'intl'"):
        Bleu("intel")


@pytest.mark.parametrize("metric", [Bleu(), ChrF(), Rouge()])
@pytest.mark.parametrize("references", [[], "one text"])
def test_references_are_a_list(metric: TextMetric, references: list[str]) -> None:
    with pytest.raises(UserError, match="references must be a list"):
        metric.statistics("a", references)


@pytest.mark.parametrize("metric", [Bleu(), ChrF(), Rouge()])
def test_no_samples_score_zero(metric: TextMetric) -> None:
    nothing = np.zeros_like(metric.statistics("a", ["a"]))
    assert set(metric.score(nothing).values()) == {0.0}


@pytest.mark.parametrize(
    ("metric", "package", "module"),
    [
        (Bleu, "sacrebleu", "sacrebleu.metrics.bleu"),
        (ChrF, "sacrebleu", "sacrebleu.metrics.chrf"),
        (Rouge, "rouge-score", "rouge_score.rouge_scorer"),
    ],
)
def test_a_missing_package_is_named(
    metric: type[TextMetric], package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'bigtrain\[evaluate\]'"):
        metric()
