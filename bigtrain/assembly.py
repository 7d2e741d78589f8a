"""From a configuration to a running loop: the parts built, put on the checkpoint's state, and handed to the trainer.

The worker (`train.py`) and `bigtrain verify` both go this way, so that what is verified is what trains.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain import first_weights
from bigtrain.config.components import build, shipped
from bigtrain.config.rules import accumulation, held_out_samples
from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError
from bigtrain.trained import LABELS, vocabulary_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from bigtrain.checkpoint.find import Checkpoint
    from bigtrain.distributed import Ranks
    from bigtrain.engines.base import Batch, Engine, Objective
    from bigtrain.telemetry.meters import Meters
    from bigtrain.telemetry.metrics import Split
    from bigtrain.trainer import Numbers, State, Stop


@dataclass(slots=True)
class DataBatches:
    """The loop's batches, from a data component."""

    data: Any
    config: RunConfig
    ranks: Ranks

    def train(self, position: int) -> Iterable[tuple[list[Batch], int]]:
        """See `bigtrain.trainer.Batches`."""
        from bigtrain.data.loader import batches

        trainer = self.config.trainer
        return batches(
            self.data.train,
            seed=self.config.seed,
            position=position,
            global_batch_size=trainer.global_batch_size,
            micro_batch_size=trainer.micro_batch_size,
            rank=self.ranks.data_rank,
            world_size=self.ranks.data_ranks,
            pin_memory=self.ranks.device.type == "cuda",
            workers=trainer.loader_workers,
        )

    def held_out(self) -> Iterable[Batch] | None:
        """See `bigtrain.trainer.Batches`."""
        from bigtrain.data.loader import eval_batches

        if self.data.eval is None or len(self.data.eval) == 0:
            return None
        return eval_batches(
            self.data.eval,
            micro_batch_size=self.config.trainer.micro_batch_size,
            rank=self.ranks.data_rank,
            world_size=self.ranks.data_ranks,
            max_samples=held_out_samples(self.config),
            workers=self.config.trainer.loader_workers,
        )


def total_steps(config: RunConfig, samples: int) -> int:
    """Steps of the whole run, from whichever of `max_steps`, `epochs` and `max_tokens` is set."""
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.epochs is not None:
        return max(1, math.ceil(trainer.epochs * samples / trainer.global_batch_size))
    length = config.data.get("sequence_length")
    if not isinstance(length, int):
        raise UserError("trainer.max_tokens needs data.sequence_length: take trainer.max_steps or trainer.epochs.")
    assert trainer.max_tokens is not None
    return max(1, math.ceil(trainer.max_tokens / (trainer.global_batch_size * length)))


def check_parts(config: RunConfig) -> tuple[Any, Any]:
    """The schedule and the objective; a `UserError` for values that they or the optimizer refuse, and for a tracker
    or fp8 without its package. Before the data are prepared, as that may take hours."""
    from torch import nn

    from bigtrain import telemetry
    from bigtrain.engines import fp8

    fp8.check_installed(config.precision)
    telemetry.check_installed([tracker["_target_"] for tracker in config.tracker.values()])
    schedule, objective = build(config.schedule, "schedule"), build(config.objective, "objective")
    try:
        build_optimizer(config, nn.Linear(2, 2))
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {config.optimizer['_target_']} refuses its settings: {error}") from error
    return schedule, objective


def prepared_data(config: RunConfig) -> Any:
    """The data component, prepared by rank 0 while the others wait; told before where the run goes on from.

    What can be known of the model before that is refused before that.
    """
    from bigtrain.checkpoint.find import find
    from bigtrain.distributed import run_on_first
    from bigtrain.models.beforehand import check_beforehand
    from bigtrain.telemetry.progress import say

    data = build(config.data, "data")
    if (first := config.checkpoint.weights_from) is not None:
        run_on_first(lambda: first_weights.check(first, config))
    run_on_first(lambda: check_beforehand(config.model, getattr(data, "shape", None)))
    if hasattr(data, "resume"):
        found = run_on_first(lambda: find(config.run.dir or "", lambda text: None))
        if found is not None:
            then, position = found.manifest.state.get("data"), found.manifest.state["loop"]["position"]
            notes = data.resume(then, position)
            run_on_first(lambda: say("\n".join(notes)) if notes else None)
    if hasattr(data, "prepare"):
        run_on_first(data.prepare)
    if run_on_first(lambda: len(data.train)) == 0:  # what is wrong with it is said once
        raise UserError("the training split holds no sample: data.path has too little, or data.held_out takes it all.")
    return data


