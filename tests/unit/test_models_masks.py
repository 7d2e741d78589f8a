"""Document masks: FlexAttention against the exact mask, and packed documents in transformers' decoders."""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from bigtrain.errors import UserError
from bigtrain.models import decoder, hugging_face, masks, native
from bigtrain.models.masks import block_mask, exact_mask, has_kernel, masked_attention, within_documents
from bigtrain.objectives import causal_lm

CUTS = [[0, 9, 10, 150], [0, 128, 129, 150]]
"""A document of one token, and ends on and beside the edge of a block of 128."""


def documents(cuts: list[list[int]]) -> Tensor:
    return torch.stack([torch.repeat_interleave(torch.arange(len(cut) - 1), torch.tensor(cut).diff()) for cut in cuts])


def test_positions_and_beginnings() -> None:
    positions, start = within_documents(torch.tensor([[0, 0, 1, 2, 2, 2], [4, 4, 4, 4, 4, 5]]))
    assert positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 0]]
    assert start.tolist() == [[0, 0, 2, 3, 3, 3], [0, 0, 0, 0, 0, 5]]


def test_the_blocks_are_those_of_the_exact_mask() -> None:
    start = within_documents(documents([[0, 100, 300, 700], [0, 600, 601, 700]]))[1]
    seen = torch.nn.functional.pad(exact_mask(start), (0, 68, 0, 68)).unflatten(-1, (-1, 128)).unflatten(-3, (-1, 128))
    made = block_mask(start)
    assert made.to_dense().bool().tolist() == seen.any(-1).any(-2).tolist()
    assert made.sparsity() > 30  # % of the blocks are never looked at


