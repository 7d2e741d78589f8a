"""Every engine, on any number of ranks and with any accumulation, trains as a plain PyTorch loop does."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from typing import Any

import pytest

from bigtrain.models import decoder
from tests.distributed import plain_loop, tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

STEPS, CLIP = 20, 0.2
RATE = {"Tiny": 1e-2, "gpt2": 1e-3}
SLOW = 2e-3  # rounding grows with the steps that Adam takes on small gradients
WIDE = partial(decoder, vocab_size=tiny.VOCAB, sequence_length=tiny.LENGTH, layers=2, heads=2, width=32, tied=True)
MODELS = {"Tiny": tiny.Tiny, "gpt2": tiny.gpt2, "wide": WIDE}


def train(
    ranks: Any, engine: str, accumulation: int = 1, model: str = "Tiny", lr: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Losses, gradient norms and effective settings of a short run of an engine."""
    from bigtrain.distributed import sum_over_ranks
    from bigtrain.engines import build_engine

    config = tiny.config(engine, ranks.world_size, accumulation, grad_clip=CLIP, **changes)
    objective = tiny.NextToken()
    built = build_engine(config, MODELS[model], objective, partial(tiny.adamw, lr=lr or RATE[model]), ranks)
    losses, norms = [], []
    for step in range(STEPS):
        targets = objective.count(tiny.batch_of(step))
        part = tiny.micro_batches(step, ranks.rank, ranks.world_size, accumulation)
        result = built.train_step(part, targets, tiny.factor(step))
        losses.append(float(sum_over_ranks(result.loss.clone())))
        norms.append(float(result.grad_norm))
    settings = built.settings()
    built.close()
    return {"losses": losses, "norms": norms, "settings": settings}


def engines(world_size: int) -> list[str]:
    """All that this machine has; Horovod has a build step of its own (test_horovod.py says so where it is missing)."""
    extra = (["local"] if world_size == 1 else []) + (["horovod"] if importlib.util.find_spec("horovod") else [])
    return ["zero3", "zero2", "zero1", "zero0", *tiny.OFFLOADED, "fsdp", "ddp", *extra]


def furthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def in_fp32(ranks: Any) -> dict[tuple[str, str, int], dict[str, Any]]:
    splits = (1, 4) if ranks.world_size == 2 else (2,)
    cases = [("Tiny", engine, accumulation) for engine in engines(ranks.world_size) for accumulation in splits]
    cases += [("gpt2", engine, 2) for engine in engines(ranks.world_size) if ranks.world_size in (2, 3)]
    return {case: train(ranks, case[1], case[2], case[0]) for case in cases}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_fp32_is_a_plain_loop(world_size: int) -> None:
    plain = {name: plain_loop.losses_and_norms(MODELS[name], RATE[name], STEPS, CLIP) for name in RATE}
    runs = run_on_ranks(in_fp32, world_size)[0]
    for case, run in runs.items():
        losses, norms = plain[case[0]]
        assert furthest(run["losses"], losses) < 1e-6, case  # of losses near 4: two steps of fp32
        assert furthest(run["norms"], norms) < 1e-5, case
        assert abs(run["losses"][0] / math.log(tiny.VOCAB) - 1) < 0.02, case
        settings = run["settings"]
        assert settings["engine.name"] == case[1].removesuffix("_offload")
        assert settings["world_size"] == world_size
        assert settings["trainer.grad_clip"] == CLIP
        assert settings["precision.name"] == "fp32"
        assert settings["lr"] == [RATE[case[0]]] * 2
        if "zero" in case[1]:
            assert settings["accumulation"] == case[2]
            assert settings["trainer.global_batch_size"] == tiny.GLOBAL_BATCH
    for model, engine, _ in runs:
        ran(engine, f"{world_size} rank{'s' * (world_size > 1)}")
        if model == "gpt2":
            ran(engine, "Hugging Face")


@pytest.mark.parametrize("name", RATE)
def test_the_data_would_show_a_wrong_normaliser_or_a_missing_clip(name: str) -> None:
    """What the comparison above is worth: these faults are hundreds of times larger than what it allows."""
    right, norms = plain_loop.losses_and_norms(MODELS[name], RATE[name], STEPS, CLIP)
    averaged, _ = plain_loop.losses_and_norms(MODELS[name], RATE[name], STEPS, CLIP, bug="averages of averages")
    unclipped, _ = plain_loop.losses_and_norms(MODELS[name], RATE[name], STEPS, clip=None)
    assert min(norms) > CLIP
    assert furthest(averaged, right) > 5e-4
    assert furthest(unclipped, right) > 5e-4


def in_low_precision(ranks: Any, names: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    from bigtrain.engines.deepspeed_start import import_deepspeed
    from bigtrain.errors import UserError

    with pytest.raises(UserError, match=r"fp16.*precision=bf16"):
        train(ranks, "zero2", precision="fp16")
    # A CPU can do fp16, slowly. DeepSpeed would rather not, but its code for it is the same as on a GPU.
    import_deepspeed(ranks.device).get_accelerator().is_fp16_supported = lambda: True
    return {
        (precision, engine): train(ranks, engine, 2, precision=precision, lr=SLOW)
        for precision in ("bf16", "fp16")
        for engine in names
    }


def test_low_precision_stays_near() -> None:
    losses, _ = plain_loop.losses_and_norms(tiny.Tiny, SLOW, STEPS, CLIP)
    runs = run_on_ranks(in_low_precision, 2, engines(2))[0] | run_on_ranks(in_low_precision, 1, ["local"])[0]
    for (precision, engine), run in runs.items():
        assert furthest(run["losses"], losses) < {"bf16": 2e-3, "fp16": 2e-4}[precision], (precision, engine)
        assert run["settings"]["precision.name"] == precision
        if engine != "zero0":  # which sums in the precision of its weights; ddp has no choice to report
            assert run["settings"].get("gradient_precision", "float32") == "float32"
        ran(engine, precision)


def in_fp8(ranks: Any, names: list[str]) -> dict[tuple[str, str | None], list[float]]:
    kinds = (None, "rowwise", "tensorwise") if names == ["local"] else (None, "rowwise")
    return {
        (engine, kind): train(ranks, engine, 2, "wide", lr=SLOW, precision="bf16", fp8=kind)["losses"]
        for engine in names
        for kind in kinds
    }


def test_fp8_stays_near() -> None:
    """Products of 8 bits for real: torch's CPU kernels compute them too."""
    losses, _ = plain_loop.losses_and_norms(WIDE, SLOW, STEPS, CLIP)
    runs = run_on_ranks(in_fp8, 2, engines(2))[0] | run_on_ranks(in_fp8, 1, ["local"])[0]
    for (engine, kind), found in runs.items():
        if kind is not None:
            assert furthest(found, losses) < 1e-2, (engine, kind, furthest(found, losses))
            assert furthest(found, runs[engine, None]) > 1e-5, (engine, kind)  # they are
            ran(engine, "fp8")
