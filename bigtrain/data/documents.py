"""A document, and where it came from."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """A text with its place."""

    text: str
    source: int
    """The number of its source in the list of sources."""
    offset: int
    """Where it begins: the byte in the decompressed file (text, JSON lines), or the row from 0 (tables).

    In a hub set: the row in its file, plus 2**40 times the number of that file from 0.
    """
