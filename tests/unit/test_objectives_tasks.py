"""What an evaluation adds up: metrics by the book, whatever the split into batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bigtrain.objectives import classification, masked_lm, regression, seq2seq


class Given(nn.Module):
    """Answers what it is told."""

    def forward(self, answers: Tensor, labels: Tensor | None = None) -> Tensor:
        return answers


def added(objective: Any, batch: dict[str, Tensor], parts: int) -> tuple[Tensor, int]:
    """Over `parts` batches, the last filled up with rows that do not count."""
    size = -(-len(batch["labels"]) // parts)
    sums, targets = torch.zeros(1), 0
    for start in range(0, len(batch["labels"]), size):
        part = {name: values[start : start + size].clone() for name, values in batch.items()}
        missing = size - len(part["labels"])
        if missing:
            blank = float("nan") if part["labels"].is_floating_point() else -100
            part = {name: torch.cat([values, values[:1].repeat(missing, *[1] * (values.dim() - 1))])
                    for name, values in part.items()}  # fmt: skip
            part["labels"][size - missing :] = blank
        sums = sums + objective.tally(Given(), part).double()
        targets += objective.count(part)
    return sums, targets


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 40), classes=st.integers(2, 5), parts=st.integers(1, 6), seed=st.integers(0, 99),
    tokens=st.booleans(),
)  # fmt: skip
def test_classification_is_scikit_learns(rows: int, classes: int, parts: int, seed: int, tokens: bool) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    generator = torch.Generator().manual_seed(seed)
    shape = (rows, 3) if tokens else (rows,)
    answers = torch.randn(*shape, classes, generator=generator)
    labels = torch.randint(classes, shape, generator=generator)
    objective = classification()
    sums, targets = added(objective, {"answers": answers, "labels": labels}, parts)
    found = objective.summary(sums, targets)
    true, guessed = labels.flatten().numpy(), answers.argmax(-1).flatten().numpy()
    precision, recall, f1, _ = precision_recall_fscore_support(true, guessed, average="macro", zero_division=0)
    right = {"accuracy": accuracy_score(true, guessed), "precision": precision, "recall": recall, "f1": f1}
    assert targets == labels.numel() and found == pytest.approx(right)
    assert objective.confusion == confusion_matrix(true, guessed, labels=range(classes)).tolist()
    mean = nn.functional.cross_entropy(answers.flatten(0, -2), labels.flatten())
    assert float(sums[0]) / targets == pytest.approx(float(mean), rel=1e-5)
    batch = {"answers": answers, "labels": labels}
    smooth = classification(label_smoothing=0.2).loss(Given(), batch)
    right_loss = nn.functional.cross_entropy(answers.flatten(0, -2), labels.flatten(), label_smoothing=0.2)
    assert float(smooth) / targets == pytest.approx(float(right_loss), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 40), parts=st.integers(1, 5), seed=st.integers(0, 99))
def test_regression_is_by_the_book(rows: int, parts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    answers, labels = torch.randn(rows, 1, generator=generator), torch.randn(rows, generator=generator)
    objective = regression()
    sums, targets = added(objective, {"answers": answers, "labels": labels}, parts)
    x, y = answers[:, 0].double().numpy(), labels.double().numpy()
    found = objective.summary(sums, targets)
    assert targets == rows
    assert found["rmse"] == pytest.approx(float(np.sqrt(((x - y) ** 2).mean())), rel=1e-5)
    assert found["mae"] == pytest.approx(float(np.abs(x - y).mean()), rel=1e-5)
    assert found["pearson"] == pytest.approx(float(np.corrcoef(x, y)[0, 1]), abs=1e-4)


def test_a_label_that_is_none_has_no_gradient() -> None:
    answers = torch.randn(3, 1, requires_grad=True)
    regression().loss(Given(), {"answers": answers, "labels": torch.tensor([1.0, float("nan"), 2.0])}).backward()
    assert torch.isfinite(answers.grad).all() and answers.grad[1] == 0 and answers.grad[0] != 0  # type: ignore[arg-type, index]


@pytest.mark.parametrize("objective", [masked_lm(), seq2seq(label_smoothing=0.1)])
def test_tokens_are_counted_where_there_is_a_label(objective: Any) -> None:
    answers = torch.randn(4, 6, 9)
    labels = torch.randint(9, (4, 6)).masked_fill(torch.rand(4, 6) < 0.5, -100)
    labels[0, 0] = answers[0, 0].argmax()
    sums, targets = added(objective, {"answers": answers, "labels": labels}, 2)
    there = labels != -100
    assert targets == int(there.sum())
    found = objective.summary(sums, targets)
    loss = nn.functional.cross_entropy(answers[there], labels[there])
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert found["accuracy"] == pytest.approx(float((answers.argmax(-1) == labels)[there].float().mean()))
