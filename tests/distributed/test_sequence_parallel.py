"""Ulysses: ranks that share a sequence train as one process does, whatever ZeRO's stage and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.checkpoint.find import find
from bigtrain.checkpoint.load import load
from bigtrain.checkpoint.save import save
from bigtrain.errors import UserError
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

STEPS, CLIP, RATE = 20, 0.2, 2e-3


def decoder(dropout: float = 0.0, **changes: Any) -> nn.Module:
    from bigtrain.models.native import Decoder
    from bigtrain.models.shapes import Shape

    shape = {"vocab_size": tiny.VOCAB, "sequence_length": tiny.LENGTH, "layers": 2, "heads": 4, "width": 16,
             "kv_heads": 2, "head_width": 4, "mlp_width": 24}  # fmt: skip
    return Decoder(Shape(**(shape | changes)), dropout)


def gpt2(dropout: float = 0.0) -> nn.Module:
    return decoder(dropout, kv_heads=4, positions="learned", norm="layer_norm", activation="gelu", bias=True, tied=True)


def hugging_face(model_type: str = "llama", attention: str = "sdpa", **changes: Any) -> nn.Module:
    from bigtrain.models import hugging_face

    llama = {"model_type": model_type, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": tiny.LENGTH}  # fmt: skip
    return hugging_face(config=llama | changes, vocab_size=tiny.VOCAB, sequence_length=tiny.LENGTH, attention=attention)


MODELS: dict[str, Callable[[], nn.Module]] = {"llama": decoder, "gpt2": gpt2, "hugging_face": hugging_face}


def settings(
    engine: str, world_size: int, accumulation: int = 1, sequence: int = 1, tensor: int = 1, **more: Any
) -> Any:
    config = tiny.config(engine, world_size // (sequence * tensor), accumulation, grad_clip=CLIP, **more)
    config.engine = replace(config.engine, sequence_parallel=sequence, tensor_parallel=tensor)
    return config


def built(ranks: Any, config: Any, model: Callable[[], nn.Module]) -> tuple[Any, Any]:
    """The engine, and the ranks as the worker has them."""
    from bigtrain.config.rules import replicas
    from bigtrain.engines import build_engine
    from bigtrain.objectives.causal import CausalLM

    ranks = replace(ranks, replicas=replicas(config.engine))
    return build_engine(config, model, CausalLM(), partial(tiny.adamw, lr=RATE), ranks), ranks


def steps(
    engine: Any, ranks: Any, accumulation: int, first: int = 0, last: int = STEPS, documents: bool = False
) -> Any:
    """Losses and gradient norms of some steps, and the held-out loss of a batch after them."""
    from bigtrain.distributed import sum_over_ranks

    def mine(step: int) -> list[dict[str, torch.Tensor]]:
        batches = tiny.micro_batches(step, ranks.data_rank, ranks.data_ranks, accumulation)
        if documents:
            for batch in batches:
                batch["document_ids"] = (batch["input_ids"] % 5 == 0).long().cumsum(1)
        return batches

    losses, norms = [], []
    for step in range(first, last):
        targets = int((tiny.batch_of(step)["labels"] != -100).sum())
        result = engine.train_step(mine(step), targets, tiny.factor(step))
        losses.append(float(sum_over_ranks(result.loss.clone())))
        norms.append(float(result.grad_norm))
    held_out = sum(float(sum_over_ranks(engine.tally(batch).clone())) for batch in mine(100))
    return losses, norms, held_out


def train(ranks: Any, model: str, engine: str, accumulation: int = 1, sequence: int = 1, tensor: int = 1,
          documents: bool = False, **more: Any) -> Any:  # fmt: skip
    config = settings(engine, ranks.world_size, accumulation, sequence, tensor, **more)
    made, ranks = built(ranks, config, MODELS[model])
    result = steps(made, ranks, accumulation, documents=documents)
    effective = made.settings()
    made.close()
    return *result, effective


def alone(ranks: Any) -> dict[Any, Any]:
    """One process on the whole batch: what all others are held against."""
    runs = {(model, False): train(ranks, model, "local") for model in MODELS}
    return runs | {("llama", True): train(ranks, "llama", "local", documents=True)}


@cache
def right() -> dict[Any, Any]:
    """What `alone` found, once for all tests."""
    return run_on_ranks(alone, 1)[0]  # type: ignore[no-any-return]


def cut(ranks: Any) -> dict[Any, Any]:
    """(model, engine, accumulation, ranks a sequence, documents) -> what came of it."""
    cases = [("llama", "zero0", 1, 2, False), ("hugging_face", "zero2", 2, 2, False), ("gpt2", "zero3", 1, 2, False),
             ("llama", "zero2", 1, 2, True)]  # fmt: skip
    if ranks.world_size == 2:
        cases += [("llama", engine, 2, 2, False) for engine in ("zero1", "zero2", "zero3")]
        cases += [("hugging_face", "zero3", 2, 2, False), ("gpt2", "zero0", 2, 2, False)]
    else:
        cases += [("gpt2", "zero1", 2, 4, False)]
    return {case: train(ranks, *case[:4], documents=case[4]) for case in cases}


def worst(run: Any, right: Any) -> tuple[float, float, float]:
    losses = max(abs(a - b) for a, b in zip(run[0], right[0], strict=True))
    norms = max(abs(a - b) for a, b in zip(run[1], right[1], strict=True))
    return losses, norms, abs(run[2] / right[2] - 1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_share_a_sequence_train_as_one_process(world_size: int) -> None:
    for case, run in run_on_ranks(cut, world_size)[0].items():
        losses, norms, held_out = worst(run, right()[case[0], case[4]])
        assert losses < 1e-6, (case, losses)  # losses near 4: two units in the last place
        assert norms < 1e-5, (case, norms)
        assert held_out < 1e-6, (case, held_out)
        assert run[3]["engine.sequence_parallel"] == case[3]
        assert run[3]["trainer.global_batch_size"] == tiny.GLOBAL_BATCH
        assert run[3]["accumulation"] == case[2]
        ran(case[1], "sequence parallel")


# ------------------------------------------------------------------------------------------------------ checkpoints

HALF, WHOLE = 4, 8


def go_on(ranks: Any, case: tuple[str, str, int, int], source: str | None = None, target: str | None = None) -> Any:
    """From the checkpoint in `source` (or the start) to the end; on the way, one into `target`."""
    model, engine, sequence, tensor = case
    accumulation = 2
    config = settings(engine, ranks.world_size, accumulation, sequence, tensor)
    made, ranks = built(ranks, config, MODELS[model])
    first = 0
    if source is not None:
        newest = find(source, lambda message: pytest.fail(message))
        assert newest is not None
        load(newest, made.fragments(newest.stateful), ranks)
        made.loaded()
        first = HALF
    losses: list[float] = []
    if target is not None:
        losses += steps(made, ranks, accumulation, first, HALF)[0]
        save(target, HALF, made.fragments(), {}, {}, ranks)
        first = HALF
    losses += steps(made, ranks, accumulation, first, WHOLE)[0]
    made.close()
    return losses


def pass_on(ranks: Any, cases: list[tuple[str, str, int, int]], folder: str) -> Any:
    """Each case: to the end with a checkpoint on the way, from that checkpoint again, and from `local`'s."""
    found = []
    for index, case in enumerate(cases):
        straight = go_on(ranks, case, target=f"{folder}/{index}")
        again = go_on(ranks, case, source=f"{folder}/{index}")
        taken = go_on(ranks, case, source=f"{folder}/local_{case[0]}")
        found.append((straight, again, taken))
    return found


