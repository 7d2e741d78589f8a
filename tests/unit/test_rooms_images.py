"""The commands on runs of classifiers: what they say, and what they refuse in one message."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.export import export
from bigtrain.generate import generate
from bigtrain.outputs import print_evaluations
from bigtrain.report import write_report
from bigtrain.telemetry.metrics import counted
from bigtrain.telemetry.progress import TrainProgress
from bigtrain.trained import load_trained
from tests.unit.test_rooms_trained import make_run

IMAGES = ["model.image_size=8", "model.width=8", "model.classes=3"]


def test_image_models_write_no_text_and_have_no_export(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["model=cnn", *IMAGES], steps=(1,))
    with pytest.raises(UserError, match="run is a model for image classification, and writes no text"):
        generate(run, "the whale")
    with pytest.raises(UserError, match="ConvNet has no Hugging Face form"):
        export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_trained_head_is_not_called_fresh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path / "bert")
    words = ["model=hugging_face", f"model.path={tmp_path}/bert", "model.task=sequence_classification"]
    run = make_run(tmp_path / "run", [*words, "model.classes=2"], steps=(1,))
    assert "fresh weights for" in capsys.readouterr().err, "at the beginning of a training it is said"
    load_trained(run)
    assert "fresh" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "word", "rate"),
    [
        ("bigtrain.objectives.classification", "targets", "targets/s"),
        ("bigtrain.objectives.regression", "targets", "targets/s"),
        ("bigtrain.objectives.dpo", "pairs", "pairs/s"),
        ("bigtrain.objectives.seq2seq", "tokens", "tok/s"),
        ("mine.Objective", "targets", "targets/s"),
    ],
)
def test_words_say_what_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, word: str, rate: str
) -> None:
    objective = {"_target_": target}
    output = StringIO()
    TrainProgress(9, unit=rate.removesuffix("/s"), output=output).log(3, "train", {"loss": 1.0, "tokens_per_s": 250.0})
    assert f"250 {rate}" in output.getvalue()
    lines = [
        {"step": 3, "split": "train", "loss": 1.0, "tokens": 24, "tokens_per_s": 250.0, "step_time_s": 0.1},
        {"step": 3, "split": "eval", "loss": 1.0, "tokens": 24},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.yaml").write_text(json.dumps({"objective": objective, "run": {"dir": str(tmp_path)}}))
    print_evaluations(tmp_path, counted(objective))
    assert word in capsys.readouterr().out
    page = write_report(tmp_path).read_text().partition('id="bigtrain-data"')[0]
    assert f"Throughput, {word} per second" in page and f"<dt>{word} / s" in page and f"<th>{word}</th>" in page
    assert ("tokens" in page.replace("value=tokens", "")) is (word == "tokens")
