"""Exact deduplication."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.clean import exact_dedup


def refuse(index: int) -> str:
    raise AssertionError("exact deduplication reads no text again")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "a ", "A", "é", "e\u0301", "\ud800", "abc"]), st.booleans())))
def test_the_first_living_copy_stays(documents: list[tuple[str, bool]]) -> None:
    step = exact_dedup()
    first: dict[str, int] = {}
    expected = []
    for n, (text, alive) in enumerate(documents):
        expected.append(first[text] if alive and text in first else -1)
        if alive:
            first.setdefault(text, n)
    sketches = step.sketch([text for text, _ in documents])
    assert sketches.shape == (len(documents), 2)
    found = step.duplicates(sketches, np.array([alive for _, alive in documents], bool), refuse)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_sketches_do_not_depend_on_the_process() -> None:
    code = "from bigtrain.data.clean import exact_dedup as e; print(e().sketch(['whale', 'Ahab']).tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("0", "1")
    }
    assert printed == {f"{exact_dedup().sketch(['whale', 'Ahab']).tolist()}\n"}


def test_all_of_a_sketch_must_agree() -> None:
    sketches = np.array([[1, 2], [1, 3], [2, 2], [1, 2]], np.uint64)
    assert exact_dedup().duplicates(sketches, np.ones(4, bool), refuse).tolist() == [-1, -1, -1, 0]
