"""Our settings → DeepSpeed's dictionary: generated, never typed by a user. Pure: no torch, no DeepSpeed.

DeepSpeed ignores a misspelt top-level key without a word, and its defaults clip gradients at 1.0; so every key that
matters is written out here, and `engine.extra` is checked before it is merged (`check_extra` asks DeepSpeed's models).
Source of the keys: https://www.deepspeed.ai/docs/config-json/ and deepspeed/runtime/config.py (0.19.8).
"""

from __future__ import annotations

import copy
import math
from importlib import import_module
from typing import Any

from bigtrain.config.rules import accumulation, replicas
from bigtrain.config.schema import Engine, RunConfig
from bigtrain.errors import UserError, nearest

OWNED = {
    "train_batch_size": "trainer.global_batch_size",
    "train_micro_batch_size_per_gpu": "trainer.micro_batch_size",
    "gradient_accumulation_steps": "trainer.global_batch_size and trainer.micro_batch_size",
    "managed_gradient_accumulation": "trainer.global_batch_size and trainer.micro_batch_size",
    "gradient_clipping": "trainer.grad_clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "activation_checkpointing": "trainer.activation_checkpointing",
    "compile": "trainer.compile",
    "steps_per_print": "trainer.log_every",
    "gradient_allreduce_op": "the one normaliser",
    "prescale_gradients": "the one normaliser",
    "gradient_predivide_factor": "the one normaliser",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "optimizer",
    "zero_optimization.stage": "engine",
    "zero_optimization.reduce_bucket_size": "engine.bucket_size",
    "zero_optimization.overlap_comm": "engine.overlap_comm",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "engine.nvme_path",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "engine.nvme_path",
    "zero_optimization.zero_hpz_partition_size": "engine.hierarchical_partition",
    "zero_optimization.zero_quantized_weights": "engine.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "engine.quantized_gradients",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "fp16.loss_scale": "precision",
    "fp16.initial_scale_power": "precision.initial_loss_scale",
    "fp16.loss_scale_window": "precision.loss_scale_window",
}
"""Keys that bigtrain sets, and the setting that each comes from: `engine.extra` may not have them."""

MODELS = {
    "zero_optimization": "deepspeed.runtime.zero.config:DeepSpeedZeroConfig",
    "bf16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "fp16": "deepspeed.runtime.precision_config:DeepSpeedFP16Config",
    "comms_logger": "deepspeed.comm.config:CommsLoggerConfig",
}
"""Sections that may be in `engine.extra`, and DeepSpeed's own model of each."""

PLAIN: dict[str, type | tuple[str, ...] | dict[str, type]] = {
    "communication_data_type": ("fp32", "bf16", "fp16"),
    "data_types": {"grad_accum_dtype": str, "keep_in_fp32_modules": list},
    "flops_profiler": {
        "enabled": bool,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
        "recompute_fwd_factor": float,
    },
    "aio": {
        "block_size": int,
        "queue_depth": int,
        "intra_op_parallelism": int,
        "single_submit": bool,
        "overlap_events": bool,
    },
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
}
"""Other keys that may be there; DeepSpeed has no model of them: choices, a type, or keys with their types."""

NVME_BUFFERS = 5
"""Pinned buffers of the largest size: an optimizer swaps weight, gradient and up to three states of a sub-group."""
NVME_SUB_GROUP = 100_000_000
"""Elements of the optimizer's state that are in the host's memory at once (each buffer 400 MB at most)."""


