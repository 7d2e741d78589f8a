"""Low precision: masters start from unrounded weights, and one loss scale means the same to every engine; ZeRO++'s
second partition changes nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.distributed import deepspeed_runs as runs
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

STAGES = ("zero0", "zero1", "zero2", "zero3")
LR = 2e-3


def masters(ranks: Any) -> list[Any]:
    """The cases where the masters right after building are not the model's own fp32 weights."""
    cases = [(name, precision, {}) for precision in ("bf16", "fp16") for name in STAGES]
    cases += [("zero3", "bf16", {"sharded_init": False}), ("zero3", "bf16", {"offload_optimizer": "cpu"})]
    cases += [("zero2", "bf16", {"offload_optimizer": "cpu"})]
    own, wrong = runs.initial_weights(), []
    for name, precision, settings in cases:
        engine = runs.build(ranks, name, precision=precision, **settings)
        found = runs.whole(engine)
        for key, weight in own.items():
            frozen = key == "frozen"  # has no master; its ones are exact
            if not torch.equal(found[key]["weight"], weight.flatten().to(found[key]["weight"].dtype)) and not frozen:
                wrong.append((name, precision, settings, key))
        low = next(p for n, p in engine.model.named_parameters() if n == "up.weight")
        held = getattr(low, "ds_tensor", low)
        assert held.dtype is {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        said = engine.settings()
        assert said["precision.name"] == precision and said["engine.name"] == name
        engine.close()
    return wrong


def like_local(ranks: Any) -> dict[str, list[float]]:
    """bf16 losses of 20 steps."""
    found = {}
    for name in (*STAGES, "ddp"):
        engine = runs.build(ranks, name, precision="bf16", lr=LR)
        found[name] = [loss for loss, _ in runs.step(ranks, engine, 0, runs.STEPS)]
        engine.close()
    return found


def in_bf16(ranks: Any) -> tuple[Any, Any]:
    from bigtrain.engines.deepspeed_start import import_deepspeed

    import_deepspeed(ranks.device).get_accelerator().is_fp16_supported = lambda: True
    return masters(ranks), like_local(ranks)


def test_masters_are_the_models_own_weights_and_losses_are_near() -> None:
    for wrong, losses in run_on_ranks(in_bf16, 2):
        assert wrong == []
        for name, own in losses.items():
            assert max(abs(a - b) for a, b in zip(own, losses["ddp"], strict=True)) < 2e-3, name


class Infinite(torch.autograd.Function):
    """The same values, and infinite gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float("inf")


class Overflowing(tiny.Tiny):
    """Overflows at the steps 1 and 7."""

    step = 0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input_ids)
        return Infinite.apply(logits) if Overflowing.step in (1, 7) else logits  # type: ignore[no-any-return]


def scales(ranks: Any) -> dict[Any, Any]:
    """For each engine the loss scale and its counter after each of 12 steps with a window of 3, twice: straight, and
    resumed after 5 from each other engine."""
    from bigtrain.engines.deepspeed_start import import_deepspeed

    import_deepspeed(ranks.device).get_accelerator().is_fp16_supported = lambda: True
    build = partial(runs.build, ranks, precision="fp16", window=3, lr=LR, model=Overflowing)

    def go(engine: Any, first: int, last: int) -> list[dict[str, Any]]:
        seen = []
        for number in range(first, last):
            Overflowing.step = number
            runs.step(ranks, engine, number, number + 1)
            seen.append(engine.scalars())
        return seen

    found: dict[Any, Any] = {}
    saved = {}
    for name in (*STAGES, "ddp"):
        engine = build(name)
        start = go(engine, 0, 5)
        saved[name] = runs.whole(engine), engine.scalars()
        found[name] = start + go(engine, 5, 12)
        engine.close()
    for name, source in (
        ("zero0", "ddp"),
        ("zero1", "zero3"),
        ("zero2", "zero2"),
        ("zero3", "zero1"),
        ("ddp", "zero2"),
    ):
        engine = build(name, seed=99)
        runs.put(engine, *saved[source])
        assert engine.scalars() == saved[source][1]
        found[name, source] = found[source][:5] + go(engine, 5, 12)
        engine.close()
    return found


def test_the_loss_scale_is_one_number_to_all_engines() -> None:
    for found in run_on_ranks(scales, 2):
        right = [(65536, 1), (32768, 0), (32768, 1), (32768, 2), (65536, 0), (65536, 1), (65536, 2)]
        right += [(32768, 0), (32768, 1), (32768, 2), (65536, 0), (65536, 1)]
        for case, seen in found.items():
            assert [(one["loss_scale"], one["good_steps"]) for one in seen] == right, case


def hierarchical(ranks: Any) -> dict[int | None, Any]:
    found: dict[int | None, Any] = {}
    for share in (None, 2, 4):
        engine = runs.build(ranks, "zero3", accumulation=1, extra=SMALL, hierarchical_partition=share)
        found[share] = runs.step(ranks, engine, 0, 6, 1)
        assert engine.settings()["engine.hierarchical_partition"] == share
        engine.close()
    return found


SMALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}  # else all of the tiny model stays whole


def test_a_second_partition_changes_nothing() -> None:
    found = run_on_ranks(hierarchical, 4)[0]
    for share, steps in found.items():
        for (loss, norm), (right, right_norm) in zip(steps, found[None], strict=True):
            assert abs(loss - right) < 1e-6, share
            assert abs(norm - right_norm) < 1e-5, share
    ran("zeropp", "second partition")


def refused(ranks: Any) -> None:
    from bigtrain.errors import UserError

    for key in ("quantized_weights", "quantized_gradients"):
        with pytest.raises(UserError, match=f"engine.{key} runs on a GPU only"):
            runs.build(ranks, "zero3", **{key: True})


def test_quantised_messages_need_a_gpu() -> None:
    run_on_ranks(refused, 1)
    ran("zeropp", "quantised messages", "GPU")
