"""The losses of supervised fine-tuning and of DPO against TRL's, from the same rows to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.data import Conversations, Preferences
from bigtrain.data.chats import CHATML
from bigtrain.data.tokenizer import load, save, train
from bigtrain.models.wrapped import HuggingFace
from bigtrain.objectives import causal_lm, dpo

trl = pytest.importorskip("trl")

TALKS = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a whale?"},
     {"role": "assistant", "content": "A spouting fish with a horizontal tail."}],
    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Ishmael."},
     {"role": "user", "content": "And whose ship is it?"}, {"role": "assistant", "content": "Captain Ahab's."}],
    [{"role": "user", "content": "Where to?"}, {"role": "assistant", "content": "Round the Cape, and then east."}],
]  # fmt: skip
WORSE = ["I do not know.", "Yours, sir!", "Home."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = [message["content"] for talk in TALKS for message in talk] * 3
    save(train(iter(text), 400, ["<|im_start|>", "<|im_end|>"]), tmp_path / "tokenizer")
    tokenizer = load(tmp_path / "tokenizer")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=2, initializer_range=0.2, attention_dropout=0.0)
    )  # fmt: skip


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def arguments(kind: Any, folder: Path, **settings: Any) -> Any:
    return kind(
        output_dir=str(folder / "trl"), per_device_train_batch_size=3, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=512, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_trls(folder: Path, beta: float) -> None:
    import datasets

    rows = [{"prompt": talk[:-1], "chosen": talk[-1:], "rejected": [{"role": "assistant", "content": worse}]}
            for talk, worse in zip(TALKS, WORSE, strict=True)]  # fmt: skip
    own, reference = model(1), model(2)
    trainer = trl.DPOTrainer(
        own, reference, args=arguments(trl.DPOConfig, folder, beta=beta),
        train_dataset=datasets.Dataset.from_list(rows), processing_class=load(folder / "tokenizer"),
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    theirs = float(trainer.compute_loss(own.train(), dict(batch)))

    whole = [{"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in rows]
    data = Preferences(path=written(folder, whole), tokenizer=str(folder / "tokenizer"), held_out=0, cache=str(folder))
    data.prepare()
    ours = {name: torch.from_numpy(values) for name, values in data.train.batch([0, 1, 2]).items()}
    objective, both = dpo(beta=beta), HuggingFace(own)
    both.stand_beside(HuggingFace(reference), "reference")
    assert objective.count(ours) == 3
    assert float(objective.loss(both, ours)) / 3 == pytest.approx(theirs, abs=1e-5)
    sums = objective.tally(both, ours)
    assert float(sums[0]) / 3 == pytest.approx(theirs, abs=1e-5)
    assert 0 <= objective.summary(sums, 3)["accuracy"] <= 1


@pytest.mark.parametrize("packing", [False, True])
def test_supervised_fine_tuning_is_trls(folder: Path, packing: bool) -> None:
    import datasets

    own = model(3)
    rows = [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in TALKS if len(talk) < 4]
    trainer = trl.SFTTrainer(
        own, args=arguments(trl.SFTConfig, folder), train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load(folder / "tokenizer"),
    )  # fmt: skip
    (batch,) = trainer.get_train_dataloader()
    theirs = float(trainer.compute_loss(own.train(), dict(batch)))

    data = Conversations(
        path=written(folder, [{"messages": talk} for talk in TALKS if len(talk) < 4]), packing=packing, held_out=0,
        tokenizer=str(folder / "tokenizer"), cache=str(folder),
    )  # fmt: skip
    data.prepare()
    assert len(data.train) == (1 if packing else 2)
    ours = {name: torch.from_numpy(values) for name, values in data.train.batch(range(len(data.train))).items()}
    objective, wrapped = causal_lm(), HuggingFace(own)
    wrapped.keeps_apart = True
    assert float(objective.loss(wrapped, ours)) / objective.count(ours) == pytest.approx(theirs, abs=1e-5)
