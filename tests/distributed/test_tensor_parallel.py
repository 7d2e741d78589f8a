"""AutoTP: ranks that hold one model together train as one process does, and their checkpoints are everyone's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_sequence_parallel import alone, check_passing_on, refusals, train, worst


def held_together(ranks: Any) -> dict[Any, Any]:
    """(model, engine, accumulation) -> what came of it, two ranks to a model."""
    cases = [("hugging_face", "zero2", 2), ("llama", "zero0", 1), ("gpt2", "zero1", 2)]
    if ranks.world_size == 2:
        cases += [("hugging_face", "zero0", 1), ("llama", "zero2", 2), ("gpt2", "zero0", 2)]
    return {case: train(ranks, *case, tensor=2) for case in cases}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_hold_a_model_together_train_as_one_process(world_size: int) -> None:
    right = run_on_ranks(alone, 1)[0]
    for case, run in run_on_ranks(held_together, world_size)[0].items():
        losses, norms, held_out = worst(run, right[case[0], False])
        assert losses < 2e-6, (case, losses)
        assert norms < 1e-5, (case, norms)
        assert held_out < 1e-6, (case, held_out)
        assert run[3]["engine.tensor_parallel"] == 2
        assert run[3]["trainer.global_batch_size"] == tiny.GLOBAL_BATCH
        assert run[3]["accumulation"] == case[2]


def test_a_checkpoint_of_cut_weights_goes_on_anywhere_and_back(tmp_path: Any) -> None:
    """On four ranks ZeRO's slices end in the middle of a row, in parts that were cut by columns too."""
    cases = [("llama", "zero2", 1, 2), ("gpt2", "zero1", 1, 2), ("hugging_face", "zero0", 1, 2)]
    check_passing_on(cases, 4, str(tmp_path))


def test_what_cannot_be_cut_is_refused_in_words() -> None:
    cut = {"tensor": 2}
    cases = [
        ("mixing", cut, "does not say how it is to be cut"),
        ("three_heads", cut, "does not divide the model's 3 attention heads"),
        ("one_kv_head", cut, "does not divide the model's 1 heads of keys and values"),
        ("bloom", cut, "no plan for tensor parallelism for bloom"),
    ]
    run_on_ranks(refusals, 2, cases)
