"""DeepSpeed's dictionary is pinned, and what a user adds to it is checked."""

from __future__ import annotations

from typing import Any

import pytest

from bigtrain.config.rules import check_engine
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


OFF_DEVICE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "optimizer": ({"offload_optimizer": "cpu"}, {"offload_optimizer": {"device": "cpu", "pin_memory": True}}),
    "both": (
        {"offload_optimizer": "cpu", "offload_parameters": "cpu"},
        {
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "offload_param": {"device": "cpu", "pin_memory": True},
        },
    ),
    "disk": (
        {"offload_optimizer": "nvme", "offload_parameters": "nvme", "nvme_path": "/disk"},
        {
            "offload_optimizer": {"device": "nvme", "pin_memory": True, "nvme_path": "/disk", "buffer_count": 5},
            "offload_param": {"device": "nvme", "pin_memory": True, "nvme_path": "/disk", "max_in_cpu": 0},
            "sub_group_size": 100_000_000,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
            "stage3_prefetch_bucket_size": 0,
        },
    ),
    "ZeRO++": (
        {"hierarchical_partition": 2, "quantized_weights": True, "quantized_gradients": True},
        {"zero_hpz_partition_size": 2, "zero_quantized_weights": True, "zero_quantized_gradients": True},
    ),
}


@pytest.mark.parametrize("case", OFF_DEVICE)
def test_offload_and_zeropp(case: str) -> None:
    given, zero = OFF_DEVICE[case]
    config = tiny.config("zero3", 2, 2)
    for key, value in given.items():
        setattr(config.engine, key, value)
    check_engine(config.engine, 2)
    made = deepspeed_config(config, 2, "cuda")
    assert made["zero_optimization"] == {**STAGES["zero3"], "overlap_comm": True, **zero}
    assert made.get("zero_force_ds_cpu_optimizer", True) is ("offload_optimizer" not in given)
    if "offload_optimizer" in given:
        on_cpu = deepspeed_config(config, 2, "cpu")["zero_optimization"]
        assert on_cpu["offload_optimizer"]["pin_memory"] is False


@pytest.mark.parametrize(
    ("engine", "given", "said"),
    [
        ("zero0", {"offload_optimizer": "cpu"}, "needs engine=zero1 or zero2 or zero3"),
        ("zero2", {"offload_parameters": "cpu"}, "needs engine=zero3"),
        ("zero2", {"offload_optimizer": "nvme", "nvme_path": "/disk"}, "nvme needs engine=zero3"),
        ("zero3", {"offload_optimizer": "nvme"}, "engine.nvme_path has no value"),
        ("zero3", {"offload_parameters": "nvme", "nvme_path": "/disk"}, "needs engine.offload_optimizer=nvme"),
        (
            "zero3",
            {"offload_optimizer": "nvme", "nvme_path": "/disk", "sharded_init": False},
            "needs engine.sharded_init=true",
        ),
        ("zero3", {"hierarchical_partition": 3}, "engine.hierarchical_partition=3 does not divide the 2 ranks"),
        (
            "zero3",
            {"hierarchical_partition": 2, "offload_parameters": "cpu"},
            r"hierarchical_partition=2 .* and engine.offload_parameters=cpu do not go together",
        ),
        (
            "zero3",
            {"quantized_gradients": True, "offload_optimizer": "cpu"},
            r"quantized_gradients=True .* and engine.offload_optimizer=cpu do not go together",
        ),
        ("zero2", {"quantized_weights": True}, "needs engine=zero3"),
        ("zero3", {"tensor_parallel": 2}, "needs engine=zero0 or zero1 or zero2"),
    ],
)
def test_what_excludes_what(engine: str, given: dict[str, Any], said: str) -> None:
    config = tiny.config(engine, 2, 2)
    for key, value in given.items():
        setattr(config.engine, key, value)
    with pytest.raises(UserError, match=said):
        check_engine(config.engine, 2)


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
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "device is set by bigtrain, from engine.offl",
        ),
        ({"zero_optimization": {"zero_hpz_partition_size": 2}}, "from engine.hierarchical_partition"),
        ({"aio": {"queue_dept": 8}}, "Did you mean 'queue_depth'?"),
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
