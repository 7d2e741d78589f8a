"""FSDP2: what is wrapped, where the weights come from, and what one rank's fault or absence means for all."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.distributed import Ranks
from bigtrain.engines.fsdp import blocks
from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_sharded_init import Marked, Unpicklable
from tests.support import ran

NATIVE = partial(decoder, vocab_size=tiny.VOCAB, sequence_length=tiny.LENGTH, layers=3, heads=2, width=16, tied=True)
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 30, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip


class Sides(tiny.Tiny):
    """Each rank uses weights that the others do not; some are used by none."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ParameterList(torch.ones(tiny.HIDDEN) for _ in range(3))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * self.sides[int(os.environ["RANK"])].mean()


class Scalar(tiny.Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))


class Siblings(nn.Module):
    """Layers that share a matrix, beside layers that share none; and a short list of small things."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)])) for _ in range(4))
        self.layers[1][0].weight = self.layers[0][0].weight


def test_the_blocks_of_any_model() -> None:
    native = NATIVE()
    assert blocks(native) == list(native.blocks)
    llama = hugging_face(config=LLAMA, vocab_size=tiny.VOCAB, sequence_length=tiny.LENGTH)
    assert blocks(llama) == list(llama.hf.model.layers)
    siblings = Siblings()
    assert blocks(siblings) == list(siblings.layers)[2:]
    assert blocks(tiny.Tiny()) == []


def build(ranks: Ranks, model: Any, optimizer: Any = tiny.adamw, **changes: Any) -> Any:
    from bigtrain.engines import build_engine

    return build_engine(tiny.config("fsdp", ranks.world_size, 2, **changes), model, tiny.NextToken(), optimizer, ranks)


def step(ranks: Ranks, engine: Any, number: int) -> float:
    from bigtrain.distributed import sum_over_ranks

    targets = tiny.NextToken().count(tiny.batch_of(number))
    part = tiny.micro_batches(number, ranks.rank, ranks.world_size, 2)
    return float(sum_over_ranks(engine.train_step(part, targets, 1.0).loss))


def starts(ranks: Ranks) -> dict[str, Any]:
    """For each model: this rank's slices before training, how often it was built, what the optimizer saw, all that is
    the model's own."""
    from bigtrain.distributed import seed_all

    models = {"tied": Marked, "unpicklable": Unpicklable, "gpt2": tiny.gpt2, "native": NATIVE}
    answers = {}
    for name, build_model in models.items():
        built, seen = [], []

        def counted(build_model: Any = build_model, built: list[int] = built) -> nn.Module:
            built.append(1)
            return build_model()

        def optimizer(model: nn.Module, seen: list[Any] = seen) -> torch.optim.Optimizer:
            seen += [(key, tuple(p.shape), getattr(p, "mine", None)) for key, p in model.named_parameters()]
            return torch.optim.Adagrad([p for p in model.parameters() if p.requires_grad], initial_accumulator_value=1)

        engine = build(ranks, counted, optimizer)
        slices = [(f.name, f.start, {key: value.clone() for key, value in f.tensors.items()})
                  for f in engine.fragments()]  # fmt: skip
        units = engine.settings()["units"]
        engine.close()
        seed_all(7)
        right = {key: value.detach() for key, value in build_model().named_parameters()}
        answers[name] = {"slices": slices, "built": len(built), "seen": seen, "right": right, "units": units}
    return answers


def test_rank_0_builds_and_each_keeps_a_slice() -> None:
    by_rank = run_on_ranks(starts, 2)
    for name, first in by_rank[0].items():
        right, covered = first["right"], dict.fromkeys(first["right"], 0)
        for answers in by_rank:
            for key, start, tensors in answers[name]["slices"]:
                if key not in right:
                    continue  # a buffer
                values = tensors["weight"]
                assert torch.equal(values, right[key].flatten()[start : start + len(values)]), (name, key)
                assert len(tensors) == 1 or torch.equal(
                    tensors["sum"], torch.ones_like(values)
                )  # Adagrad's, made early
                covered[key] += len(values)
            assert [(key, shape) for key, shape, _ in answers[name]["seen"]] == [
                (key, tuple(value.shape)) for key, value in right.items()
            ]
        assert covered == {key: value.numel() for key, value in right.items()}
        held = [sum(len(t["weight"]) for _, _, t in answers[name]["slices"]) for answers in by_rank]
        assert max(held) < 0.6 * sum(held), name
        assert [answers[name]["built"] for answers in by_rank] == ([1, 1] if name == "unpicklable" else [1, 0])
    assert {mark for *_, mark in by_rank[1]["tied"]["seen"]} == {None, "kept"}
    assert [by_rank[0][name]["units"] for name in ("tied", "gpt2", "native")] == [1, 2, 4]
    ran("fsdp", "Hugging Face")


def trains(ranks: Ranks) -> dict[str, Any]:
    """What two ranks are asked in one job: held-out losses between steps, sides, an overflow on one rank, a refusal."""
    batch = tiny.micro_batches(30, ranks.rank, ranks.world_size, 2)[0]
    answers: dict[str, Any] = {"evals": []}
    engine = build(ranks, tiny.gpt2)
    for number in range(3):
        step(ranks, engine, number)
        answers["evals"].append(float(engine.tally(batch)))
    for fragment in engine.fragments():  # gathered weights of the evaluation must not outlive what is loaded
        fragment.tensors["weight"].zero_()
    engine.loaded()
    answers["zeros"] = float(engine.tally(batch)) / tiny.NextToken().count(batch)
    engine.close()

    if hasattr(torch.distributed.fsdp.FSDPModule, "set_reduce_scatter_unused_params"):
        engine = build(ranks, Sides)
        step(ranks, engine, 0)
        answers["sides"] = {f.name: float(f.tensors["weight"].mean()) for f in engine.fragments() if "sides" in f.name}
        engine.close()

    config = tiny.config("fsdp", ranks.world_size, 2, precision="fp16")
    engine = build(ranks, tiny.Tiny, precision="fp16")
    step(ranks, engine, 0)
    before = [f.tensors["weight"].clone() for f in engine.fragments()]
    scale = engine.scalars()["loss_scale"]
    part = tiny.micro_batches(1, ranks.rank, ranks.world_size, 2)
    hook = None
    if ranks.rank == 1:  # an overflow that rank 0 does not see
        hook = engine.model.norm.register_forward_hook(lambda module, inputs, output: output * float("inf"))
    result = engine.train_step(part, 50, 1.0)
    if hook is not None:
        hook.remove()
    after = [f.tensors["weight"] for f in engine.fragments()]
    answers["overflow"] = (
        all(map(torch.equal, before, after)),
        engine.scalars()["loss_scale"] / scale,
        torch.isfinite(torch.as_tensor(result.grad_norm)).item(),
        config.precision.initial_loss_scale == scale,
    )
    engine.close()
    with pytest.raises(UserError, match=r"temperature has none: give it the shape \(1,\), or take engine=ddp"):
        build(ranks, Scalar)
    return answers


def alone(ranks: Ranks) -> list[list[float]]:
    """The held-out losses of `trains` for each of two ranks, by one process."""
    from bigtrain.engines import build_engine

    config = tiny.config("local", 1)
    engine = build_engine(config, tiny.gpt2, tiny.NextToken(), tiny.adamw, ranks)
    losses = []
    for number in range(3):
        engine.train_step([tiny.batch_of(number)], tiny.NextToken().count(tiny.batch_of(number)), 1.0)
        losses.append([float(engine.tally(tiny.micro_batches(30, rank, 2, 2)[0])) for rank in range(2)])
    return losses


def test_two_ranks() -> None:
    right = run_on_ranks(alone, 1)[0]
    by_rank = run_on_ranks(trains, 2)
    for rank, answers in enumerate(by_rank):
        assert answers["evals"] == pytest.approx([both[rank] for both in right], rel=1e-6)
        assert answers["zeros"] == pytest.approx(torch.tensor(float(tiny.VOCAB)).log().item())
        assert answers["overflow"] == (True, 0.5, False, True), rank
    for rank in range(len(by_rank)):
        sides = by_rank[rank].get("sides", {})
        assert all((value != 1) == (key != "sides.2") for key, value in sides.items()), sides
