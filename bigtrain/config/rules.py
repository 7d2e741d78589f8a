"""Rules across settings, and the one place where the batch is divided."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

from bigtrain.config.launching import check_launcher, here, visible_gpus, world_size
from bigtrain.config.metrics import WAYS
from bigtrain.config.schema import ELEMENTWISE_ONLY, NOT_ELEMENTWISE, Engine, RunConfig, Trainer
from bigtrain.errors import UserError, nearest

ZERO = ("zero0", "zero1", "zero2", "zero3")
STAGES = {
    "extra": ZERO,
    "offload_optimizer": ZERO[1:],
    "offload_parameters": ("zero3",),
    "hierarchical_partition": ("zero3",),
    "quantized_weights": ("zero3",),
    "quantized_gradients": ("zero3",),
    "sequence_parallel": ZERO,
    "tensor_parallel": ZERO[:3],
}
"""The engines that a setting of `engine` has an effect in."""


def replicas(engine: Engine) -> int:
    """Neighbouring ranks that share the same samples: they cut the sequence, or the weights."""
    return engine.sequence_parallel * engine.tensor_parallel


def held_out_samples(config: RunConfig) -> int | None:
    """How many held-out samples an evaluation looks at, whatever the number of ranks; None: all."""
    trainer = config.trainer
    return None if trainer.eval_batches is None else trainer.eval_batches * trainer.global_batch_size


def accumulation(trainer: Trainer, data_ranks: int) -> int:
    """Micro-batches a rank a step, on `data_ranks` ranks (or groups of ranks) with samples of their own; a `UserError`
    where the global batch does not divide."""
    at_once = trainer.micro_batch_size * data_ranks
    if trainer.global_batch_size % at_once == 0:
        return trainer.global_batch_size // at_once
    below = trainer.global_batch_size // at_once * at_once
    right = [f"trainer.global_batch_size={size}" for size in (below, below + at_once) if size]
    each, rest = divmod(trainer.global_batch_size, data_ranks)
    if not rest:
        right.insert(0, f"trainer.micro_batch_size={math.gcd(each, trainer.micro_batch_size)}")
    raise UserError(
        f"trainer.global_batch_size={trainer.global_batch_size} cannot be divided into micro-batches of "
        f"{trainer.micro_batch_size} on {data_ranks} rank{'s' * (data_ranks > 1)} (a multiple of {at_once} is needed): "
        f"take {' or '.join(right)}."
    )


def _positive(config: RunConfig) -> None:
    trainer = config.trainer
    at_least_one = {
        "trainer.global_batch_size": trainer.global_batch_size,
        "trainer.micro_batch_size": trainer.micro_batch_size,
        "trainer.max_steps": trainer.max_steps,
        "trainer.max_tokens": trainer.max_tokens,
        "trainer.log_every": trainer.log_every,
        "trainer.eval_every": trainer.eval_every,
        "trainer.eval_batches": trainer.eval_batches,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "engine.bucket_size": config.engine.bucket_size,
        "engine.hierarchical_partition": config.engine.hierarchical_partition,
        "engine.sequence_parallel": config.engine.sequence_parallel,
        "engine.tensor_parallel": config.engine.tensor_parallel,
        "evaluation.generate_tokens": config.evaluation.generate_tokens,
        "precision.loss_scale_window": config.precision.loss_scale_window,
    }
    above_zero = {
        "trainer.epochs": trainer.epochs,
        "trainer.grad_clip": trainer.grad_clip,
        "trainer.timeout_s": trainer.timeout_s,
        "precision.initial_loss_scale": config.precision.initial_loss_scale,
        "evaluation.generate_temperature": config.evaluation.generate_temperature or None,
    }
    not_below_zero: dict[str, float] = {
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "trainer.loader_workers": trainer.loader_workers,
    }
    if (hardware := config.hardware) is not None:
        at_least_one["hardware.gpus"] = hardware.gpus
        not_below_zero["hardware.price"] = hardware.price or 0
        rates = ("bandwidth", "link", "network", "host_link", "memory_gib", "host_memory_gib", "products", "attention")
        above_zero |= {f"hardware.{rate}": getattr(hardware, rate) for rate in rates}
        above_zero |= {f"hardware.tflops.{precision}": peak for precision, peak in hardware.tflops.items()}
    if config.profiler is not None:
        at_least_one |= {"profiler.start": config.profiler.start, "profiler.steps": config.profiler.steps}
    for key, count in not_below_zero.items():
        if not 0 <= count < float("inf"):
            raise UserError(f"{key}={count}: it must be at least 0, and finite.")
    for key, value in at_least_one.items():
        if value is not None and not 1 <= value < 2**63:
            raise UserError(f"{key}={value}: it must be {'at least 1' if value < 1 else 'below 2^63'}.")
    for key, number in above_zero.items():
        if number is not None and not 0 < number < float("inf"):
            raise UserError(f"{key}={number}: it must be above 0 and finite (null turns it off where it may be off).")
    if hardware is not None and (most := max(hardware.products, hardware.attention)) > 1:
        raise UserError(f"hardware.products and hardware.attention are parts of the peak, at most 1: not {most}.")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: it must be from 0 to 2^63 - 1.")


def check_going_on(began: RunConfig, now: RunConfig) -> None:
    """Refuse what a run that has begun cannot take up any more."""
    then, first = began.checkpoint.weights_from, now.checkpoint.weights_from
    if first != then:
        raise UserError(
            f"checkpoint.weights_from={first}: the run in {now.run.dir} has begun already, with "
            f"{then or 'weights of its own'}. Start a new one in another run.dir="
        )


def check_engine(engine: Engine, world_size: int) -> None:
    """Refuse settings that the engine does not have, or not on so many ranks."""
    without = {field.name: field.default for field in fields(Engine) if field.default is not MISSING}
    for key, stages in STAGES.items():
        value = getattr(engine, key)
        if value and value != without.get(key) and engine.name not in stages:
            raise UserError(
                f"engine.{key}={value} needs engine={' or '.join(stages)}: engine={engine.name} does not have it."
            )
    if engine.offload_optimizer == "nvme" and engine.name != "zero3":
        raise UserError(f"engine.offload_optimizer=nvme needs engine=zero3: with {engine.name} there is cpu.")
    if "nvme" in (engine.offload_optimizer, engine.offload_parameters) and not engine.nvme_path:
        raise UserError("engine.nvme_path has no value: name a folder on a fast local disk.")
    _offload(engine)
    for key in ("hierarchical_partition", "sequence_parallel", "tensor_parallel"):
        share = getattr(engine, key) or 1
        if world_size % share:
            raise UserError(f"engine.{key}={share} does not divide the {world_size} ranks.")
    if world_size % replicas(engine):
        raise UserError(
            f"engine.sequence_parallel={engine.sequence_parallel} x engine.tensor_parallel={engine.tensor_parallel} = "
            f"{replicas(engine)} does not divide the {world_size} ranks."
        )


def _offload(engine: Engine) -> None:
    """Refuse what offload does not go together with."""
    kept_away = {"offload_optimizer": engine.offload_optimizer, "offload_parameters": engine.offload_parameters}
    offloaded = [f"engine.{key}={where}" for key, where in kept_away.items() if where]
    for key in ("hierarchical_partition", "quantized_weights", "quantized_gradients"):
        if offloaded and getattr(engine, key):
            raise UserError(
                f"engine.{key}={getattr(engine, key)} (ZeRO++) and {offloaded[0]} do not go together: ZeRO++ keeps a "
                "second copy of the weights on the device to save messages, offload keeps them away from it."
            )
    if engine.offload_parameters == "nvme" and not engine.offload_optimizer:
        raise UserError("engine.offload_parameters=nvme needs engine.offload_optimizer=nvme (or cpu).")
    if "nvme" in kept_away.values() and not engine.sharded_init:
        raise UserError("offload to nvme needs engine.sharded_init=true: the weights go to the disk one by one.")


def _cuts(config: RunConfig) -> None:
    """Refuse what cut sequences and cut weights do not go together with."""
    engine = config.engine
    if replicas(engine) == 1:
        return
    if engine.sequence_parallel > 1 < engine.tensor_parallel:
        raise UserError(
            f"engine.sequence_parallel={engine.sequence_parallel} and engine.tensor_parallel={engine.tensor_parallel} "
            "do not go together: set one of them to 1."
        )
    key = "sequence_parallel" if engine.sequence_parallel > 1 else "tensor_parallel"
    if config.trainer.compile:
        raise UserError(f"trainer.compile=true and engine.{key} do not go together: set trainer.compile=false.")
    if key == "sequence_parallel":
        length = config.data.get("sequence_length")
        if isinstance(length, int) and length % engine.sequence_parallel:
            raise UserError(
                f"engine.sequence_parallel={engine.sequence_parallel} does not divide data.sequence_length={length}."
            )
        return
    if engine.offload_optimizer:
        raise UserError("engine.tensor_parallel and engine.offload_optimizer do not go together: set one of them only.")
    if engine.name == "zero0" and config.precision.name != "fp32":
        # Its `get_weight_norm` takes bare gradients, and so leaves the parts of all ranks but one out.
        raise UserError(
            f"engine.tensor_parallel with precision={config.precision.name} needs engine=zero1 or zero2: in zero0 "
            "DeepSpeed clips by a wrong norm."
        )
    target = str(config.optimizer.get("_target_"))
    if target in NOT_ELEMENTWISE:
        raise UserError(
            f"{target.rpartition('.')[2]} looks at whole matrices, and engine.tensor_parallel cuts them: take "
            "optimizer=adamw, lion or sgd."
        )


def _fp8(config: RunConfig) -> None:
    """Refuse what products in fp8 do not go together with."""
    if config.precision.fp8 is None:
        return
    if config.precision.name != "bf16":
        raise UserError(f"precision.fp8 goes with precision.name=bf16, not {config.precision.name}: precision=fp8.")
    if config.engine.tensor_parallel > 1:
        raise UserError(
            "precision=fp8 and engine.tensor_parallel do not go together: DeepSpeed puts its own layers in the place "
            "of those that are in fp8. Take precision=bf16, or engine.tensor_parallel=1."
        )


def check_rules(config: RunConfig, ranks: int | None = None) -> None:
    """Refuse combinations that cannot work, on `ranks` ranks (null: as many as the launcher will start).

    Raises:
        UserError: names the settings and what to set instead.
    """
    _positive(config)
    trainer = config.trainer
    ends = [key for key in ("max_steps", "epochs", "max_tokens") if getattr(trainer, key) is not None]
    if len(ends) != 1:
        given = " and ".join(f"trainer.{key}" for key in ends)
        fault = f"{given} are set: set the others to null" if ends else "none is set: set one"
        raise UserError(f"exactly one of trainer.max_steps, trainer.epochs and trainer.max_tokens ends a run; {fault}.")
    if config.run.dir is not None and not config.run.dir.strip():
        raise UserError("run.dir is empty: name a folder, or leave it out for runs/<recipe>/<time>.")
    if trainer.device == "cuda" and not visible_gpus() and (ranks is not None or here(config)):
        raise UserError("trainer.device=cuda, but this machine has no GPU: take trainer.device=auto or cpu.")
    if ranks is None:
        check_launcher(config)
        ranks = world_size(config)
    if config.engine.name == "local" and ranks > 1:
        raise UserError(f"engine=local is for one process, and there are {ranks}: take engine=ddp, or zero1 to zero3.")
    check_engine(config.engine, ranks)
    _cuts(config)
    _fp8(config)
    accumulation(trainer, ranks // replicas(config.engine))
    target = str(config.optimizer.get("_target_"))
    if config.engine.name in ELEMENTWISE_ONLY and target in NOT_ELEMENTWISE:
        raise UserError(
            f"{target.rpartition('.')[2]} looks at whole matrices, and engine={config.engine.name} cuts them into "
            "slices: take engine=ddp or zero0, or optimizer=adamw, lion or sgd."
        )
    if trainer.activation_offload and trainer.activation_checkpointing == "selective":
        raise UserError(
            "trainer.activation_offload cannot move what activation_checkpointing=selective puts by: take none or full."
        )
    if trainer.early_stopping and trainer.eval_every is None:
        raise UserError("trainer.early_stopping looks at the held-out split: set trainer.eval_every.")
    if trainer.early_stopping and trainer.early_stopping.metric not in WAYS:
        metric = trainer.early_stopping.metric
        raise UserError(f"trainer.early_stopping.metric={metric}: there is no such metric.{nearest(metric, WAYS)}")
    if config.checkpoint.keep_best and trainer.eval_every is None:
        raise UserError("checkpoint.keep_best looks at the held-out loss: set trainer.eval_every.")
