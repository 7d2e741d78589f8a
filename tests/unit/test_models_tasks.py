"""Models of transformers by task: heads, weights that do not fit, adapters and the teacher beside a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.models import hugging_face
from bigtrain.models.adapters import merged
from bigtrain.objectives import distillation, dpo

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32}  # fmt: skip
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2, "intermediate_size": 32}  # fmt: skip
IDS = torch.tensor([[1, 2, 3, 4]])


def saved(folder: Path, config: dict[str, Any], task: str, **changes: Any) -> Path:
    torch.manual_seed(3)
    hugging_face(config=config | changes, task=task, vocab_size=50).hf.save_pretrained(folder)  # type: ignore[arg-type, union-attr, operator]
    return folder


def test_a_classifier_takes_an_encoder_and_says_which_weights_are_fresh(tmp_path: Path, capsys: Any) -> None:
    encoder = saved(tmp_path / "bert", BERT, "masked_lm")
    torch.manual_seed(0)
    model: Any = hugging_face(path=str(encoder), task="sequence_classification", classes=3)
    said = capsys.readouterr().err
    assert "fresh weights for bert.pooler.dense" in said and "not used: cls." in said
    assert model(input_ids=IDS).shape == (1, 3) and model.classes == 3
    whole: Any = hugging_face(path=str(encoder), task="masked_lm")
    assert whole(input_ids=IDS).shape == (1, 4, 50)
    for name, weight in whole.hf.bert.named_parameters():
        assert torch.equal(weight, model.hf.bert.get_parameter(name)), name


def test_weights_that_are_lacking_or_too_many_are_named_and_refused(tmp_path: Path) -> None:
    folder = str(saved(tmp_path / "bert", BERT, "masked_lm"))
    from safetensors.torch import load_file, save_file

    file = f"{folder}/model.safetensors"
    held = load_file(file)
    lacking = {name: weight for name, weight in held.items() if "intermediate" not in name}
    save_file(lacking, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack bert\.encoder\.layer\.0\.intermediate\.dense\.bias.*allow_missing=true"):
        hugging_face(path=folder, task="sequence_classification", classes=2)
    hugging_face(path=folder, task="sequence_classification", classes=2, allow_missing=True)
    save_file(held | {"bert.extra.weight": torch.zeros(2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"have, unlike the model, bert\.extra\.weight"):
        hugging_face(path=folder, task="sequence_classification", classes=2)
    encoder = {name: weight for name, weight in held.items() if not name.startswith("cls.")}
    save_file(encoder, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack cls\.predictions"):  # a language model's head is no fresh one
        hugging_face(path=folder, task="masked_lm")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"config": BERT, "task": "seq2seq"}, "is a bert, which is not a model for seq2seq"),
        ({"config": LLAMA, "task": "masked_lm"}, "is a llama, which is not a model for masked lm"),
        ({"config": LLAMA, "task": "causal_ml"}, "there is no such task. Did you mean 'causal_lm'"),
        ({"config": BERT, "task": "masked_lm", "teacher": "x"}, "stands beside causal language models"),
        (
            {"config": LLAMA, "lora": {"targets": ["attn"]}},
            r"attn matches no linear layer; there are q_proj \(1\), k_proj",
        ),
        ({"config": LLAMA, "lora": {"targets": ["q_prj"]}}, r"q_prj matches no linear layer.*Did you mean 'q_proj'"),
        ({"config": LLAMA, "lora": {"rank": 0}}, "rank at least 1"),
        ({"config": LLAMA, "lora": {"quantize": "nf5"}}, "model.lora.quantize=nf5: there are nf4 and fp4"),
        ({"config": LLAMA, "lora": {"quantize": "nf4", "dora": True}}, "take one of the two"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        hugging_face(vocab_size=50, **settings)


@pytest.mark.parametrize(
    "lora",
    [{"rank": 4}, {"rank": 2, "dora": True, "targets": ["q_proj", "down_proj"]}, {"rank": 2, "quantize": "fp4"}],
)
def test_merged_adapters_are_the_same_function(lora: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = hugging_face(config=LLAMA, vocab_size=50, lora=lora)  # type: ignore[arg-type]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at first zero: the adapters change nothing
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    with torch.no_grad():
        before = model(IDS)
        model.hf = merged(model.hf)
        after = model(IDS)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    plain: Any = hugging_face(config=LLAMA, vocab_size=50)
    plain.hf.load_state_dict(model.hf.state_dict())  # the names of a model that never had adapters


def test_adapters_learn_beside_frozen_weights_of_4_bits(tmp_path: Path) -> None:
    path = str(saved(tmp_path / "llama", LLAMA | {"hidden_size": 64, "intermediate_size": 128}, "causal_lm"))
    whole: Any = hugging_face(path=path)
    model: Any = hugging_face(path=path, lora={"rank": 2, "quantize": "nf4"})  # type: ignore[arg-type]
    coded = {name: p for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(coded) == 7 and not any(parameter.requires_grad for parameter in coded.values())
    assert sum(p.numel() for p in coded.values()) * 2 == 4 * 64 * 64 + 3 * 64 * 128
    exact, rounded = whole(IDS), model(IDS)
    assert not torch.equal(exact, rounded) and (exact - rounded).norm() < 0.2 * exact.norm()
    rounded.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_classifiers_fresh_head_is_trained_beside_its_adapters(tmp_path: Path) -> None:
    encoder = saved(tmp_path / "bert", BERT, "masked_lm")
    model: Any = hugging_face(
        path=str(encoder),
        task="sequence_classification",
        classes=2,
        lora={"rank": 2},  # type: ignore[arg-type]
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora" not in name}
    heads = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained == {f"hf.{name}" for name in heads}


def test_the_teacher_is_frozen_and_stays_in_eval_mode(tmp_path: Path) -> None:
    path = str(saved(tmp_path / "llama", LLAMA, "causal_lm"))
    model: Any = hugging_face(path=path, teacher=path)
    assert model.train().teacher.training is False and model.training
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    batch = {"input_ids": IDS.repeat(2, 1), "labels": torch.tensor([[2, 3, 4, -100], [2, 3, -100, -100]])}
    both = distillation(weight=1.0)
    assert float(both.loss(model, batch)) == pytest.approx(0, abs=1e-5)  # the teacher is the student
    sums = distillation(weight=0.25).tally(model.eval(), batch)
    assert float(sums[0]) == pytest.approx(0.75 * float(sums[1]) + 0.25 * float(sums[2]))
    other = saved(tmp_path / "other", LLAMA, "causal_lm", vocab_size=60)
    with pytest.raises(UserError, match="knows 60 tokens and the model 50"):
        hugging_face(path=path, teacher=str(other))
    alone: Any = hugging_face(path=path)
    with pytest.raises(UserError, match="objective=dpo needs a second, frozen model"):
        dpo().loss(alone, {name: values[None] for name, values in batch.items()})
