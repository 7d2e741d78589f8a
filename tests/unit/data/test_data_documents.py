"""Document masks: what the samples carry, and that each packed document is computed as if it were alone."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import text
from bigtrain.errors import UserError
from bigtrain.models import decoder
from bigtrain.objectives import causal_lm
from tests.unit.data.test_data_sets import LENGTHS, packed, shards

TINY = {"vocab_size": 97, "sequence_length": 32, "layers": 2, "heads": 4, "width": 32}
GPT2 = {"positions": "learned", "norm": "layer_norm", "activation": "gelu", "bias": True, "tied": True}
STYLES = {"gpt2": GPT2, "llama": {"kv_heads": 2}}


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 15), remainder=st.booleans())
def test_each_token_has_its_document_and_none_looks_into_the_next(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, remainder: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    t = shards(folder, lengths, 7)
    document = np.repeat(np.arange(len(lengths)), lengths)  # of token i + 1, as the tokens are 1, 2, 3, …
    plain = packed(t, length, "concat", folder, remainder=remainder)
    masked = packed(t, length, "concat", folder, remainder=remainder, document_masks=True)
    for sample, before in zip(masked, plain, strict=True):
        real = before["labels"] != -100
        mine, label = document[before["input_ids"][real] - 1], document[before["labels"][real] - 1]
        ids = sample["document_ids"]
        assert ids.dtype == np.int64
        assert ids.shape == (length,)
        assert ids[real].tolist() == (mine - mine[0]).tolist()
        assert not set(ids[~real]) & set(ids[real])
        assert sample["labels"][real].tolist() == np.where(mine == label, before["labels"][real], -100).tolist()
        assert sample["input_ids"].tolist() == before["input_ids"].tolist()


@pytest.mark.parametrize("style", STYLES)
def test_a_packed_document_is_computed_as_if_alone(style: str) -> None:
    torch.manual_seed(0)
    model = decoder(**TINY, **STYLES[style])
    generator = torch.Generator().manual_seed(1)
    ids, labels = (torch.randint(0, 97, (2, 32), generator=generator) for _ in range(2))
    cuts = [[0, 5, 6, 32], [0, 17, 30, 32]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(cut).diff()) for cut in cuts])
    packed = model(ids, documents)
    packed_loss = model.loss_sum(ids, labels, documents)
    assert not torch.allclose(packed, model(ids), atol=1e-3)  # what it would be without masks
    alone_loss = torch.zeros(())
    for row, cut in enumerate(cuts):
        for start, stop in pairwise(cut):
            one = ids[row : row + 1, start:stop]
            torch.testing.assert_close(packed[row : row + 1, start:stop], model(one), rtol=0, atol=2e-6)
            alone_loss = alone_loss + model.loss_sum(one, labels[row : row + 1, start:stop])
    torch.testing.assert_close(packed_loss, alone_loss)
    named = dict(model.named_parameters())
    weights = list(named.values())[:3]
    for a, b in zip(torch.autograd.grad(packed_loss, weights), torch.autograd.grad(alone_loss, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    model.enable_activation_checkpointing()
    torch.testing.assert_close(model.loss_sum(ids, labels, documents), packed_loss)


def test_the_objective_hands_the_documents_on_or_refuses() -> None:
    batch = {
        "input_ids": torch.arange(8).view(1, 8),
        "labels": torch.arange(1, 9).view(1, 8),
        "document_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]),
    }
    model, objective = decoder(**TINY), causal_lm()
    right = model.loss_sum(batch["input_ids"], batch["labels"], batch["document_ids"])
    torch.testing.assert_close(objective.loss(model, batch), right)

    class Foreign(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*input_ids.shape, 97)

    with pytest.raises(UserError, match=r"document_masks=true.*takes no document_ids.*packing=none"):
        objective.loss(Foreign(), batch)


def test_the_setting_is_in_the_fingerprint_only_when_it_is_on(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "one two three four"}\n{"text": "five six seven"}\n' * 30)
    common = {"path": str(tmp_path / "text.jsonl"), "sequence_length": 8, "vocab_size": 260, "held_out": 0.0}
    off = text(**common, cache=str(tmp_path / "cache"))
    off.prepare()
    on = text(**common, cache=str(tmp_path / "cache"), document_masks=True)
    assert on.folder == off.folder  # the same shards
    assert on.fingerprint != off.fingerprint
    assert set(off.train[0]) == {"input_ids", "labels"}
    assert set(on.train[0]) == {"input_ids", "labels", "document_ids"}
    (manifest,) = off._manifests.values()
    content = [
        [[shard["sha256"] for shard in manifest["splits"][split]["shards"]] for split in ("train", "eval")],
        manifest["tokenizer_sha256"],
        8,
        "concat",
    ]

    assert off.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]  # as runs before have it
    with pytest.raises(UserError, match=r"document_masks=true is for data.packing=concat"):
        text(**common, packing="none", document_masks=True)