def keep_tokenizer(data: Any, run_dir: Path) -> None:
    """A copy of it, and of the names of the classes, in the run folder: generation and export must not depend on the
    prepared data."""
    folder = getattr(data, "tokenizer_path", None)
    if folder is not None:
        shutil.copytree(folder, run_dir / "tokenizer", dirs_exist_ok=True)
    template = getattr(data, "template", None)  # the recipe's own wins over the tokenizer's
    if template is not None:
        (run_dir / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
    if getattr(data, "classes", None) is not None:
        told = {"classes": data.classes, "names": getattr(data, "label_names", None)}
        (run_dir / LABELS).write_text(json.dumps(told) + "\n", encoding="utf-8")


def build_model(config: RunConfig, data: Any) -> nn.Module:
    """The model, with the data's vocabulary and classes where the recipe leaves them open."""
    vocabulary, classes = vocabulary_of(data), getattr(data, "classes", None)
    model: nn.Module = build(config.model, "model", vocab_size=vocabulary, classes=classes)
    holds = getattr(model, "vocab_size", None)
    if holds is not None and vocabulary is not None and holds < vocabulary:
        raise UserError(
            f"the model has {holds} token embeddings and the data's tokenizer {vocabulary} tokens: "
            "raise model.vocab_size, or give data.tokenizer the model's own."
        )
    holds = getattr(model, "classes", None)
    if holds is not None and classes is not None and holds < classes:
        raise UserError(f"the data have {classes} classes and the model's head {holds}: leave model.classes out.")
    names = getattr(data, "label_names", None)
    name_labels: Callable[[list[str]], None] | None = getattr(model, "name_labels", None)
    if names is not None and name_labels is not None:
        name_labels(names)
    return model


def build_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """bigtrain's own take the model; anyone else's (`torch.optim.AdamW`) takes its decay groups."""
    from bigtrain.optim.groups import decay_groups

    component = config.optimizer
    if shipped(component["_target_"]):
        return build(component, "optimizer", model)  # type: ignore[no-any-return]
    groups = decay_groups(model, weight_decay=component.get("weight_decay", 0.0))
    return build(component, "optimizer", groups)  # type: ignore[no-any-return]


def resume(
    config: RunConfig, engine: Engine, data: Any, ranks: Ranks
) -> tuple[State, Checkpoint | None, dict[str, Any] | None]:
    """Put the engine where the newest intact checkpoint left it; the loop's state, and this rank's random states."""
    from bigtrain.checkpoint.find import find
    from bigtrain.checkpoint.load import load
    from bigtrain.data.resuming import texts
    from bigtrain.distributed import run_on_first
    from bigtrain.telemetry.progress import say
    from bigtrain.trainer import State

    found = run_on_first(lambda: find(config.run.dir or "", say))
    if found is None:
        if (first := config.checkpoint.weights_from) is not None:
            first_weights.load(first, engine, data, ranks)
        return State(), None, None
    now, then = texts(state_of(data)), texts(found.manifest.state.get("data"))
    if now != then and not (isinstance(now, dict) and isinstance(then, dict)):  # of these `data.resume` was told
        raise UserError(
            f"{found.path} was trained on other data ({then}) than data.path={config.data.get('path')} gives now "
            f"({now}): the position in it would mean nothing. Put text and data.* back, or start in another run.dir."
        )
    state, rng = load(found, engine.fragments(found.stateful), ranks, warn=say)
    engine.load_scalars(state["engine"])
    engine.loaded()
    if ranks.first:
        say(f"going on from {found.path}")
    return State.from_dict(state["loop"]), found, rng


def state_of(data: Any) -> Any:
    """What a checkpoint keeps of the data: its own state, or else its fingerprint."""
    return data.state() if hasattr(data, "state") else getattr(data, "fingerprint", None)


class Saver:
    """Writes the checkpoints of a run; training goes on meanwhile, where the host has room for a copy."""

    def __init__(
        self, config: RunConfig, engine: Engine, ranks: Ranks, data: Any, parent: Checkpoint | None
    ):  # fmt: skip
        from bigtrain.checkpoint.background import Background

        self._config, self._engine, self._ranks, self._data = config, engine, ranks, data
        self._background = Background()
        self._parent = parent.path.name if parent else None

    def __call__(self, state: State, held_out: float | None, last: bool) -> None:
        """Write one; see `bigtrain.trainer.Job.save`."""
        from bigtrain.checkpoint import find
        from bigtrain.distributed import rng_state

        self._background.save(
            self._config.run.dir or "",
            state.step,
            self._engine.fragments(),
            {"loop": state.as_dict(), "engine": self._engine.scalars(), "data": self._data},
            rng_state(),
            self._ranks,
            at_once=last,
            keep_last=self._config.checkpoint.keep_last,
            keep_best=self._config.checkpoint.keep_best,
            metric=held_out,
            engine=self._engine.name,
            parent=self._parent,
        )
        self._parent = find.name(state.step)

    def wait(self) -> None:
        """Until the last one is a checkpoint."""
        self._background.wait()


def meters(config: RunConfig, engine: Engine, ranks: Ranks) -> Meters:
    """Stopwatch and, where the device's peak and the model's shape are known, MFU."""
    from bigtrain.telemetry.meters import Meters, device_peak_flops

    peak = device_peak_flops(engine.device, config.precision.name)
    per_token = getattr(engine.model, "flops_per_token", None)
    return Meters(
        engine.device, flops_per_token=per_token, peak_flops=None if peak is None else peak * ranks.world_size
    )


def describe(config: RunConfig, engine: Engine, ranks: Ranks, samples: int, steps: int) -> str:
    """The arithmetic of the run, said once before the first step."""
    import torch

    from bigtrain.telemetry.progress import short

    trainer = config.trainer
    parameters = sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in engine.model.parameters())
    each = accumulation(trainer, ranks.data_ranks)
    warmup = config.schedule.get("warmup_steps") or 0
    note = f"\nnote: schedule.warmup_steps={warmup}: the run ends before its warm-up does" if warmup > steps else ""
    slow = engine.device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if config.precision.name == "bf16" and slow:
        note += "\nnote: this CPU has no instructions for bf16, which takes many times as long: precision=fp32"
    cut = ""
    if ranks.replicas > 1:
        sequence, tensor = config.engine.sequence_parallel, config.engine.tensor_parallel
        cut = (
            f"\n{ranks.world_size} ranks = {ranks.data_ranks} data x {sequence} sequence x {tensor} tensor; those of "
            "sequence and tensor share their samples"
        )
    kind: str = config.precision.name
    if config.precision.fp8:
        from bigtrain.engines.fp8 import shares

        kind += " with {} fp8 products in {} of {} linear layers".format(config.precision.fp8, *shares(engine.model))
    return (
        f"{short(parameters)} parameters, engine {engine.name}, {kind}, {engine.device.type}{cut}\n"
        f"global batch {trainer.global_batch_size} = {ranks.data_ranks} {'data ' * bool(cut)}ranks x "
        f"{trainer.micro_batch_size} samples x "
        f"{each} micro-batches; {steps} steps x {trainer.global_batch_size} = "
        f"{steps * trainer.global_batch_size / samples:.2f} epochs of {samples} samples{note}"
    )


