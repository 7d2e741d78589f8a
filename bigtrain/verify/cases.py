"""The set-ups that a recipe is run under: each a whole configuration, derived from the recipe's own."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bigtrain.config.launchers import Local
from bigtrain.config.rules import check_rules
from bigtrain.config.schema import Engine, Precision, RunConfig

GROUPS = ("probe", "recipe", "engine", "accumulation", "activation", "precision", "packing", "dropout", "resume")
"""What `--only` chooses from."""

SMALL_LOSS_SCALE = 1024.0
"""For fp16: a first scale that overflows would skip a step, and every later loss would be another."""


@dataclass(slots=True)
class Case:
    """One set-up, and what is done under it."""

    group: str
    name: str
    config: RunConfig
    ranks: int = 1
    data: Literal["uneven", "as it is", "same"] = "uneven"
    dropout: bool = False
    """False: set aside. True: the recipe's, or 0.1 where the recipe's is 0."""
    work: Literal["loop", "plain", "leak"] = "loop"
    """`loop`: the trainer's. `plain`: PyTorch alone, a sample at a time. `leak`: what each logit depends on."""
    resume_from: Path | None = None
    """A run folder with a checkpoint to go on from."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line said, or what it left to us."""

    steps: int
    ranks: int
    timeout_s: float
    only: tuple[str, ...]


def base(recipe: RunConfig, settings: Settings) -> tuple[RunConfig, list[str]]:
    """The configuration that all set-ups vary: the recipe in fp32, over a few steps, with a log line for each; and what
    the user should be told of it."""
    config, notes = deepcopy(recipe), []
    trainer = config.trainer
    trainer.max_steps, trainer.epochs, trainer.max_tokens = settings.steps, None, None
    trainer.log_every, trainer.eval_every, trainer.eval_batches, trainer.early_stopping = 1, None, None, None
    trainer.timeout_s = settings.timeout_s
    config.checkpoint.every, config.checkpoint.keep_last, config.checkpoint.keep_best = None, None, 0
    config.tracker, config.launcher = {}, Local("local")
    if trainer.compile:
        trainer.compile = False
        notes.append("trainer.compile is set aside")
    micro, batch = trainer.micro_batch_size, trainer.global_batch_size
    fair = 2 * settings.ranks * micro
    if batch > fair:
        trainer.global_batch_size = fair
        notes.append(f"trainer.global_batch_size={fair} instead of {batch}: two micro-batches a rank are enough here")
    config.precision = Precision("fp32")
    return config, notes


def reference(config: RunConfig) -> RunConfig:
    """One process, torch alone, fp32, nothing computed twice."""
    config = deepcopy(config)
    config.engine = Engine("local")
    config.trainer.activation_checkpointing, config.trainer.activation_offload = "none", False
    return config


def on_ranks(config: RunConfig, ranks: int) -> RunConfig:
    """The same global batch on `ranks` ranks: with the recipe's micro-batch, or the largest that divides."""
    config = deepcopy(config)
    batch, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    fits = [size for size in range(1, micro + 1) if batch % (size * ranks) == 0]
    if fits:
        config.trainer.micro_batch_size = max(fits)
    return config


def own_engine(config: RunConfig, ranks: int) -> RunConfig:
    """The recipe's engine; ddp in place of local where there are several ranks. Nothing computed twice."""
    config = on_ranks(config, ranks)
    config.trainer.activation_checkpointing, config.trainer.activation_offload = "none", False
    if config.engine.name == "local" and ranks > 1:
        config.engine = Engine("ddp")
    return config


def with_engine(config: RunConfig, ranks: int, engine: Engine) -> RunConfig:
    """Another engine, with the recipe's buckets."""
    config = own_engine(config, ranks)
    if engine.name != config.engine.name or engine.offload_optimizer:
        engine.bucket_size, engine.overlap_comm = config.engine.bucket_size, config.engine.overlap_comm
        config.engine = engine
    return config


ENGINES = {
    "ddp": Engine("ddp"),
    "fsdp": Engine("fsdp"),
    "horovod": Engine("horovod"),
    "zero0": Engine("zero0"),
    "zero1": Engine("zero1"),
    "zero2": Engine("zero2"),
    "zero3": Engine("zero3"),
    "zero2_offload": Engine("zero2", offload_optimizer="cpu"),
    "zero3_offload": Engine("zero3", offload_optimizer="cpu", offload_parameters="cpu"),
}


def engines(config: RunConfig, ranks: int) -> Iterator[Case]:
    """Every engine that needs nothing but this machine."""
    for name, engine in ENGINES.items():
        yield Case("engine", name, with_engine(config, ranks, deepcopy(engine)), ranks)


def accumulations(config: RunConfig, ranks: int) -> Iterator[Case]:
    """The recipe's micro-batch, and halves of it, under the recipe's engine."""
    batch = config.trainer.global_batch_size
    micro = on_ranks(config, ranks).trainer.micro_batch_size
    for size in sorted({micro, micro // 2, micro // 4} - {0}, reverse=True):
        if batch % (size * ranks) == 0:
            each = own_engine(config, ranks)
            each.trainer.micro_batch_size = size
            yield Case("accumulation", f"{batch // (size * ranks)} x {size} samples a rank", each, ranks)


def activations(config: RunConfig, ranks: int) -> Iterator[Case]:
    """Every way to save memory on activations, under the recipe's engine."""
    ways = [("selective", False), ("full", False), ("none", True), ("full", True)]
    for checkpointing, offload in ways:
        each = own_engine(config, ranks)
        each.trainer.activation_checkpointing = checkpointing  # type: ignore[assignment]
        each.trainer.activation_offload = offload
        yield Case("activation", f"{checkpointing}{' + offload' if offload else ''}", each, ranks)


def precisions(config: RunConfig, ranks: int) -> Iterator[Case]:
    """bf16 and fp16 under the recipe's engine; fp16 under ddp too, as DeepSpeed has none on a CPU."""
    own = own_engine(config, ranks)
    plain = with_engine(config, ranks, Engine("ddp"))
    cases = [("bf16", own), ("fp16", own)]
    if own.engine.name != "ddp":
        cases.append(("fp16", plain))
    for precision, one in cases:
        each = deepcopy(one)
        each.precision = Precision(precision, initial_loss_scale=SMALL_LOSS_SCALE)  # type: ignore[arg-type]
        yield Case("precision", f"{precision}, {each.engine.name}", each, ranks)


def packings(config: RunConfig) -> dict[str, RunConfig]:
    """The other ways to pack the recipe's text, each the whole configuration; none for data of another kind."""
    if config.data.get("_target_") != "bigtrain.data.text":
        return {}
    now = (config.data.get("packing", "concat"), bool(config.data.get("document_masks")))
    ways = {
        "concat": ("concat", False),
        "concat, document masks": ("concat", True),
        "best_fit": ("best_fit", False),
        "none": ("none", False),
    }
    found = {}
    for name, (packing, masks) in ways.items():
        if (packing, masks) != now:
            found[name] = deepcopy(config)
            found[name].data |= {"packing": packing, "document_masks": masks}
    return found


def check(case: Case) -> None:
    """A `UserError` where this cannot be asked for."""
    check_rules(case.config, case.ranks)