def deepspeed_config(config: RunConfig, world_size: int, device: str) -> dict[str, Any]:
    """DeepSpeed's dictionary for this run on `world_size` ranks; `device` is "cpu" or "cuda".

    Raises:
        UserError: a loss scale that is no power of two; a batch that cannot be divided.
    """
    stage = int(config.engine.name.removeprefix("zero"))
    bucket = config.engine.bucket_size
    zero: dict[str, Any] = {"stage": stage}
    if stage > 0:
        zero |= {"reduce_bucket_size": bucket, "overlap_comm": config.engine.overlap_comm and device != "cpu"}
    if stage in (1, 2):
        zero |= {"allgather_bucket_size": bucket + bucket % 2}  # it must be even
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": bucket, **_zeropp(config.engine)}
    zero |= _offload(config.engine, device)
    settings: dict[str, Any] = {
        "train_batch_size": config.trainer.global_batch_size,
        "train_micro_batch_size_per_gpu": config.trainer.micro_batch_size,
        "gradient_accumulation_steps": accumulation(config.trainer, world_size // replicas(config.engine)),
        "gradient_clipping": config.trainer.grad_clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device at every step
        "zero_optimization": zero,
    }
    if config.engine.offload_optimizer:
        settings["zero_force_ds_cpu_optimizer"] = False  # the recipe's own optimizer, torch's: nothing to compile
    if config.engine.sequence_parallel > 1:
        settings["sequence_parallel_size"] = config.engine.sequence_parallel  # ranks that share their samples
    if config.precision.name != "fp32":
        # Gradients are summed over micro-batches and ranks in fp32, wherever DeepSpeed can.
        settings["communication_data_type"] = "fp32"
        settings["data_types"] = {"grad_accum_dtype": "fp32" if stage > 0 else config.precision.name}
    if config.precision.name == "bf16":
        settings["bf16"] = {"enabled": True}
    if config.precision.name == "fp16":
        settings["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": _power_of_two(config.precision.initial_loss_scale),
            "loss_scale_window": config.precision.loss_scale_window,
            "hysteresis": 1,  # it halves at the first overflow
        }
    return merge(settings, config.engine.extra)


def _offload(engine: Engine, device: str) -> dict[str, Any]:
    """What leaves the device. Pinned, so that a GPU copies while it computes; a CPU has nothing to pin for."""
    kept: dict[str, Any] = {}
    for key, where in (("offload_optimizer", engine.offload_optimizer), ("offload_param", engine.offload_parameters)):
        if where is None:
            continue
        kept[key] = {"device": where, "pin_memory": device != "cpu"}
        if where == "nvme":
            kept[key]["nvme_path"] = engine.nvme_path  # deepspeed_nvme.py makes it a folder of the run's own
    if engine.offload_optimizer == "nvme":
        kept["offload_optimizer"]["buffer_count"] = NVME_BUFFERS
        kept["sub_group_size"] = NVME_SUB_GROUP
    if engine.offload_parameters == "nvme":
        # None stays in the host's memory, and none stays whole after its block: each holds one of the few buffers.
        kept["offload_param"] |= {"max_in_cpu": 0}
        kept |= {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0, "stage3_prefetch_bucket_size": 0}
    return kept


def _zeropp(engine: Engine) -> dict[str, Any]:
    """ZeRO++ (https://arxiv.org/abs/2306.10209)."""
    kept: dict[str, Any] = {}
    if engine.hierarchical_partition:
        kept["zero_hpz_partition_size"] = engine.hierarchical_partition
    if engine.quantized_weights:
        kept["zero_quantized_weights"] = True
    if engine.quantized_gradients:
        kept["zero_quantized_gradients"] = True
    return kept


def _power_of_two(scale: float) -> int:
    power = math.log2(scale)
    if not power.is_integer():
        raise UserError(
            f"precision.initial_loss_scale={scale:g}: with DeepSpeed it must be a power of two, such as "
            f"{2.0 ** round(power):g}."
        )
    return int(power)


def merge(settings: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the keys of `extra` put in, section by section."""
    merged = copy.deepcopy(settings)
    for key, value in extra.items():
        merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def check_extra(extra: dict[str, Any]) -> None:
    """Refuse keys of `engine.extra` that bigtrain owns, that DeepSpeed does not know, or with a wrong value. Imports
    DeepSpeed where a section has to be checked by its model.

    Raises:
        UserError: the key, and the nearest right one.
    """
    known = [*MODELS, *PLAIN]
    for key, value in extra.items():
        _not_owned(key, value)
        if key not in known:
            raise UserError(f"engine.extra.{key} is not a key that bigtrain passes on.{nearest(key, known)}")
        if (key in MODELS or isinstance(PLAIN[key], dict)) and not isinstance(value, dict):
            raise UserError(f"engine.extra.{key}={value!r}: a mapping is needed.")
        if key in MODELS:
            _ask_model(key, value)
        else:
            _check_plain(key, value, PLAIN[key])


def _not_owned(key: str, value: Any) -> None:
    if key in OWNED:
        raise UserError(f"engine.extra.{key} is set by bigtrain, from {OWNED[key]}: use that.")
    if isinstance(value, dict):
        for inner, given in value.items():
            _not_owned(f"{key}.{inner}", given)


def _check_plain(key: str, value: Any, rule: Any) -> None:
    if isinstance(rule, dict):
        for inner, given in value.items():
            if inner not in rule:
                raise UserError(f"engine.extra.{key}.{inner} is unknown to DeepSpeed.{nearest(inner, rule)}")
            _check_plain(f"{key}.{inner}", given, rule[inner])
    elif isinstance(rule, tuple):
        if value not in rule:
            raise UserError(f"engine.extra.{key}={value!r}: one of {', '.join(rule)} is needed.")
    elif not isinstance(value, rule) or (rule is int and isinstance(value, bool)):
        raise UserError(f"engine.extra.{key}={value!r}: {rule.__name__} is needed.")


def _ask_model(key: str, value: dict[str, Any]) -> None:
    from pydantic import ValidationError

    module, _, name = MODELS[key].partition(":")
    model = getattr(import_module(module), name)
    names = [word for field, about in model.model_fields.items() for word in (field, about.alias) if word]
    try:
        model(**value)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join([key, *(str(part) for part in fault["loc"])])
        if fault["type"] == "extra_forbidden":
            top = len(fault["loc"]) == 1
            raise UserError(
                f"engine.extra.{where} is unknown to DeepSpeed.{nearest(str(fault['loc'][-1]), names) if top else ''}"
            ) from None
        raise UserError(f"engine.extra.{where}={fault['input']!r}: {fault['msg'].lower()}.") from None
