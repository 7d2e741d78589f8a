"""AutoTP: ranks that hold one model together train as one process does, and their checkpoints are everyone's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bigtrain.config.rules import check_rules
from bigtrain.errors import UserError
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_sequence_parallel import (
    built,
    check_passing_on,
    gpt2,
    refusals,
    right,
    settings,
    steps,
    train,
    worst,
)
from tests.support import ran


def held_together(ranks: Any) -> dict[Any, Any]:
    """(model, engine, accumulation) -> what came of it, two ranks to a model."""
    cases = [("hugging_face", "zero2", 2), ("llama", "zero0", 1), ("gpt2", "zero1", 2)]
    if ranks.world_size == 2:
        cases += [("hugging_face", "zero0", 1), ("llama", "zero2", 2), ("gpt2", "zero0", 2)]
    return {case: train(ranks, *case, tensor=2) for case in cases}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_hold_a_model_together_train_as_one_process(world_size: int) -> None:
    for case, run in run_on_ranks(held_together, world_size)[0].items():
        losses, norms, held_out = worst(run, right()[case[0], False])
        assert losses < 1e-6, (case, losses)
        assert norms < 1e-5, (case, norms)
        assert held_out < 1e-6, (case, held_out)
        assert run[3]["engine.tensor_parallel"] == 2
        assert run[3]["trainer.global_batch_size"] == tiny.GLOBAL_BATCH
        assert run[3]["accumulation"] == case[2]
        ran(case[1], "tensor parallel")


def test_a_checkpoint_of_cut_weights_goes_on_anywhere_and_back(tmp_path: Any) -> None:
    """On four ranks ZeRO's slices end in the middle of a row, in parts that were cut by columns too."""
    cases = [("llama", "zero2", 1, 2), ("gpt2", "zero1", 1, 2), ("hugging_face", "zero0", 1, 2)]
    check_passing_on(cases, 4, str(tmp_path))


def test_what_cannot_be_cut_is_refused_in_words() -> None:
    cut = {"tensor": 2}
    cases = [
        ("tiny", cut, "does not say how it is to be cut"),
        ("three_heads", cut, "does not divide the model's 3 attention heads"),
        ("one_kv_head", cut, "does not divide the model's 1 heads of keys and values"),
        ("bloom", cut, "no plan for tensor parallelism for bloom"),
    ]
    run_on_ranks(refusals, 2, cases)


def with_dropout(ranks: Any) -> Any:
    """What all ranks of a model hold alike, after steps with dropout."""
    made, ranks = built(ranks, settings("zero1", 2, tensor=2), partial(gpt2, dropout=0.3))
    steps(made, ranks, 1, last=5)
    alike = {name: p.detach().clone() for name, p in made.model.named_parameters() if "norm" in name or "embed" in name}
    held = sum(parameter.numel() for parameter in made.model.parameters())
    made.close()
    return alike, held


def test_ranks_that_hold_a_model_together_drop_the_same_activations() -> None:
    (one, held), (other, _) = run_on_ranks(with_dropout, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    whole = sum(parameter.numel() for parameter in gpt2().parameters())
    assert held < 0.75 * whole


def low_precision(ranks: Any) -> Any:
    cut = {"zero1": {"tensor": 2}, "zero2": {"tensor": 2}, "zero3": {"sequence": 2}}
    return {engine: train(ranks, "llama", engine, precision="bf16", **parts) for engine, parts in cut.items()}


def in_bf16(ranks: Any) -> Any:
    return train(ranks, "llama", "zero1", precision="bf16")


def test_bf16_stays_near_what_is_not_cut() -> None:
    alone = run_on_ranks(in_bf16, 1)[0]
    for engine, run in run_on_ranks(low_precision, 2)[0].items():
        losses, _, held_out = worst(run, alone)
        norms = max(abs(a / b - 1) for a, b in zip(run[1], alone[1], strict=True))
        assert losses < 2e-3, (engine, losses)
        assert norms < 3e-3, (engine, norms)
        assert held_out < 1e-3, (engine, held_out)


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ("zero1", {"sequence": 2, "tensor": 2}, "do not go together: set one of them to 1"),
        ("zero1", {"sequence": 2, "compile": True}, "trainer.compile=false"),
        ("zero1", {"sequence": 4, "length": 6}, "does not divide data.sequence_length=6"),
        ("zero3", {"tensor": 2}, "needs engine=zero0 or zero1 or zero2"),
        ("zero0", {"tensor": 2, "precision": "bf16"}, "wrong norm"),
        ("zero0", {"tensor": 2, "optimizer": "bigtrain.optim.muon"}, "looks at whole matrices"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    engine: str, changes: dict[str, Any], message: str
) -> None:
    changes = dict(changes)
    length, optimizer = changes.pop("length", 8), changes.pop("optimizer", "torch.optim.AdamW")
    config = settings(engine, 4, **changes)
    config.data, config.optimizer = {"sequence_length": length}, {"_target_": optimizer}
    with pytest.raises(UserError, match=message):
        check_rules(config, 4)
    if engine == "zero3":
        ran(engine, "tensor parallel", "–")
    config.engine = replace(config.engine, sequence_parallel=1, tensor_parallel=1)
    config.trainer.micro_batch_size = 2
    check_rules(config, 4)
