"""Metrics of generated text over a corpus, streamed: a sample becomes a short vector, and vectors add.

Neither texts nor n-grams are kept. The sum over all samples and over all ranks, in any order, is all that the score of
the whole corpus needs, so memory does not grow with the set:

    total = sum(metric.statistics(hypothesis, references) for hypothesis, references in samples)  # then over ranks
    metric.score(total)  # {"bleu": 27.3}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bigtrain.errors import UserError, nearest

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

ROUGE = ("rouge1", "rouge2", "rougeL")


class TextMetric(Protocol):
    """A metric whose state is one vector of K sums."""

    def statistics(self, hypothesis: str, references: list[str]) -> NDArray[np.float64]:
        """What one sample adds: float64 of shape (K,). There must be at least one reference."""
        ...

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """The scores by name, of the sum (K,) over all samples; 0 where there was none."""
        ...


class Bleu:
    """Corpus BLEU (Papineni et al. 2002) in percent, equal to `sacrebleu.corpus_bleu`: exponential smoothing, mixed
    case. The sums are the lengths of hypotheses and nearest references, and for n = 1 to 4 the n-grams that match and
    that there are: K = 10."""

    def __init__(self, tokenize: str = "13a") -> None:
        """`tokenize` is one of sacrebleu's tokenizers: 13a as in WMT, `zh`, `ja-mecab`, `char`, `none` …

        Raises:
            UserError: sacrebleu is not installed, or has no such tokenizer.
        """
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise _missing("BLEU", "sacrebleu") from error
        if tokenize not in BLEU.TOKENIZERS:
            raise UserError(f"sacrebleu has no tokenizer '{tokenize}'.{nearest(tokenize, BLEU.TOKENIZERS)}")
        self._metric = BLEU(tokenize=tokenize)

    def statistics(self, hypothesis: str, references: list[str]) -> NDArray[np.float64]:
        """What one sample adds: counts, float64 of shape (10,)."""
        return _sacrebleu(self._metric, hypothesis, references)

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """`{"bleu": …}` from 0 to 100, of the sum (10,) over all samples."""
        return {"bleu": self._metric._compute_score_from_stats([int(count) for count in total]).score}


class ChrF:
    """Corpus chrF2 (Popović 2015) in percent, equal to `sacrebleu.corpus_chrf`: for each order of n-gram how many the
    hypotheses have, the references have, and match. Of several references the one that fits best counts."""

    def __init__(self, word_order: int = 0) -> None:
        """`word_order` is the longest n-gram of words beside those of 1 to 6 characters: 0 is chrF, 2 is chrF++
        (Popović 2017). K = 18 + 3 `word_order`.

        Raises:
            UserError: sacrebleu is not installed.
        """
        try:
            from sacrebleu.metrics.chrf import CHRF
        except ImportError as error:
            raise _missing("chrF", "sacrebleu") from error
        self._metric = CHRF(word_order=word_order)

    def statistics(self, hypothesis: str, references: list[str]) -> NDArray[np.float64]:
        """What one sample adds: counts, float64 of shape (K,)."""
        return _sacrebleu(self._metric, hypothesis, references)

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """`{"chrf": …}` from 0 to 100, of the sum (K,) over all samples."""
        return {"chrf": self._metric._compute_score_from_stats([int(count) for count in total]).score}


class Rouge:
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): the mean over samples of rouge_score's F-measures, from 0 to 1. Of
    several references the best counts. The sums are the three F-measures and the number of samples: K = 4."""

    def __init__(self, stem: bool = False) -> None:
        """With `stem` words are compared without their English endings (Porter's stemmer).

        Raises:
            UserError: rouge-score is not installed.
        """
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise _missing("ROUGE", "rouge-score") from error
        self._scorer = RougeScorer(ROUGE, use_stemmer=stem)

    def statistics(self, hypothesis: str, references: list[str]) -> NDArray[np.float64]:
        """What one sample adds: the F-measures and 1, float64 of shape (4,)."""
        _check(references)
        found = self._scorer.score_multi(references, hypothesis)
        return np.array([*(found[name].fmeasure for name in ROUGE), 1.0])

    def score(self, total: NDArray[np.float64]) -> dict[str, float]:
        """`{"rouge1": …, "rouge2": …, "rougeL": …}` from 0 to 1, of the sum (4,) over all samples."""
        return {name: float(of / max(total[3], 1)) for name, of in zip(ROUGE, total[:3], strict=True)}


def _sacrebleu(metric: BLEU | CHRF, hypothesis: str, references: Sequence[str]) -> NDArray[np.float64]:
    """sacrebleu's sufficient statistics of one sample, the way its significance tests get at them: whole numbers."""
    _check(references)
    (counts,) = metric._extract_corpus_statistics([hypothesis], [[reference] for reference in references])
    return np.array(counts, np.float64)


def _check(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:
        raise UserError(f"A sample's references must be a list of one text or more, and not {references!r}.")


def _missing(metric: str, package: str) -> UserError:
    return UserError(f"{metric} needs {package}: pip install 'bigtrain[evaluate]'.")
