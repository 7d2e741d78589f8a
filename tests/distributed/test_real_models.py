"""bigtrain's own models, objective and optimizers under the engines: tied and untied heads, checkpointed blocks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from bigtrain.distributed import seed_all
from bigtrain.models import decoder, hugging_face
from bigtrain.objectives import causal_lm
from bigtrain.optim import adafactor, adamw, lion, muon, sgd
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks

STEPS, ACCUMULATION, LR = 4, 2, 3e-3
SHAPE: dict[str, Any] = {
    "vocab_size": tiny.VOCAB,
    "sequence_length": tiny.LENGTH,
    "layers": 2,
    "heads": 2,
    "width": 16,
    "mlp_width": 30,
}
GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True, "tied": True}
LLAMA = {"positions": "rotary", "norm": "rms_norm", "activation": "swiglu", "bias": False, "tied": False}
CONFIG = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 30, "num_hidden_layers": 2}
MODELS = {
    "gpt2": partial(decoder, **SHAPE, **GPT2),
    "llama": partial(decoder, **SHAPE, **LLAMA, kv_heads=1),
    "hugging face": partial(
        hugging_face,
        config={**CONFIG, "num_attention_heads": 2, "num_key_value_heads": 1},
        vocab_size=tiny.VOCAB,
        sequence_length=tiny.LENGTH,
    ),
}
OPTIMIZERS = {
    "adamw": partial(adamw, lr=LR),
    "lion": partial(lion, lr=LR / 10),
    "sgd": partial(sgd, lr=0.3),
    "adafactor": partial(adafactor, lr=LR),
    "muon": partial(muon, lr=LR),
}
CASES = [
    (name, *engine, "adamw") for name in MODELS for engine in (("zero3", "full"), ("zero2", "none"), ("ddp", "full"))
]
CASES += [("llama", engine, "none", name) for name in ("lion", "sgd") for engine in ("ddp", "zero1", "zero3")]
CASES += [("gpt2", engine, "none", name) for name in ("adafactor", "muon") for engine in ("ddp", "zero0")]


def plain(build_model: Any, build_optimizer: Any) -> list[float]:
    """The oracle: whole batches, one process, torch alone."""
    seed_all(7)
    model = build_model().train()
    optimizer = build_optimizer(model)
    losses = []
    for step in range(STEPS):
        batch = tiny.batch_of(step)
        logits = model(batch["input_ids"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def under_engines(ranks: Any) -> dict[tuple[str, str, str, str], list[float]]:
    from bigtrain.distributed import sum_over_ranks
    from bigtrain.engines import build_engine

    answers = {}
    for case in CASES:
        name, engine, checkpointing, optimizer = case
        config = tiny.config(engine, ranks.world_size, ACCUMULATION, activation_checkpointing=checkpointing)
        built = build_engine(config, MODELS[name], causal_lm(), OPTIMIZERS[optimizer], ranks)
        losses = []
        for step in range(STEPS):
            part = tiny.micro_batches(step, ranks.rank, ranks.world_size, ACCUMULATION)
            result = built.train_step(part, causal_lm().count(tiny.batch_of(step)), 1.0)
            losses.append(float(sum_over_ranks(result.loss.clone())))
        answers[case] = losses
        built.close()
    return answers


def test_own_models_and_optimizers_train_as_in_a_plain_loop() -> None:
    right = {(name, chosen): plain(MODELS[name], OPTIMIZERS[chosen]) for name, _, _, chosen in CASES}
    for case, losses in run_on_ranks(under_engines, 2)[0].items():
        name, _, _, chosen = case
        assert torch.allclose(torch.tensor(losses), torch.tensor(right[name, chosen]), rtol=0, atol=5e-6), case
        assert abs(losses[0] / math.log(tiny.VOCAB) - 1) < 0.02, case
        assert losses[-1] != losses[0]
