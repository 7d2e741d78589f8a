"""The lab itself: where it cannot be made it says why, and two do not share a machine."""

from __future__ import annotations

import pytest

from tests.cluster.lab import lacks


@pytest.mark.parametrize(
    ("user", "debian", "namespaces", "reason"),
    [
        (1000, True, True, "needs root"),
        (0, False, True, "not Debian"),
        (0, True, False, "no namespaces"),
        (0, True, True, None),
    ],
)
def test_what_is_lacking_is_said(user: int, debian: bool, namespaces: bool, reason: str | None) -> None:
    said = lacks(user, debian, lambda: namespaces)
    assert (said is None) if reason is None else said is not None and reason in said
