"""Cleaning: the steps of `data.clean`. This door imports nothing heavy; each builder's signature is its settings.

A step takes a document's text and gives the text that goes on, or a `Drop` with its reason. Anyone's function is a
step if its first argument is called `text`: `def f(text: str, *, setting: int = 3) -> str | Drop`. Any other target is
called with its settings and makes the step, as those here do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigtrain.data.clean.exact import ExactDedup

__all__ = ["exact_dedup"]


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
