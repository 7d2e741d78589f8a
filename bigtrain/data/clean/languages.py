"""The language of a text, by py3langid (naive Bayes over byte n-grams; Lui and Baldwin 2012, `langid.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bigtrain.data.clean import Drop
from bigtrain.errors import UserError, nearest

PIECE = 1000
"""Characters that are looked at, in the beginning, the middle and the end each."""


def keeping(keep: Sequence[str], min_probability: float) -> Callable[[str], str | Drop]:
    """The step of `language`."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError("bigtrain.data.clean.language needs py3langid: pip install 'bigtrain[data]'") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for code in keep:
        if code not in identifier.labels:
            raise UserError(
                f"bigtrain.data.clean.language: keep={list(keep)}: '{code}' is no code of a language that is known "
                f"(ISO 639-1).{nearest(code, identifier.labels)}"
            )

    def language(text: str) -> str | Drop:
        found, probability = identifier.classify(_pieces(text))
        if probability < min_probability:
            return Drop(f"less than {min_probability:.0%} sure", f"{found}, {probability:.0%} sure")
        if found not in keep:
            return Drop(f"in another: {found}", f"{probability:.0%} sure")
        return text

    return language


def _pieces(text: str) -> str:
    if len(text) <= 3 * PIECE:
        return text
    middle = (len(text) - PIECE) // 2
    return f"{text[:PIECE]} {text[middle : middle + PIECE]} {text[-PIECE:]}"
