"""What ranks say to each other."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from bigtrain.distributed import rng_state, seed_all, set_rng_state
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks


def talk(ranks: Any) -> dict[str, Any]:
    from bigtrain import distributed
    from bigtrain.engines import build_engine
    from bigtrain.errors import UserError

    def first_only() -> str:
        assert ranks.first
        return "done by the first"

    def users_fault() -> None:
        raise UserError("no such file")

    def our_fault() -> None:
        raise ValueError("a bug")

    answers: dict[str, Any] = {
        "sum": distributed.sum_over_ranks(torch.tensor([1.0 + ranks.rank, 10.0])).tolist(),
        "max": distributed.max_over_ranks(torch.tensor([ranks.rank, -ranks.rank])).tolist(),
        "hosts": distributed.sum_on_hosts(ranks, 5, ranks.rank),
        "object": distributed.broadcast_object({"rank": ranks.rank}),
        "first": distributed.run_on_first(first_only),
        "device": str(ranks.device),
    }
    for name, fault in (("user", users_fault), ("failed", our_fault)):
        try:
            distributed.run_on_first(fault)
        except Exception as error:
            answers[name] = (type(error).__name__, str(error))
    for name, engine, changes in (
        ("local on two", "local", {}),
        ("unknown key", "zero2", {"extra": {"zero_optimization": {"overlap_com": True}}}),
        ("no checkpointing", "ddp", {"activation_checkpointing": "full"}),
        ("adagrad", "zero1", {}),
        ("extra", "ddp", {"extra": {"dump_state": True}}),
    ):
        optimizer = (lambda model: torch.optim.Adagrad(model.parameters())) if name == "adagrad" else tiny.adamw
        with pytest.raises(UserError) as caught:
            build_engine(
                tiny.config(engine, ranks.world_size, **changes), tiny.Tiny, tiny.NextToken(), optimizer, ranks
            )
        answers[name] = str(caught.value)

    def no_such_model() -> Any:
        raise UserError("no such model")

    with pytest.raises(UserError, match="no such model"):  # rank 0 alone builds it; the other must not wait for ever
        build_engine(tiny.config("zero3", 2), no_such_model, tiny.NextToken(), tiny.adamw, ranks)
    distributed.barrier()
    return answers


def test_ranks_agree() -> None:
    first, second = run_on_ranks(talk, 2)
    for answers in (first, second):
        assert answers["sum"] == [3.0, 20.0]
        assert answers["max"] == [1, 0]
        assert answers["hosts"] == (10, 1)
        assert answers["object"] == {"rank": 0}
        assert answers["first"] == "done by the first"
        assert answers["device"] == "cpu"
        assert answers["user"] == ("UserError", "no such file")
        assert "engine=ddp" in answers["local on two"]
        assert "Did you mean 'overlap_comm'?" in answers["unknown key"]
        assert "trainer.activation_checkpointing=none" in answers["no checkpointing"]
        assert "Adagrad" in answers["adagrad"]
        assert "engine.extra is for DeepSpeed" in answers["extra"]
    assert first["failed"] == ("ValueError", "a bug")
    assert second["failed"] == ("RuntimeError", "rank 0 failed: ValueError: a bug")


def dies(ranks: Any) -> None:
    assert ranks.rank == 0, "the second rank's own words"


def test_the_helper_shows_the_traceback_of_the_rank_that_failed() -> None:
    with pytest.raises(AssertionError, match="the second rank's own words"):
        run_on_ranks(dies, 2)


def test_random_states_come_back_as_plain_tensors() -> None:
    seed_all(3, rank=1)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.randn()

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), float(np.random.randn()), float(torch.rand(()))]

    state = rng_state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    first = draw()
    assert draw() != first
    set_rng_state(state)
    assert draw() == first


def test_streams_differ_between_ranks_and_from_the_models() -> None:
    def stream(rank: int | None) -> tuple[float, float, float]:
        seed_all(3, rank)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert stream(0) == stream(0)
    assert len({stream(None), stream(0), stream(1)}) == 3


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "cpu True"),
        ({"device": "cuda"}, "0 usable GPUs"),
        ({"RANK": "0"}, "WORLD_SIZE is not"),
    ],
)
def test_setup_alone(environment: dict[str, str], said: str) -> None:
    if "device" in environment and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code = (
        "from bigtrain.distributed import setup, teardown\n"
        "from bigtrain.errors import UserError\n"
        "try:\n"
        f"    ranks = setup({environment.pop('device', 'cpu')!r})\n"
        "    import torch.distributed as dist\n"
        "    print(ranks.device, dist.is_initialized())\n"
        "    teardown()\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert said in done.stdout
