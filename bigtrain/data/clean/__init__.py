"""Cleaning: the steps of `data.clean`. This door imports nothing heavy; each builder's signature is its settings.

A step takes a document's text and gives the text that goes on, or a `Drop` with its reason. A function
`(text: str) -> str | Drop` of anyone's is a step, too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__: list[str] = []


@dataclass(frozen=True, slots=True)
class Drop:
    """The document is left out."""

    reason: str
    """A few words, the same for every document dropped for it, as they are counted."""
