"""The collector of cycles: held in the loop, at work on every fiftieth step, and as it was behind it."""

from __future__ import annotations

import gc
import weakref

from bigtrain import garbage


class Node:
    """Something that a cycle can hold."""

    def __init__(self) -> None:
        self.itself = self


def test_cycles_go_at_every_fiftieth_step_and_not_between() -> None:
    with garbage.held():
        assert not gc.isenabled()
        gone = weakref.ref(Node())
        for step in range(1, garbage.EVERY):
            garbage.collect(step)
        assert gone() is not None
        garbage.collect(garbage.EVERY)
        assert gone() is None
    assert gc.isenabled()


def test_a_start_ends_with_the_collector_at_work() -> None:
    garbage.hold()
    assert not gc.isenabled()
    garbage.started()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
