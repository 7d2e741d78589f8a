"""Optimizer and weights in the host's memory: the same losses, the same state, and any engine goes on from it."""

from __future__ import annotations

from typing import Any

from tests.distributed import deepspeed_runs as runs
from tests.distributed import plain_loop, tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

OFFLOADED = {
    "zero1": {"offload_optimizer": "cpu"},
    "zero2": {"offload_optimizer": "cpu"},
    "zero3": {"offload_optimizer": "cpu", "offload_parameters": "cpu"},
    "zero3, weights only": {"offload_parameters": "cpu"},
}


def engine_of(case: str) -> str:
    return case.partition(",")[0]


def equal(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> bool:
    return one.keys() == other.keys() and all(
        float((one[name][key] == other[name][key]).all() if hasattr(one[name][key], "all") else 1)
        for name in one
        for key in one[name]
    )


def losses(ranks: Any) -> dict[Any, Any]:
    """Of each case in fp32 and bf16, and of the same engine without offload in bf16."""
    found: dict[Any, Any] = {}
    for case, settings in OFFLOADED.items():
        for precision, accumulation, more in (("fp32", 1, settings), ("fp32", 2, settings), ("bf16", 2, settings)):
            engine = runs.build(ranks, engine_of(case), accumulation=accumulation, precision=precision, lr=2e-3, **more)
            found[case, precision, accumulation] = runs.step(ranks, engine, 0, runs.STEPS, accumulation)
            said = engine.settings()
            assert {f"engine.{key}": value for key, value in settings.items()}.items() <= said.items(), said
            engine.close()
    engine = runs.build(ranks, "ddp", precision="bf16", lr=2e-3)
    found["ddp"] = runs.step(ranks, engine, 0, runs.STEPS)
    engine.close()
    return found


def test_losses_are_those_of_a_plain_loop() -> None:
    plain = list(
        zip(*plain_loop.losses_and_norms(tiny.Tiny, 2e-3, runs.STEPS, runs.CLIP), strict=True),
    )
    found = run_on_ranks(losses, 2)[0]
    low = found.pop("ddp")
    for case, steps in found.items():
        right, allowed = (plain, 1e-6) if case[1] == "fp32" else (low, 2e-3)
        for (loss, norm), (right_loss, right_norm) in zip(steps, right, strict=True):
            assert abs(loss - right_loss) < allowed, (case, loss, right_loss)
            assert abs(norm - right_norm) < 20 * allowed, (case, norm, right_norm)
    for engine in ("zero2_offload", "zero3_offload"):
        ran(engine, "bf16")


def chains(ranks: Any) -> dict[Any, bool]:
    """Five steps, the state carried to a new engine of other weights, five more: is it the straight run to the bit?
    Then the same with another engine, near to it."""
    found: dict[Any, bool] = {}
    for case, settings in OFFLOADED.items():
        for precision in ("fp32", "bf16"):
            name = engine_of(case)
            engine = runs.build(ranks, name, precision=precision, **settings)
            runs.step(ranks, engine, 0, 5)
            saved = runs.whole(engine)
            straight = runs.step(ranks, engine, 5, 10)
            end = runs.whole(engine)
            engine.close()
            assert "exp_avg" in saved["up.weight"]
            engine = runs.build(ranks, name, precision=precision, seed=99, **settings)
            runs.put(engine, saved)
            assert equal(runs.whole(engine), saved)
            found[case, precision, "exact"] = runs.step(ranks, engine, 5, 10) == straight
            found[case, precision, "same end"] = equal(runs.whole(engine), end)
            engine.close()
            if precision == "bf16":
                continue
            for other, more in (("ddp", {}), ("zero3", {}), ("zero2", {"offload_optimizer": "cpu"})):
                engine = runs.build(ranks, other, precision=precision, seed=99, **more)
                runs.put(engine, saved)
                there = runs.step(ranks, engine, 5, 10)
                found[case, precision, other] = all(
                    abs(a - b) < 1e-6 for (a, _), (b, _) in zip(there, straight, strict=True)
                )
                engine.close()
    return found


def test_resume_is_exact_and_any_engine_goes_on() -> None:
    for found in run_on_ranks(chains, 2):
        assert [case for case, right in found.items() if not right] == []
    for engine in ("zero2_offload", "zero3_offload"):
        ran(engine, "resumed to the bit")
