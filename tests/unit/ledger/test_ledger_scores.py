"""Which losses of a log jump, and which documents lie far from their peers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.ledger.judge import Floats, Key, standing_out
from bigtrain.ledger.spikes import SPIKE, heights, log_points, spikes


def curve(seed: int, steps: int = 400) -> np.ndarray:
    """A loss as training makes it: steep, then flat, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, steps)
    return 4 + 3 * np.exp(-np.arange(steps) / 30) + noise


def log(folder: Path, losses: np.ndarray, every: int = 1) -> Path:
    lines = [{"step": 0, "split": "eval", "loss": 99.0}]
    lines += [{"step": step * every, "split": "train", "loss": float(loss)} for step, loss in enumerate(losses, 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines).replace("NaN", "null")
    (folder / "metrics.jsonl").write_text(text)
    return folder


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(100, 390))
def test_a_jump_is_found_where_it_begins(seed: int, at: int) -> None:
    losses = curve(seed)
    losses[at : at + 3] += 0.6
    high = heights(losses)
    assert high[at] > SPIKE
    assert int(np.argmax(high >= SPIKE)) == at, "and nothing before it"


def test_a_smooth_run_has_no_spike() -> None:
    highest = [heights(curve(seed)).max() for seed in range(50)]
    assert sum(high >= SPIKE for high in highest) <= 1


def test_spikes_are_named_with_what_was_not_logged(tmp_path: Path) -> None:
    losses = curve(1)
    losses[200:205] += 0.5  # one spike that lasts
    losses[300] += 2
    found = spikes(log_points(log(tmp_path, losses, every=10)))
    assert [(point.step, point.after) for point in found] == [(3010, 3000), (2010, 2000)]


def test_a_loss_that_is_no_number_is_the_highest(tmp_path: Path) -> None:
    losses = curve(2)
    losses[350] += 3
    log(tmp_path, losses)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 401, "split": "train", "loss": null, "not_finite": {"loss": "nan"}}\n')
    found = spikes(log_points(tmp_path))
    assert [point.step for point in found] == [401, 351]
    assert found[0].height == float("inf")


def test_a_step_that_was_trained_twice_counts_as_logged_last(tmp_path: Path) -> None:
    lines = [{"step": step, "split": "train", "loss": loss} for step, loss in ((1, 5.0), (2, 9.0), (2, 4.0), (3, 3.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [point.loss for point in log_points(tmp_path)] == [5, 4, 3]


def documents(seed: int, count: int = 60) -> dict[Key, Floats]:
    """Of 2 to 2,000 targets, each with a mean of its own."""
    rng = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        tokens = rng.normal(rng.normal(4, 0.1), 2, int(2 * 10 ** rng.uniform(0, 3)))
        found["data", number] = tokens
    return found


def test_documents_of_any_length_are_strange_alike() -> None:
    """Short ones are not so by chance."""
    scores = np.array([list(standing_out(documents(seed)).values()) for seed in range(100)])
    lengths = np.array([[len(of) for of in documents(seed).values()] for seed in range(100)])
    assert np.mean(scores > 5) < 1e-3
    usual = np.median(scores)
    for some in (lengths < 20, lengths > 500):
        assert np.median(scores[some]) == pytest.approx(usual, rel=0.25)


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_a_strange_document_is_found_among_others_that_are_too(shift: float) -> None:
    """A tenth of the documents being strange does not hide the strangest: the scale is that of the middle half."""
    for seed in range(20):
        found = documents(seed)
        for number, by in [(0, 2 * shift), *((number, shift) for number in range(1, 6))]:
            tokens = np.random.default_rng(number).normal(4 + by, 2, 300)
            found["data", number] = tokens
        scores = standing_out(found)
        strangest = max(scores, key=lambda key: abs(scores[key]))
        assert strangest == ("data", 0)
        assert scores[strangest] > 4


def test_equal_documents_are_not_strange() -> None:
    same = {("data", number): np.full(10, 4.0) for number in range(5)}
    assert set(standing_out(same).values()) == {0.0}


def test_losses_that_are_all_alike_are_strange_at_a_usual_mean() -> None:
    """One word again and again, half learned."""
    found = documents(3)
    found["data", 0] = np.random.default_rng(0).normal(4, 0.3, 150)
    scores = standing_out(found)
    assert scores["data", 0] == max(scores.values()) > 5
