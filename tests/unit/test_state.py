"""The loop's state, as checkpoints hold it."""

from __future__ import annotations

from bigtrain.trainer import State


def test_a_state_comes_back_from_a_checkpoint_and_from_one_of_before() -> None:
    state = State(step=3, best_score=-0.5, best_metric="accuracy")
    assert State.from_dict(state.as_dict()) == state
    before = {"step": 3, "position": 96, "tokens": 9, "best_loss": 2.5, "evaluations_since_best": 1}
    assert State.from_dict(before) == State(3, 96, 9, 2.5, "loss", 1)