@dataclass(slots=True)
class Assembly:
    """What a run is made of, on the state from which the loop goes on."""

    config: RunConfig
    ranks: Ranks
    data: Any
    schedule: Callable[[int, int], float]
    objective: Objective
    engine: Engine
    steps: int
    state: State
    checkpoint: Checkpoint | None
    """The one that the run goes on from."""
    rng: dict[str, Tensor] | None
    """This rank's random states in it; None: no checkpoint, or another number of ranks."""


def assemble(
    config: RunConfig, ranks: Ranks, data: Any, schedule: Callable[[int, int], float], objective: Objective
) -> Assembly:
    """The engine, and all else that the loop needs, on the state of the newest intact checkpoint in `run.dir`."""
    from bigtrain.engines import build_engine
    from bigtrain.engines.effective import check_effective

    engine = build_engine(
        config, lambda: build_model(config, data), objective, lambda model: build_optimizer(config, model), ranks
    )
    check_effective(config, engine.settings(), ranks)
    state, checkpoint, rng = resume(config, engine, data, ranks)
    steps = total_steps(config, len(data.train))
    end = getattr(data.train, "end", None)
    if end is not None:  # a mixture whose domains run dry: data.when_dry
        steps = min(steps, end // config.trainer.global_batch_size)
    return Assembly(config, ranks, data, schedule, objective, engine, steps, state, checkpoint, rng)


def run_loop(
    parts: Assembly, stop: Stop, log: Callable[[int, Split, Numbers], None], stepped: Callable[[int], None]
) -> bool:
    """Train to the end, the state of `parts` moving along; False where it was stopped on request."""
    from bigtrain import garbage
    from bigtrain.distributed import seed_all, set_rng_state
    from bigtrain.optim import RANGE_TEST
    from bigtrain.trainer import Job, fit

    config, ranks = parts.config, parts.ranks
    saver = Saver(config, parts.engine, ranks, state_of(parts.data), parts.checkpoint)
    job = Job(
        engine=parts.engine,
        objective=parts.objective,
        schedule=parts.schedule,
        batches=DataBatches(parts.data, config, ranks),
        ranks=ranks,
        settings=config.trainer,
        total_steps=parts.steps,
        meters=meters(config, parts.engine, ranks),
        log=log,
        save=saver,
        save_every=config.checkpoint.every,
        stepped=stepped,
        range_test=config.schedule["_target_"] == RANGE_TEST,
    )
    # The last thing before the loop, as an import is enough to draw a random number.
    # Dropout: a stream of its own on each rank, but for those that hold one model together.
    seed_all(config.seed, ranks.rank // config.engine.tensor_parallel)
    if parts.rng is not None:
        set_rng_state(parts.rng)
    with stop.deferred(), garbage.held():
        try:
            return fit(job, parts.state, stop)
        finally:
            saver.wait()
