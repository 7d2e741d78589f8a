"""DeepSpeed's dictionary is pinned, and what a user adds to it is checked."""

from __future__ import annotations

from typing import Any

import pytest

from bigtrain.engines.deepspeed_config import check_extra, deepspeed_config
from bigtrain.errors import UserError
from tests.distributed import tiny

COMMON = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 6,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "steps_per_print": None,
    "timers": {"throughput": {"enabled": False}},
}
STAGES: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1, "reduce_bucket_size": 1000, "overlap_comm": False, "allgather_bucket_size": 1000},
    "zero2": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": False, "allgather_bucket_size": 1000},
    "zero3": {"stage": 3, "reduce_bucket_size": 1000, "overlap_comm": False, "stage3_prefetch_bucket_size": 1000},
}
FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 1}


def expected(engine: str, precision: str) -> dict[str, Any]:
    config = {**COMMON, "zero_optimization": STAGES[engine]}
    if precision != "fp32":
        config["communication_data_type"] = "fp32"
        config["data_types"] = {"grad_accum_dtype": precision if engine == "zero0" else "fp32"}
        config[precision] = {"enabled": True} if precision == "bf16" else FP16
    return config


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("engine", STAGES)
def test_snapshot(engine: str, precision: str) -> None:
    config = tiny.config(engine, 2, 2, precision=precision, grad_clip=1.0)
    assert deepspeed_config(config, 2, "cpu") == expected(engine, precision)


def test_what_depends_on_the_settings() -> None:
    config = tiny.config("zero2", 2, 2, grad_clip=None, bucket_size=333, extra={"zero_optimization": {"x": 1}, "y": 2})
    made = deepspeed_config(config, 2, "cuda")
    assert made["gradient_clipping"] == 0.0  # null: no clipping; DeepSpeed's own default is 1.0
    assert made["zero_optimization"]["overlap_comm"] is True
    assert made["zero_optimization"]["allgather_bucket_size"] == 334  # DeepSpeed needs an even number
    assert made["zero_optimization"]["x"] == 1
    assert made["zero_optimization"]["stage"] == 2
    assert made["y"] == 2
    config.engine.overlap_comm = False
    assert deepspeed_config(config, 2, "cuda")["zero_optimization"]["overlap_comm"] is False


def test_a_loss_scale_must_be_a_power_of_two() -> None:
    config = tiny.config("zero2", 1, precision="fp16")
    config.precision.initial_loss_scale = 1000.0
    with pytest.raises(UserError, match="1024"):
        deepspeed_config(config, 1, "cuda")


def test_good_extra() -> None:
    check_extra(
        {
            "zero_optimization": {"stage3_param_persistence_threshold": 10, "sub_group_size": 1000},
            "bf16": {"check_grad_overflow": False},
            "communication_data_type": "bf16",
            "wall_clock_breakdown": True,
            "flops_profiler": {"enabled": True, "profile_step": 3},
            "data_types": {"grad_accum_dtype": "bf16"},
        }
    )


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"zero_optimisation": {"stage": 3}}, r"zero_optimisation is not .* Did you mean 'zero_optimization'\?"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is set by bigtrain, from engine"),
        ({"zero_optimization": {"overlap_com": True}}, "Did you mean 'overlap_comm'?"),
        ({"zero_optimization": {"sub_group_size": "many"}}, "sub_group_size='many'"),
        ({"zero_optimization": 3}, "a mapping is needed"),
        ({"gradient_clipping": 2.0}, "from trainer.grad_clip"),
        ({"train_batch_size": 2}, "from trainer.global_batch_size"),
        ({"fp16": {"enabled": True}}, "from precision"),
        ({"communication_data_type": "fp8"}, "one of fp32, bf16, fp16"),
        ({"flops_profiler": {"enable": True}}, "Did you mean 'enabled'?"),
        ({"wall_clock_breakdown": "yes"}, "bool is needed"),
        ({"flops_profiler": {"profile_step": True}}, "int is needed"),
    ],
)
def test_bad_extra(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?") if r"\?" not in said else said):
        check_extra(extra)
