"""The causal objective: sums, counts, and the loss of a user's own model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bigtrain.objectives import causal_lm
from bigtrain.objectives.losses import cross_entropy


class Mine(nn.Module):
    """A user's model: logits only."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(31, 31)

    def forward(self, input_ids):
        return self.table(input_ids)


def batch(ignored=0.3):
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(0, 31, (2, 3, 11), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = -100
    return {"input_ids": ids, "labels": labels}


def test_loss_is_the_sum_over_the_targets_that_count_counts():
    torch.manual_seed(0)
    model, objective, b = Mine(), causal_lm(), batch()
    count = objective.count(b)
    assert isinstance(count, int)
    assert 0 < count < 33
    assert count == (b["labels"] >= 0).sum()
    mean = F.cross_entropy(model(b["input_ids"]).flatten(0, 1), b["labels"].flatten())
    loss = objective.loss(model, b)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mean * count)


def test_micro_batches_of_uneven_padding_add_up_to_the_whole():
    torch.manual_seed(0)
    model, objective, b = Mine(), causal_lm(), batch()
    b["labels"][0, 1:] = -100
    whole = objective.loss(model, b)
    parts = [objective.loss(model, {k: v[i : i + 1] for k, v in b.items()}) for i in range(3)]
    torch.testing.assert_close(sum(parts), whole)


def test_nothing_but_padding_is_a_loss_of_zero():
    model, objective, b = Mine(), causal_lm(), batch(ignored=2.0)
    loss = objective.loss(model, b)
    loss.backward()
    assert objective.count(b) == 0
    assert loss == 0
    assert model.table.weight.grad.abs().max() == 0


def test_a_models_own_loss_sum_is_used():
    class Own(Mine):
        def loss_sum(self, input_ids, labels):
            return torch.tensor(42.0)

    assert causal_lm().loss(Own(), batch()) == 42


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_cross_entropy_of_logits_is_torchs(dtype, chunk):
    torch.manual_seed(0)
    logits = (torch.randn(33, 31) * 3).to(dtype)
    labels = batch()["labels"].flatten()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(ours, labels, chunk)
    wide = theirs if dtype == torch.float64 else theirs.float()
    expected = F.cross_entropy(wide, labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    (loss / 23).backward()
    (expected / 23).backward()
    assert ours.grad.dtype == dtype
    # bf16 is rounded once more than torch's, when the gradient is kept between forward and backward
    exact = {"rtol": 1e-5, "atol": 1e-7} if dtype != torch.bfloat16 else {"rtol": 1e-2, "atol": 1e-6}
    torch.testing.assert_close(ours.grad, theirs.grad, **exact)


def test_perplexity():
    assert causal_lm().metrics(math.log(50)) == {"perplexity": pytest.approx(50)}
    assert causal_lm().metrics(1e6) == {"perplexity": math.inf}
