"""Engines: how a model is spread over ranks, one file an engine, behind one protocol (`base.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bigtrain.config.schema import RunConfig
from bigtrain.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from bigtrain.distributed import Ranks
    from bigtrain.engines.base import Engine, Objective


def build_engine(
    config: RunConfig,
    build_model: Callable[[], nn.Module],
    objective: Objective,
    build_optimizer: Callable[[nn.Module], Optimizer],
    ranks: Ranks,
) -> Engine:
    """The engine that the configuration names, with the model built under `config.seed` and the random streams of the
    ranks started afterwards: the same initial weights and the same streams whatever the engine.

    Raises:
        UserError: the engine, the precision and the device do not go together, or `engine.extra` is wrong.
    """
    from bigtrain.distributed import seed_all
    from bigtrain.engines.fp8 import fp8_products

    seed_all(config.seed)
    if config.engine.name == "auto":
        raise UserError("engine=auto is chosen by `bigtrain train`, `submit` and `plan` only: take what they choose.")
    if config.engine.name in ("local", "ddp"):
        from bigtrain.engines.plain import PlainEngine as Chosen
    elif config.engine.name == "fsdp":
        from bigtrain.engines.fsdp import FsdpEngine as Chosen
    elif config.engine.name == "horovod":
        from bigtrain.engines.horovod import HorovodEngine as Chosen
    else:
        from bigtrain.engines.deepspeed import DeepSpeedEngine as Chosen  # type: ignore[assignment]

    def build() -> nn.Module:
        return fp8_products(build_model(), config.precision, ranks.device)

    engine: Engine = Chosen(config, build, objective, build_optimizer, ranks)
    # Ranks that hold one model together drop the same activations.
    seed_all(config.seed, ranks.rank // config.engine.tensor_parallel)
    return engine