@pytest.fixture
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses them, as its compiled kernel has none; the arithmetic of the eager one is there."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flex_attention_is_the_exact_mask(kv_heads: int) -> None:
    """Outputs and gradients of one attention, in double precision."""
    torch.manual_seed(0)
    shape = decoder(vocab_size=7, sequence_length=150, layers=1, heads=4, kv_heads=kv_heads, width=64).shape
    attention = native.Attention(shape, 0.02, 0.02).double()
    x = torch.randn(2, 150, 64, dtype=torch.double)
    start = within_documents(documents(CUTS))[1]
    found = []
    for mask in (exact_mask(start), block_mask(start)):
        inputs = x.clone().requires_grad_()
        out = attention(inputs, None, mask)
        grads = torch.autograd.grad((out * out.detach().sin()).sum(), [inputs, *attention.parameters()])
        found.append([out, *grads])
    for exact, flex in zip(*found, strict=True):
        torch.testing.assert_close(flex, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_decoder_on_blocks_is_the_decoder_on_the_exact_mask(
    monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    torch.manual_seed(0)
    model = decoder(vocab_size=97, sequence_length=150, layers=2, heads=4, kv_heads=2, width=64).double()
    if checkpointing:
        model.enable_activation_checkpointing()
    ids, labels = torch.randint(0, 97, (2, 2, 150))
    exact = train(model, ids, labels, documents(CUTS))
    monkeypatch.setattr(native, "has_kernel", lambda *_: True)
    for right, found in zip(exact, train(model, ids, labels, documents(CUTS)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)  # rotary positions are fp32


def train(model: Any, ids: Tensor, labels: Tensor, document_ids: Tensor) -> list[Tensor]:
    loss = model.loss_sum(ids, labels, document_ids)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def test_where_flex_attention_serves() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert has_kernel(cuda, 64)
    assert not has_kernel(cuda, 8)
    assert not has_kernel(cpu, 64)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_is_compiled_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each micro-batch has other documents; the kernels (here in C++, forward only) are made for the first one."""
    for name in ("create_block_mask", "flex_attention"):  # as on a GPU
        monkeypatch.setattr(masks, name, torch.compile(getattr(masks, name)))
    counters.clear()
    q = torch.randn(2, 4, 300, 16)
    made = []
    for cuts in ([[0, 100, 101, 300], [0, 128, 200, 300]], [[0, 7, 299, 300], [0, 256, 257, 300]]):
        start = within_documents(documents(cuts))[1]
        with torch.no_grad():
            found = masked_attention(q, q, q, block_mask(start))
            right = scaled_dot_product_attention(q, q, q, exact_mask(start))
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        made.append(counters["stats"]["unique_graphs"])
    assert made == [2, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_keeps_documents_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("create_block_mask", "flex_attention"):
        monkeypatch.setattr(masks, name, torch.compile(getattr(masks, name)))
    torch.manual_seed(0)
    model = decoder(vocab_size=97, sequence_length=150, layers=1, heads=4, kv_heads=2, width=64)
    ids = torch.randint(0, 97, (2, 150))
    with torch.no_grad():
        right = model(ids, documents(CUTS))
        monkeypatch.setattr(native, "has_kernel", lambda *_: True)
        torch.testing.assert_close(torch.compile(model)(ids, documents(CUTS)), right, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_compiled_kernel_is_the_exact_mask(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, checkpointing: bool
) -> None:
    torch.manual_seed(0)
    model = decoder(vocab_size=97, sequence_length=700, layers=2, heads=4, kv_heads=2, width=256).cuda().to(dtype)
    if checkpointing:
        model.enable_activation_checkpointing()
    ids, labels = torch.randint(0, 97, (2, 3, 700), device="cuda")
    cuts = [[0, 100, 101, 700], [0, 128, 500, 700], [0, 1, 2, 700]]
    flex = train(model, ids, labels, documents(cuts).cuda())
    monkeypatch.setattr(native, "has_kernel", lambda *_: False)
    close = 2e-3 if dtype == torch.float32 else 5e-2
    for right, found in zip(train(model, ids, labels, documents(cuts).cuda()), flex, strict=True):
        assert float((found.float() - right.float()).norm() / right.float().norm()) < close


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**TINY, "intermediate_size": 64, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": WIDE,
    "qwen2": WIDE,
    "qwen3": {**WIDE, "head_dim": 8},
    "mistral": {**WIDE, "sliding_window": 5},
    "gemma": {**WIDE, "head_dim": 8},
    "gemma3_text": {**WIDE, "head_dim": 8, "sliding_window": 5},
    "gpt_neox": {**TINY, "intermediate_size": 64},
}
LEAKING: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
}


def foreign(kind: str, settings: dict[str, Any], attention: Any = "sdpa") -> Any:
    torch.manual_seed(0)
    return hugging_face(config={"model_type": kind, **settings}, vocab_size=97, attention=attention)


@pytest.mark.parametrize(("kind", "attention"), [*((kind, "sdpa") for kind in FAMILIES), ("llama", "eager")])
def test_packed_documents_in_transformers_decoders(kind: str, attention: str) -> None:
    model = foreign(kind, FAMILIES[kind], attention).eval()
    cuts = [[0, 9, 10, 24], [0, 16, 20, 24]]
    ids = torch.randint(0, 97, (2, 24))
    labels = torch.randint(0, 97, (2, 24))
    packed = model(ids, documents(cuts))
    assert not torch.allclose(packed, model(ids), atol=1e-3)  # what it would be without masks
    alone = torch.zeros(())
    for row, cut in enumerate(cuts):
        for start, stop in pairwise(cut):
            one = ids[row : row + 1, start:stop]
            torch.testing.assert_close(packed[row : row + 1, start:stop], model(one), rtol=0, atol=1e-5)
            alone = alone + causal_lm().loss(model, {"input_ids": one, "labels": labels[row : row + 1, start:stop]})
    batch = {"input_ids": ids, "labels": labels, "document_ids": documents(cuts)}
    loss = causal_lm().loss(model, batch)
    torch.testing.assert_close(loss, alone)
    model.enable_activation_checkpointing()
    model.train()
    torch.testing.assert_close(causal_lm().loss(model, batch), loss)


@pytest.mark.parametrize("kind", LEAKING)
def test_a_model_that_lets_documents_see_each_other_is_refused(kind: str) -> None:
    model = foreign(kind, LEAKING[kind], "eager")
    ids = torch.randint(0, 97, (1, 8))
    assert model(ids).shape == (1, 8, 97)
    with pytest.raises(UserError, match=rf"document_masks=true.*{kind}.*may see each other.*packing=none"):
        causal_lm().loss(model, {"input_ids": ids, "labels": ids, "document_ids": torch.zeros_like(ids)})


def test_parts_of_a_sequence_are_refused() -> None:
    model = foreign("llama", FAMILIES["llama"])
    model.enable_sequence_parallel(0, 1, lambda attend, q, k, v: attend(q, k, v))
    ids = torch.randint(0, 97, (1, 8))
    with pytest.raises(UserError, match=r"document_masks=true.*engine.sequence_parallel.*model=decoder"):
        model(ids, torch.zeros_like(ids))
