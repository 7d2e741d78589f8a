"""Declared is effective: an engine that was built in another way than the recipe says is stopped, and why is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks

COMMON = {"engine.name", "trainer.grad_clip", "precision.name", "world_size"}
DEEPSPEED = COMMON | {"trainer.micro_batch_size", "trainer.global_batch_size", "accumulation", "deepspeed_scheduler"}
SHARDED = DEEPSPEED | {"engine.bucket_size", "engine.offload_optimizer"}
READ_BACK = {"ddp": COMMON, "fsdp": COMMON, "zero0": DEEPSPEED, "zero1": SHARDED, "zero2": SHARDED,
             "zero3": SHARDED | {"engine.offload_parameters"}}  # fmt: skip

SCHEDULER = {"type": "WarmupLR", "params": {"warmup_num_steps": 10}}
PLANTED: list[tuple[str, dict[str, Any], str]] = [
    ("zero2", {"zero_optimization": {"stage": 1}}, "engine.name is zero2 in the recipe and zero1 in the engine"),
    ("zero3", {"zero_optimization": {"stage": 2}}, "engine.name is zero3 in the recipe and zero2 in the engine"),
    ("zero2", {"gradient_clipping": 1.0}, "trainer.grad_clip is 0.2 in the recipe and 1.0 in the engine"),
    ("zero2", {"train_batch_size": 2 * tiny.GLOBAL_BATCH, "gradient_accumulation_steps": 2}, "accumulation is 1"),
    ("zero1", {"zero_optimization": {"reduce_bucket_size": 77}}, "engine.bucket_size is 1000 in the recipe and 77"),
    ("zero2", {"bf16": {"enabled": True}}, "precision.name is fp32 in the recipe and bf16 in the engine"),
    ("zero2", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False},
     "engine.offload_optimizer is None in the recipe and cpu in the engine"),
    ("zero0", {"scheduler": SCHEDULER}, "deepspeed_scheduler is None in the recipe and WarmupLR"),
]  # fmt: skip
"""What DeepSpeed is made to be told, and what is said of it."""


def built(ranks: Any, engine: str, told: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The effective settings, and the complaint."""
    from bigtrain.engines import build_engine, deepspeed
    from bigtrain.engines.deepspeed_config import merge
    from bigtrain.engines.effective import check_effective
    from bigtrain.errors import RunError

    config, original = tiny.config(engine, ranks.world_size), deepspeed.deepspeed_config
    try:
        if told:
            deepspeed.deepspeed_config = lambda *arguments: merge(original(*arguments), told)
        made = build_engine(config, tiny.Tiny, tiny.NextToken(), tiny.adamw, ranks)
    finally:
        deepspeed.deepspeed_config = original
    settings = made.settings()
    made.close()
    try:
        check_effective(config, settings, ranks)
    except RunError as error:
        return settings, str(error)
    return settings, ""


def everything(ranks: Any) -> tuple[dict[str, Any], list[str]]:
    return {engine: built(ranks, engine) for engine in READ_BACK}, [
        built(ranks, engine, told)[1] for engine, told, _ in PLANTED
    ]


def test_a_difference_is_found_and_named() -> None:
    honest, planted = run_on_ranks(everything, 2)[0]
    for engine, (settings, complaint) in honest.items():
        assert complaint == "", engine
        assert READ_BACK[engine] <= settings.keys(), (engine, READ_BACK[engine] - settings.keys())
    for (engine, told, words), complaint in zip(PLANTED, planted, strict=True):
        assert words in complaint, (engine, told, complaint)


@pytest.mark.parametrize("value", [0.5, 0.5 + 1e-9])
def test_numbers_are_compared_as_numbers(value: float) -> None:
    import torch

    from bigtrain.distributed import Ranks
    from bigtrain.engines.effective import check_effective

    config = tiny.config("ddp", 1, grad_clip=0.5)
    check_effective(config, {"trainer.grad_clip": value}, Ranks(0, 1, 0, 1, torch.device("cpu")))
