"""Which tokens of a sample are asked for, and what stands before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigtrain.data.chats import CHATML
from bigtrain.data.tokenizer import load, save, train
from bigtrain.written import answers, end_of_turn


def test_every_run_of_targets_is_an_answer_to_what_stands_before_it_in_its_document() -> None:
    ids = np.arange(10, 20)
    labels = np.array([-100, 12, 13, -100, 15, -100, -100, 18, 19, 20])  # each of the token behind it
    documents = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 2])
    found = [(prompt.tolist(), answer.tolist()) for prompt, answer in answers(
        {"input_ids": ids, "labels": labels, "document_ids": documents})]  # fmt: skip
    assert found == [
        ([10, 11], [12, 13]),
        ([10, 11, 12, 13, 14], [15]),
        ([15, 16, 17], [18, 19]),
        ([19], [20]),
    ]
    alone = answers({"input_ids": ids, "labels": labels})
    assert [len(prompt) for prompt, _ in alone] == [2, 5, 8]


def test_what_ends_a_turn_is_no_part_of_an_answer(tmp_path: Path) -> None:
    save(train(["some words of no language"], 300), tmp_path / "words")
    tokenizer = load(tmp_path / "words")
    assert end_of_turn(tokenizer) == ""
    tokenizer.chat_template = CHATML
    assert end_of_turn(tokenizer) == "<|im_end|>"
