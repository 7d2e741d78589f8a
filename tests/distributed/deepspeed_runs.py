"""Short runs of DeepSpeed's engines with any setting, and their state carried from one engine to another."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from tests.distributed import tiny

LR, STEPS, CLIP = 1e-2, 20, 0.2


def build(ranks: Any, name: str, *, accumulation: int = 2, precision: str = "fp32", seed: int = 7, **settings: Any):  # type: ignore[no-untyped-def]
    """An engine of the tiny model; `model`, `lr` and `window` (of the loss scale) beside the settings of `engine`."""
    from bigtrain.engines import build_engine

    model, lr, window = settings.pop("model", tiny.Tiny), settings.pop("lr", LR), settings.pop("window", 1000)
    config = tiny.config(name, ranks.world_size, accumulation, precision=precision, grad_clip=CLIP)
    config.seed, config.precision.loss_scale_window = seed, window
    for key, value in settings.items():
        assert hasattr(config.engine, key)
        setattr(config.engine, key, value)
    return build_engine(config, model, tiny.NextToken(), partial(tiny.adamw, lr=lr), ranks)


def step(ranks: Any, engine: Any, first: int, last: int, accumulation: int = 2) -> list[tuple[float, float]]:
    """Loss and gradient norm of the steps [first, last)."""
    from bigtrain.distributed import sum_over_ranks

    results = []
    for number in range(first, last):
        targets = tiny.NextToken().count(tiny.batch_of(number))
        part = tiny.micro_batches(number, ranks.rank, ranks.world_size, accumulation)
        result = engine.train_step(part, targets, tiny.factor(number))
        results.append((float(sum_over_ranks(result.loss.clone())), float(result.grad_norm)))
    return results


def whole(engine: Any) -> dict[str, dict[str, Any]]:
    """All that the engine's fragments hold, over all ranks: for each name its whole tensors, flat, and numbers."""
    from bigtrain.distributed import gather_objects

    mine = [
        (
            f.name,
            f.shape,
            f.start,
            {key: value.cpu().clone() for key, value in f.tensors.items()},
            copy.deepcopy(f.extra),
        )
        for f in engine.fragments()
        if f.owner
    ]
    found: dict[str, dict[str, Any]] = {}
    for name, shape, start, tensors, extra in (one for rank in gather_objects(mine) for one in rank):
        for key, value in tensors.items():
            into = found.setdefault(name, {}).setdefault(key, torch.full([torch.Size(shape).numel()], float("nan")))
            into[start : start + len(value)] = value
        found.setdefault(name, {}).update(extra)
    return found


def put(engine: Any, state: dict[str, dict[str, Any]], scalars: dict[str, Any] | None = None) -> None:
    """Load what `whole` returned, of whichever engine."""
    for f in engine.fragments(stateful=[name for name, tensors in state.items() if len(tensors) > 1]):
        for key, value in f.tensors.items():
            value.copy_(state[f.name][key][f.start : f.start + f.numel])
        for key in f.extra:
            given = state[f.name][key]
            if isinstance(f.extra[key], torch.Tensor):
                f.extra[key].copy_(torch.as_tensor(given))
            else:
                f.extra[key] = given
    engine.load_scalars(scalars or {})
    engine.loaded()


def initial_weights(model: Any = tiny.Tiny, seed: int = 7) -> dict[str, torch.Tensor]:
    """The weights that the model's own code makes."""
    from bigtrain.distributed import seed_all

    seed_all(seed)
    built: nn.Module = model()
    return {name: p.detach().clone() for name, p in built.named_parameters()}
