"""Recomputing or moving activations changes no number, dropout included, and keeps less."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.engines.activations import ATTENTION, _keep, activation_checkpointing, enable_activation_checkpointing
from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face
from bigtrain.objectives import causal_lm
from tests.distributed import tiny
from tests.distributed.ranks import run_on_ranks
from tests.support import ran

WAYS = [("selective", False), ("full", False), ("none", True), ("full", True)]
CASES = [("native", "fp32", WAYS), ("hugging face", "fp32", WAYS[:3]), ("native", "bf16", WAYS[:1])]
SHAPE: dict[str, Any] = {"vocab_size": tiny.VOCAB, "sequence_length": tiny.LENGTH}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": tiny.LENGTH}  # dropout 0.1
MODELS = {
    "native": partial(decoder, **SHAPE, layers=2, heads=2, width=16, mlp_width=30, dropout=0.2, tied=True),
    "hugging face": partial(hugging_face, config=GPT2, **SHAPE),
}


def train(ranks: Any, engine: str, model: str, way: tuple[str, bool], precision: str = "fp32") -> Any:
    """Losses and norms of two steps, the weights after them, and what the engine says that it does."""
    from bigtrain.distributed import sum_over_ranks
    from bigtrain.engines import build_engine

    config = tiny.config(
        engine, ranks.world_size, 2, precision=precision, activation_checkpointing=way[0], activation_offload=way[1]
    )
    built = build_engine(config, MODELS[model], causal_lm(), tiny.adamw, ranks)
    numbers = []
    for step in range(2):
        part = tiny.micro_batches(step, ranks.rank, ranks.world_size, 2)
        result = built.train_step(part, causal_lm().count(tiny.batch_of(step)), 1.0)
        numbers += [float(sum_over_ranks(result.loss.clone())), float(result.grad_norm)]
    weights = {(f.name, f.start): f.tensors["weight"].clone() for f in built.fragments()}
    settings = built.settings()
    built.close()
    return numbers, weights, {key: value for key, value in settings.items() if "activation" in key}


def all_ways(ranks: Any, engines: list[str]) -> dict[tuple[str, str, str], list[Any]]:
    """For each engine, model and precision: does each way equal training without, to the bit; what it says it does."""
    answers: dict[tuple[str, str, str], list[Any]] = {}
    for engine in engines:
        for model, precision, ways in CASES:
            plain = train(ranks, engine, model, ("none", False), precision)
            told = answers.setdefault((engine, model, precision), [])
            for way in ways:
                numbers, weights, said = train(ranks, engine, model, way, precision)
                alike = weights.keys() == plain[1].keys() and all(
                    torch.equal(weights[key], plain[1][key]) for key in weights
                )
                told.append((way, numbers == plain[0] and alike, said))
    return answers


@pytest.mark.parametrize(("world_size", "engines"), [(1, ["local"]), (2, ["ddp", "fsdp", "zero2", "zero3"])])
def test_to_the_bit_with_dropout(world_size: int, engines: list[str]) -> None:
    answers = run_on_ranks(all_ways, world_size, engines)
    for case in answers[0]:
        for by_rank in answers:
            for (kind, offload), the_same, said in by_rank[case]:
                assert the_same, (case, kind, offload)
                if "zero" not in case[0]:
                    assert said["trainer.activation_checkpointing"] == kind
                    assert said["trainer.activation_offload"] == offload
    for engine in engines:
        for column in ("selective", "full", "activations on host"):
            ran(engine, column)


class Saved:
    """Counts what autograd keeps on the device, and what selective checkpointing keeps beside it."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.tensors: dict[tuple[int, ...], int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.tensors[tensor.untyped_storage().data_ptr(), tensor.storage_offset(), *tensor.shape] = tensor.nbytes
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.tensors.values())


