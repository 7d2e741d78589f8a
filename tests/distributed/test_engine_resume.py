"""Fragments are all there is: a new engine with another seed, put on them, goes on bit for bit as the old one did."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_engine_losses import engines
from tests.support import ran


class Counting(torch.optim.Optimizer):
    """A user's own: its counter is a plain number, and half of its state has another shape than the weights."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state.setdefault("count", 0)
                state.setdefault("mean", torch.zeros_like(parameter))
                state["count"] += 1
                state["mean"].lerp_(parameter.grad, 0.1)
                parameter.add_(state["mean"].sign(), alpha=-group["lr"] / state["count"] ** 0.5)


def counting(model: nn.Module) -> torch.optim.Optimizer:
    return Counting([p for p in model.parameters() if p.requires_grad], lr=3e-3)


def copies(fragments: list[Any]) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    def copy(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in values.items()}

    return [((f.name, f.shape, f.start, f.numel, f.owner), copy(f.tensors), copy(f.extra)) for f in fragments]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def go_on(ranks: Any, name: str, precision: str, build_optimizer: Any, **changes: Any) -> dict[str, Any]:
    """Five steps, a copy of the fragments, five more; then a new engine, the copy loaded, the same five again."""
    from bigtrain.distributed import rng_state, set_rng_state, sum_over_ranks
    from bigtrain.engines import build_engine

    accumulation = 2
    config = tiny.config(name, ranks.world_size, accumulation, precision=precision, **changes)
    build_model = partial(tiny.Tiny, dropout=0.2)
    part = partial(tiny.micro_batches, rank=ranks.rank, world_size=ranks.world_size, accumulation=accumulation)

    def steps(engine: Any, first: int, last: int) -> list[Any]:
        out: list[Any] = []
        for step in range(first, last):
            targets = tiny.NextToken().count(tiny.batch_of(step))
            result = engine.train_step(part(step), targets, tiny.factor(step))
            out.append((float(sum_over_ranks(result.loss.clone())), float(result.grad_norm)))
        return [*out, float(engine.tally(part(0)[0])), copies(engine.fragments())]

    engine = build_engine(config, build_model, tiny.NextToken(), build_optimizer, ranks)
    before = copies(engine.fragments())
    *_, saved = steps(engine, 0, 5)
    scalars, random = engine.scalars(), rng_state()
    straight = steps(engine, 5, 10)
    engine.close()

    config.seed = 99  # other weights: whatever is not restored shows
    engine = build_engine(config, build_model, tiny.NextToken(), build_optimizer, ranks)
    live = engine.fragments(stateful=[name for (name, *_), tensors, _ in saved if len(tensors) > 1])
    laid_out_alike = equal([key for key, *_ in copies(live)], [key for key, *_ in saved])
    for fragment, (_, tensors, extra) in zip(live, saved, strict=True):
        for key, value in tensors.items():
            fragment.tensors[key].copy_(value)
        for key, value in extra.items():
            if isinstance(value, torch.Tensor):
                fragment.extra[key].copy_(value)
            else:
                fragment.extra[key] = value
    engine.loaded()
    engine.load_scalars(scalars)
    set_rng_state(random)
    resumed = steps(engine, 5, 10)
    engine.close()
    return {
        "laid out alike": laid_out_alike,
        "the same to the bit": equal(straight, resumed),
        "it moved": not equal(before, saved) and not equal(saved, straight[-1]),
        "saved": saved,
    }


def all_cases(ranks: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    """On three ranks those alone that cut weights: from there on a sum depends on its order, and DDP and Horovod put
    gradients together as they come. Theirs stay within rounding."""
    names = engines(ranks.world_size) if ranks.world_size < 3 else ["zero3", "zero2", "fsdp"]
    cases = [(name, precision, "adamw") for name in names for precision in ("fp32", "bf16")]
    cases += [(name, "fp32", "counting") for name in ("zero3", "zero2", "zero0", "fsdp", "ddp") if name in names]
    cases += [("fsdp", "fp16", "adamw")]
    optimizers = {"adamw": tiny.adamw, "counting": counting}
    results = {case: go_on(ranks, case[0], case[1], optimizers[case[2]]) for case in cases}
    for name in ("zero3", "fsdp"):
        results[name, "bf16", "whole init"] = go_on(ranks, name, "bf16", tiny.adamw, sharded_init=False)
    return results


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resumed_is_never_stopped(world_size: int) -> None:
    by_rank = run_on_ranks(all_cases, world_size)
    shapes = {name: tuple(value.shape) for name, value in tiny.Tiny().state_dict().items()}
    for case in by_rank[0]:
        for results in by_rank:
            assert results[case]["laid out alike"], case
            assert results[case]["the same to the bit"], case
            assert results[case]["it moved"], case
        saved = [fragment for results in by_rank for fragment in results[case]["saved"]]
        owned: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for (name, shape, start, numel, owner), tensors, extra in saved:
            assert shape == shapes[name], case
            for key, value in tensors.items():
                assert value.numel() == numel, (case, name, key)
                if key != "weight" or case[0] in ("ddp", "local", "fsdp", "horovod"):
                    assert value.dtype == torch.float32, (case, name, key)
                if owner:
                    owned.setdefault((name, key), []).append((start, start + numel))
            if len(tensors) > 1:
                assert {float(number) for number in extra.values()} == {5.0}, (case, name)  # the optimizer's counter
        assert {name for name, _ in owned} == set(shapes), case
        for (name, key), slices in owned.items():  # each element has one owner
            ends = [0, *(end for _, end in sorted(slices))]
            assert [start for start, _ in sorted(slices)] == ends[:-1], (case, name, key, slices)
            assert ends[-1] == torch.Size(shapes[name]).numel(), (case, name, key, slices)
        ran(case[0], "resumed to the bit")
