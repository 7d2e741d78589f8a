"""Python's collector of reference cycles, held back where it costs and finds nothing.

It starts whenever some hundreds of objects are new, and walks them, or all there are. While torch is imported that is a
sixth of the CPU time and finds nothing; in the loop it would strike each rank at another step, and all would wait for
that one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 50
"""Steps between two collections: on all ranks after the same one."""


def hold() -> None:
    """While the process starts."""
    gc.disable()


def started() -> None:
    """The libraries are here: their objects stay, and are not looked at again."""
    gc.freeze()
    gc.enable()


@contextmanager
def held() -> Iterator[None]:
    """The loop: only `collect` collects."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect(step: int) -> None:
    """After every `EVERY`th step: what has become unreachable since the loop began."""
    if step % EVERY == 0:
        gc.collect()