def local_first(ranks: Any, folder: str, models: list[str]) -> Any:
    return {model: go_on(ranks, (model, "local", 1, 1), target=f"{folder}/local_{model}") for model in models}


def local_after(ranks: Any, folder: str, cases: list[tuple[str, str, int, int]]) -> Any:
    return [go_on(ranks, (case[0], "local", 1, 1), f"{folder}/{index}") for index, case in enumerate(cases)]


def check_passing_on(cases: list[tuple[str, str, int, int]], world_size: int, folder: str) -> None:
    right = run_on_ranks(local_first, 1, folder, sorted({case[0] for case in cases}))[0]
    passed = run_on_ranks(pass_on, world_size, cases, folder)[0]
    after = run_on_ranks(local_after, 1, folder, cases)[0]
    for case, (straight, again, taken), there in zip(cases, passed, after, strict=True):
        assert again == straight[HALF:], case  # to the last bit
        for losses in (straight[HALF:], taken, there):
            assert max(abs(a - b) for a, b in zip(losses, right[case[0]][HALF:], strict=True)) < 2e-6, case


def test_a_checkpoint_of_cut_sequences_goes_on_anywhere_and_back(tmp_path: Any) -> None:
    cases = [("llama", "zero3", 2, 1), ("hugging_face", "zero1", 2, 1)]
    check_passing_on(cases, 2, str(tmp_path))


# ----------------------------------------------------------------------------------------------------- what is refused


class Convolving(nn.Module):
    """Says that its attention can be exchanged, and mixes tokens elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(tiny.VOCAB, 4), nn.Linear(4, tiny.VOCAB)

    def enable_sequence_parallel(self, part: int, parts: int, exchange: Any) -> None:
        self.exchange = exchange

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids).cumsum(1))


def refusals(ranks: Any, cases: list[tuple[str, dict[str, Any], str]]) -> list[str]:
    models: dict[str, Callable[[], nn.Module]] = {
        "tiny": tiny.Tiny,
        "convolving": Convolving,
        "three_heads": partial(decoder, heads=3, kv_heads=3, width=12),
        "one_kv_head": partial(decoder, kv_heads=1),
        "eager": partial(hugging_face, attention="eager"),
        "window": partial(hugging_face, "mistral", sliding_window=4),
        "bloom": bloom,
    }
    said = []
    for model, cuts, message in cases:
        config = settings("zero1", ranks.world_size, **cuts)
        with pytest.raises(UserError, match=message) as caught:
            built(ranks, config, models[model])
        said.append(str(caught.value))
    return said


def bloom() -> nn.Module:
    from bigtrain.models import hugging_face

    shape = {"model_type": "bloom", "hidden_size": 16, "n_layer": 1, "n_head": 4}
    return hugging_face(config=shape, vocab_size=tiny.VOCAB, sequence_length=tiny.LENGTH, attention="eager")


def test_what_cannot_be_cut_is_refused_in_words() -> None:
    cut = {"sequence": 2}
    cases = [
        ("tiny", cut, "enable_sequence_parallel"),
        ("convolving", cut, "tokens see each other elsewhere"),
        ("three_heads", cut, "does not divide the model's 3 attention heads"),
        ("one_kv_head", cut, "does not divide the model's 1 heads of keys and values"),
        ("eager", cut, "attention=sdpa"),
        ("window", cut, "sliding windows"),
        ("bloom", cut, "engine.sequence_parallel=2"),
    ]
    run_on_ranks(refusals, 2, cases)
