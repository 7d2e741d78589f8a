"""The one exception that users are meant to read, and the exit codes of the contract."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 0, 1, 2, 75


class UserError(Exception):
    """The user's input is wrong: the message names the fault and the nearest right thing (exit 2, no traceback)."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or the choices where none is near; to be appended to a message."""
    known = sorted(candidates)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" There are: {', '.join(known)}." if known else ""


class RunError(Exception):
    """A run cannot go on, through no fault of its input: one clear message, exit 1, no traceback."""
