"""What DeepSpeed really does, read from its live objects; see `Engine.settings`."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


def effective(engine: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Settings of a built `deepspeed.DeepSpeedEngine`; dotted keys are the recipe's, as is `optimizer`."""
    wrapped = engine.optimizer
    low, gradients = engine.get_data_types()
    found = {
        "engine.name": f"zero{_stage(engine)}",
        "trainer.micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "trainer.global_batch_size": engine.train_batch_size(),
        "trainer.grad_clip": getattr(wrapped, "clip_grad", engine.gradient_clipping()) or None,
        "precision.name": {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[
            _compute_dtype(engine)
        ],
        "world_size": engine.dp_world_size,
        "device": str(engine.device),
        "accumulation": engine.gradient_accumulation_steps(),
        "optimizer": type(optimizer).__name__,
        "deepspeed_optimizer": type(wrapped).__name__,
        "deepspeed_scheduler": engine.lr_scheduler and type(engine.lr_scheduler).__name__,  # none: the loop has ours
        "gradient_precision": str(gradients if low is not torch.float32 else low).removeprefix("torch."),
        "lr": [group["initial_lr"] for group in optimizer.param_groups],
    }
    if len(set(found["lr"])) == 1:
        found["optimizer.lr"] = found["lr"][0]
    return found | _zero(engine) | _loss_scale(wrapped)


def _stage(engine: Any) -> int:
    """By the optimizer that DeepSpeed chose; ZeRO 1 and 2 share one, but for what becomes of the gradients."""
    name = type(engine.optimizer).__name__
    if name == "DeepSpeedZeroOptimizer":
        return 2 if engine.optimizer.partition_gradients else 1
    return {"DeepSpeedZeroOptimizer_Stage3": 3, "BF16_Optimizer": 1}.get(name, 0)


def _compute_dtype(engine: Any) -> torch.dtype:
    """Of the weights that the forward pass uses."""
    trained = next(p for p in engine.module.parameters() if p.requires_grad)
    dtype: torch.dtype = trained.ds_tensor.dtype if hasattr(trained, "ds_tensor") else trained.dtype
    return dtype


def _zero(engine: Any) -> dict[str, Any]:
    """What only a stage above 0 has; `BF16_Optimizer` has no buckets. On a CPU nothing overlaps, so nothing is said."""
    wrapped = engine.optimizer
    if _stage(engine) == 0:
        return {}
    found: dict[str, Any] = {"engine.offload_optimizer": None}
    if hasattr(wrapped, "reduce_bucket_size"):
        found["engine.bucket_size"] = wrapped.reduce_bucket_size
    if hasattr(wrapped, "overlap_comm") and engine.device.type != "cpu":
        found["engine.overlap_comm"] = wrapped.overlap_comm
    if getattr(wrapped, "cpu_offload", False):  # ZeRO 1 and 2
        found["engine.offload_optimizer"] = "cpu"
    if _stage(engine) == 3:
        swaps = wrapped.swap_optimizer, wrapped.params_in_nvme_and_cpu
        holds = wrapped.offload_optimizer, wrapped.offload_param
        optimizer, parameters = (
            "nvme" if swap else "cpu" if host else None for swap, host in zip(swaps, holds, strict=True)
        )
        found["engine.offload_optimizer"], found["engine.offload_parameters"] = optimizer, parameters
        coordinator = wrapped.parameter_offload
        found["engine.hierarchical_partition"] = (
            wrapped.zero_hpz_partition_size if wrapped.zero_hpz_partition_size > 1 else None
        )
        found["engine.quantized_weights"] = bool(coordinator.zero_quantized_weights)
        found["engine.quantized_gradients"] = wrapped.all2all_process_group is not None
    return found


def _loss_scale(wrapped: Any) -> dict[str, Any]:
    scale = getattr(wrapped, "loss_scaler", None) or getattr(wrapped, "loss_scale_config", None)
    window = getattr(scale, "scale_window", None)
    if scale is None or window is None:
        return {"loss_scale": None}
    found = {"loss_scale": float(scale.cur_scale), "precision.loss_scale_window": window}
    return found | ({"precision.initial_loss_scale": float(scale.cur_scale)} if scale.cur_iter == 0 else {})