def kept_bytes(name: str, kind: str) -> int:
    """Bytes that are kept between forward and backward, weights apart: what autograd saves outside of checkpointed
    blocks, and what `selective` puts by inside them."""
    from torch.utils import checkpoint

    torch.manual_seed(1)
    model = MODELS[name]().train()
    enable_activation_checkpointing(model, kind)
    batch = tiny.batch_of(0)
    saved, cached = Saved(model), []
    original = checkpoint._VersionWrapper.__init__

    def noted(self: Any, value: Any) -> None:
        original(self, value)
        cached.append(value.nbytes if isinstance(value, torch.Tensor) else 0)

    checkpoint._VersionWrapper.__init__ = noted  # type: ignore[method-assign]
    try:
        with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
            causal_lm().loss(model, batch)
    finally:
        checkpoint._VersionWrapper.__init__ = original  # type: ignore[method-assign]
    return saved.bytes + sum(cached)


@pytest.mark.parametrize("name", MODELS)
def test_less_is_kept(name: str) -> None:
    none, selective, full = (kept_bytes(name, kind) for kind in ("none", "selective", "full"))
    assert full < selective < none, (full, selective, none)
    assert full < 0.5 * none


def test_offload_moves_activations_and_leaves_weights() -> None:
    from bigtrain.engines import activations

    model = MODELS["native"]().train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    batch = tiny.batch_of(0)
    for dtype in (None, torch.bfloat16):
        saved = Saved(model)
        moved: list[tuple[int, int]] = []
        original = activations._to_host

        def noted(tensor: torch.Tensor, original: Any = original, moved: Any = moved, saved: Any = saved) -> Any:
            packed = original(tensor)
            if isinstance(packed, activations.Moved):
                assert tensor.untyped_storage().data_ptr() not in weights
                assert packed.host.data_ptr() != tensor.data_ptr()
                back = activations._back(packed)
                assert torch.equal(back, tensor) and back.stride() == tensor.stride()
                moved.append((tensor.numel(), tensor.nbytes))
            else:
                saved(tensor)
            return packed

        activations._to_host = noted
        try:
            with torch.autocast("cpu", dtype, enabled=dtype is not None), activations.offloaded(True):
                loss = causal_lm().loss(model, batch)
        finally:
            activations._to_host = original
        loss.backward()
        shapes = {p.numel() for p in model.parameters() if p.dim() > 1 and p is not model.embedding.weight}
        assert not shapes & {numel for numel, _ in moved}, dtype  # nor their bf16 copies
        stays = sum(size for size in saved.tensors.values() if size >= activations.SMALL)
        assert moved
        assert stays == 0 or dtype is not None  # the bf16 copies of the weights stay


def test_attention_with_dropout_is_computed_again() -> None:
    """Left out, it would not advance the generator, and the block's next dropout would draw other numbers."""
    q = torch.zeros(1, 1, 2, 4)
    for operator in ATTENTION:
        names = [argument.name for argument in operator._schema.arguments]
        for dropout, kept in ((0.0, True), (0.1, False)):
            given: list[Any] = [dropout if name == "dropout_p" else q for name in names]
            assert (_keep(None, operator, *given).name == "MUST_SAVE") is kept, operator
        assert _keep(None, operator, q, q, q, dropout_p=0.1).name == "PREFER_RECOMPUTE"
        assert _keep(None, operator, q, q, q).name == "MUST_SAVE"


class OnlyFull(tiny.Tiny):
    def enable_activation_checkpointing(self) -> None:
        self.on = True


def test_a_users_module() -> None:
    with pytest.raises(UserError, match=r"=selective, but Tiny has no method `enable_activation_checkpointing"):
        enable_activation_checkpointing(tiny.Tiny(), "selective")
    with pytest.raises(UserError, match=r"OnlyFull takes no `context_fn`.*activation_checkpointing=full"):
        enable_activation_checkpointing(OnlyFull(), "selective")
    own = OnlyFull()
    enable_activation_checkpointing(own, "full")
    assert own.on
    assert activation_checkpointing(own) is None  # its way is its own
    assert activation_checkpointing(tiny.Tiny()) == "none"
    for build_model in (*MODELS.values(), tiny.gpt2):
        for kind in ("none", "selective", "full"):
            model = build_model()
            enable_activation_checkpointing(model, kind)
            assert activation_checkpointing(model) == kind
