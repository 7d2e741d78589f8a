"""The exceptions that users are meant to read, and the exit codes of the contract that they become."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 0, 1, 2, 75


class UserError(Exception):
    """The user's input is wrong: the message names the fault and the nearest right thing (exit 2, no traceback)."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`" Did you mean 'x'?"`, or the choices where none is near; to be appended to a message."""
    known = sorted(candidates)
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{lower[close[0]]}'?"
    return f" There are: {', '.join(known)}." if known else ""


def nearest_path(path: Path, fits: Callable[[Path], bool] = lambda entry: True, listed: int = 20) -> str:
    """`nearest` among the names beside the first part of `path` that is not there, if `fits`; hidden ones never do.

    Where none is near all are told, if they are at most `listed`.
    """
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    beside = list(missing.parent.iterdir()) if missing.parent.is_dir() else []
    names = [entry.name for entry in beside if not entry.name.startswith(".") and fits(entry)]
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{missing.parent / close[0]}'?"
    return nearest(missing.name, names) if len(names) <= listed else ""


class RunError(Exception):
    """A run cannot go on, through no fault of its input: one clear message, exit 1, no traceback."""


def guarded(function: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command; wrong input becomes one message on stderr and exit code 2, without a traceback."""
    try:
        return function(argv)
    except UserError as error:
        print(f"bigtrain: {error}", file=sys.stderr)
        return EXIT_USER
    except RunError as error:
        print(f"bigtrain: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("bigtrain: interrupted", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED
