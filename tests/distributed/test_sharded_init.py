"""ZeRO-3 starts from the weights that the model's own code makes, whosever it is, and only rank 0 makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks


class Unpicklable(tiny.Tiny):
    """Its modules cannot be sent to another rank."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = lambda x: torch.relu(x)
        self.up.weight.mine = "kept"  # type: ignore[attr-defined]


class Marked(tiny.Tiny):
    """A parameter with an attribute that its optimizer wants to see, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.up.weight.mine = "kept"  # type: ignore[attr-defined]
        self.head.weight = self.embedding.weight


def initial_weights(ranks: Any, folder: str) -> dict[str, Any]:
    """For each model: this rank's slices of the weights, how often it built the model, what its optimizer saw."""
    from transformers import GPT2LMHeadModel

    from bigtrain.distributed import seed_all
    from bigtrain.engines import build_engine

    models = {
        "native": Marked,
        "unpicklable": Unpicklable,
        "from a config": tiny.gpt2,
        "pretrained": lambda: GPT2LMHeadModel.from_pretrained(folder),
    }
    answers: dict[str, Any] = {}
    for name, build_model in models.items():
        built, seen = 0, []

        def counted(build_model: Any = build_model) -> nn.Module:
            nonlocal built
            built += 1
            return build_model()

        def optimizer(model: nn.Module, seen: list[Any] = seen) -> torch.optim.Optimizer:
            seen += [(key, tuple(p.shape), getattr(p, "mine", None)) for key, p in model.named_parameters()]
            return tiny.adamw(model)

        config = tiny.config("zero3", ranks.world_size)
        engine = build_engine(config, counted, tiny.NextToken(), optimizer, ranks)
        slices = [
            (f.name, f.start, f.tensors["weight"].clone()) for f in engine.fragments() if f.tensors["weight"].numel()
        ]
        engine.close()
        drawn = torch.rand(2).tolist()
        seed_all(config.seed)
        right = build_model().state_dict()
        answers[name] = {"slices": slices, "built": built, "seen": seen, "right": right, "drawn": drawn}
    return answers


def test_the_weights_are_the_models_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tiny.gpt2().save_pretrained(tmp_path)  # type: ignore[operator]
    by_rank = run_on_ranks(initial_weights, 2, str(tmp_path))
    for name in by_rank[0]:
        right = by_rank[0][name]["right"]
        covered: dict[str, int] = {}
        for results in by_rank:
            for key, start, values in results[name]["slices"]:
                assert torch.equal(values, right[key].flatten()[start : start + len(values)]), (name, key)
                covered[key] = covered.get(key, 0) + len(values)
        kept_twice = {"scale"}  # a buffer is whole on each rank
        for key, count in covered.items():
            assert count == right[key].numel() * (2 if key in kept_twice else 1), (name, key)
        shapes = {key: tuple(value.shape) for key, value in right.items()}
        for results in by_rank:
            assert all(shapes[key] == shape for key, shape, _ in results[name]["seen"])
        assert by_rank[0][name]["seen"] == by_rank[1][name]["seen"]
        assert [results[name]["built"] for results in by_rank] == ([1, 1] if name == "unpicklable" else [1, 0])
        assert by_rank[0][name]["drawn"] != by_rank[1][name]["drawn"]  # dropout: a stream for each rank
    assert {mark for *_, mark in by_rank[1]["native"]["seen"]} == {None, "kept"}
    # The streams do not depend on who built the model.
    assert len({tuple(by_rank[1][name]["drawn"]) for name in by_rank[1]}) == 1
