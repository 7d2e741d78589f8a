"""Steps that all ranks take or none: a fault on one is known to all, so that nobody waits for a rank that gave up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bigtrain.checkpoint.folder import reason
from bigtrain.distributed import gather_objects
from bigtrain.errors import UserError

T = TypeVar("T")


def together(action: Callable[[], T], explain: Callable[[str], str]) -> T:
    """Do `action` on every rank; where it fails on any, raise on every one.

    UserError and OSError are the user's (their data, their disk) and are raised as one UserError, `explain(faults)`,
    the same on all ranks. Any other exception goes on as it is on its rank and as a RuntimeError on the others.
    """
    result, fault = None, None
    try:
        result = action()
    except Exception as error:
        fault = error
    users = isinstance(fault, UserError | OSError)
    faults = gather_objects((None if fault is None else _text(fault), users))
    if not any(text for text, _ in faults):
        return result  # type: ignore[return-value]  # the action has returned it
    if fault is not None and not users:
        raise fault
    failed = [(rank, text) for rank, (text, _) in enumerate(faults) if text]
    rank, told = failed[0]
    if len({text for _, text in failed}) > 1 or len(failed) < len(faults):
        told = f"rank {rank}: {told}" + (f" (and {len(failed) - 1} other ranks)" if len(failed) > 1 else "")
    if any(text and not users for text, users in faults):
        raise RuntimeError(explain(told))
    raise UserError(explain(told)) from fault


def _text(fault: Exception) -> str:
    return reason(fault) if isinstance(fault, OSError) else str(fault) or type(fault).__name__
