"""What is planned: the model's shape and the set-up, read from a checked configuration without building anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain import models
from bigtrain.config.launching import check_counts
from bigtrain.config.rules import accumulation, replicas
from bigtrain.config.schema import Hardware, RunConfig
from bigtrain.errors import UserError
from bigtrain.models.shapes import PRESETS, SETTINGS, Shape, laid_over, resolve
from bigtrain.plan.memory import Setup

STATES = {"adamw": 2, "lion": 1, "sgd": 1, "muon": 1, "adafactor": 0}
"""fp32 numbers a parameter that bigtrain's optimizers keep; Adafactor's are sums of rows and columns."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The ranks."""

    nodes: int
    each: int
    """Ranks on a node."""

    @property
    def ranks(self) -> int:
        """In all."""
        return self.nodes * self.each


def cluster(config: RunConfig, hardware: Hardware | None, nodes: int | None = None) -> Cluster:
    """Of `launcher`; where it leaves the ranks of a node open, one for each GPU of the hardware. `nodes` wins.

    Raises:
        UserError: more ranks than GPUs, or fewer than one.
    """
    launcher = config.launcher
    check_counts(launcher)
    gpus = hardware.gpus if hardware else getattr(launcher, "gpus", None)
    each = launcher.processes or gpus or launcher.cpu_processes
    if hardware is not None and hardware.name != "CPU" and 0 < hardware.gpus < each:
        raise UserError(
            f"launcher.processes={each}, and a node of this hardware has {hardware.gpus} GPUs: at most one rank a GPU."
        )
    return Cluster(nodes or launcher.nodes or 1, each)


def vocabulary(config: RunConfig) -> int | None:
    """Tokens, as far as they are known before the data are prepared."""
    own = config.model.get("vocab_size")
    if own is not None:
        return int(own)
    tokenizer = config.data.get("tokenizer")
    if tokenizer is None:
        size = config.data.get("vocab_size")
        return None if size is None else int(size)
    file = Path(str(tokenizer)).expanduser() / "tokenizer.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    ids = [*content["model"]["vocab"].values()] if isinstance(content["model"]["vocab"], dict) else [
        *range(len(content["model"]["vocab"]))
    ]  # fmt: skip
    return int(max([*ids, *(token["id"] for token in content.get("added_tokens", []))])) + 1


def shape_of(config: RunConfig) -> Shape | None:
    """The shape of the native decoder that the configuration asks for; None: it is another model.

    Raises:
        UserError: a vocabulary that nobody knows yet.
    """
    component = config.model
    if component["_target_"] != f"{models.__name__}.decoder":
        return None
    given = {key: component[key] for key in SETTINGS if component.get(key) is not None}
    size = vocabulary(config)
    if size is not None:
        given["vocab_size"] = size
    if component.get("path"):
        return _of_weights(str(component["path"]), given)
    preset = component.get("preset")
    if size is None and "vocab_size" not in PRESETS.get(preset or "", {}):
        raise UserError("how many tokens? They are known when the data are prepared: say model.vocab_size=N for now.")
    if "sequence_length" not in given and config.data.get("sequence_length"):
        given["sequence_length"] = config.data["sequence_length"]
    return resolve(preset, given)


def _of_weights(path: str, given: dict[str, Any]) -> Shape:
    """By their configuration alone; no weights are read."""
    from bigtrain.models.hf import shape_of as of_config
    from bigtrain.models.source import locate, read_config

    shape = of_config(read_config(locate(path, files=["*.json"]), path), path)
    return laid_over(shape, {key: given[key] for key in ("sequence_length",) if key in given}, path)


def setup_of(config: RunConfig, where: Cluster, device: str) -> Setup:
    """How it is trained; a `UserError` where the batch cannot be divided."""
    engine, trainer = config.engine, config.trainer
    data_ranks = where.ranks // replicas(engine)
    optimizer = str(config.optimizer["_target_"]).rpartition(".")[2]
    states = STATES.get(optimizer, 2)
    if optimizer == "sgd" and not config.optimizer.get("momentum"):
        states = 0
    return Setup(
        engine=engine.name,
        ranks=where.ranks // engine.tensor_parallel,
        micro_batch_size=trainer.micro_batch_size,
        sequence_length=int(config.data.get("sequence_length") or 0),
        accumulation=accumulation(trainer, data_ranks),
        precision=config.precision.name,
        activation_checkpointing=trainer.activation_checkpointing,
        device=device,
        optimizer_states=states,
        bucket_size=engine.bucket_size,
        offload_optimizer=engine.offload_optimizer is not None,
        offload_parameters=engine.offload_parameters is not None,
        activation_offload=trainer.activation_offload,
        tensor_parallel=engine.tensor_parallel,
        sequence_parallel=engine.sequence_parallel,
        fp8=config.precision.fp8,
    )
