"""Declared is effective: what a built engine really does, against the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bigtrain.config.compose import flatten
from bigtrain.config.schema import RunConfig
from bigtrain.errors import RunError


def check_effective(config: RunConfig, settings: Mapping[str, Any]) -> None:
    """Compare every dotted key of `settings` (`Engine.settings()`) with the recipe's value.

    Raises:
        RunError: names each setting that is not what was asked for.
    """
    declared = flatten(asdict(config))
    wrong = [
        f"{key} is {declared[key]} in the recipe and {value} in the engine"
        for key, value in settings.items()
        if "." in key and key in declared and not _same(declared[key], value)
    ]
    if wrong:
        raise RunError(f"engine={config.engine.name} does not do what the recipe says: {'; '.join(wrong)}.")


def _same(declared: Any, effective: Any) -> bool:
    if isinstance(declared, float) and isinstance(effective, float):
        return math.isclose(declared, effective, rel_tol=1e-6)
    return bool(declared == effective)
