"""Declared is effective: what a built engine really does, against the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bigtrain.config.compose import flatten
from bigtrain.config.rules import accumulation
from bigtrain.config.schema import RunConfig
from bigtrain.distributed import Ranks
from bigtrain.errors import RunError


def check_effective(config: RunConfig, settings: Mapping[str, Any], ranks: Ranks) -> None:
    """Compare `Engine.settings()` with the recipe: its dotted keys, and what follows from them.

    Raises:
        RunError: names each setting that is not what was asked for.
    """
    declared = {key: value for key, value in flatten(asdict(config)).items() if "." in key} | {
        "world_size": ranks.world_size,
        "accumulation": accumulation(config.trainer, ranks.data_ranks),
        "deepspeed_scheduler": None,  # the loop sets the learning rate of each step: another scheduler would undo it
    }
    wrong = [
        f"{key} is {declared[key]} in the recipe and {value} in the engine"
        for key, value in settings.items()
        if key in declared and not _same(declared[key], value)
    ]
    if wrong:
        raise RunError(f"engine={config.engine.name} does not do what the recipe says: {'; '.join(wrong)}.")


def _same(declared: Any, effective: Any) -> bool:
    if isinstance(declared, float) and isinstance(effective, float):
        return math.isclose(declared, effective, rel_tol=1e-6)
    return bool(declared == effective)
