"""Every task of the shipped recipes under DeepSpeed's engines on two ranks: the losses of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.distributed.tasks import numbers, small_llama, tasks, write_rows

ENGINES = ("zero2", "zero3")
MEASURED = {
    "bert_classification": {"accuracy", "precision", "recall", "f1"},
    "bert_base": {"perplexity", "accuracy"},
    "t5_small": {"perplexity", "accuracy"},
    "t5_translation": {"perplexity", "accuracy"},
    "lstm": {"perplexity", "accuracy"},
    "mnist_cnn": {"accuracy", "precision", "recall", "f1"},
    "vit": {"accuracy", "precision", "recall", "f1"},
    "dpo": {"accuracy", "chosen_reward", "rejected_reward"},
}
"""What an evaluation tells beside the loss; of the others the perplexity."""


def under(ranks: Any, folder: str, engines: tuple[str, ...]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, words in tasks(Path(folder), Path(folder) / "llama").items():
        for engine in engines:
            run_dir = f"{folder}/{name}-{engine}-{ranks.world_size}"
            found[name, engine] = numbers(ranks, [*words, f"engine={engine}"], run_dir)
    return found


@pytest.mark.timeout(600)
def test_the_tasks_losses_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    write_rows(tmp_path)
    small_llama(tmp_path)
    (right,) = run_on_ranks(under, 1, str(tmp_path), ("local",))
    here, _ = run_on_ranks(under, 2, str(tmp_path), ENGINES, timeout_s=500)
    for (name, _), lines in right.items():
        losses = [numbers["loss"] for _, split, numbers in lines if split == "train"]
        assert len(losses) == 3 and losses[0] != losses[1], name
        assert set(lines[-1][2]) == {"loss", "tokens"} | MEASURED.get(name, {"perplexity"}), name
        for engine in ENGINES:
            other = here[name, engine]
            assert [line[:2] for line in other] == [line[:2] for line in lines]
            for (step, split, one), (_, _, two) in zip(lines, other, strict=True):
                for key in {"loss", *MEASURED.get(name, {"perplexity"})} & set(one):
                    assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-5), (name, engine, step, split, key)
