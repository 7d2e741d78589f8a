"""Tasks beside the next token, as a user runs them: train, evaluate, answer, export, and all folds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.distributed.tasks import small_llama, tasks, write_rows
from tests.recipes.conftest import Run, metrics


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    small_llama(folder)
    return folder


def test_translation_is_trained_measured_and_answered(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = tasks(rows)["t5_translation"]
    bigtrain("train", *words, "trainer.max_steps=40", "engine=local", f"run.dir={run}")
    search = ["--beams", "2", "--json", "--out", str(tmp_path / "texts")]
    done = bigtrain("evaluate", str(run), "task=translation", *search)
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(metrics(run, "eval")[-1]["loss"], rel=1e-4)
    assert found["bleu"] > 10 and 0 < found["chrf"] <= 100
    texts = [json.loads(line) for line in (tmp_path / "texts").read_text().splitlines()]
    assert len(texts) == 4 and texts[0]["source"].startswith("translate German to English: das ")
    answer = bigtrain("generate", str(run), "--prompt", "das ship ist alt 3").stdout.strip()
    assert answer.startswith("the ")
    from transformers import AutoModelForSeq2SeqLM

    AutoModelForSeq2SeqLM.from_pretrained(run / "export")
    bigtrain("evaluate", str(run), "task=translating", code=2)


def test_a_classifier_keeps_its_names_and_its_confusion(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bigtrain("train", *tasks(rows)["bert_classification"], "trainer.max_steps=10", "engine=local", f"run.dir={run}")
    assert "say task=translation" in bigtrain("evaluate", str(run), "--beams", "2", code=2).stderr
    last = metrics(run, "eval")[-1]
    assert last["accuracy"] > 0.6
    config = json.loads((run / "export" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    matrix = json.loads((run / "confusion.json").read_text())
    assert sum(map(sum, matrix["matrix"])) == 10 and matrix["names"] == ["bad", "good"]
    assert "Confusion matrix" in (run / "report.html").read_text()
    picture = tmp_path / "confusion.svg"
    done = bigtrain("evaluate", str(run), "--json", "--picture", str(picture), "--out", str(tmp_path / "out"))
    said = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(said) == 10 and all(each["text"] and 0.5 <= each["probability"] <= 1 for each in said)
    right = sum(each["label"] == each["predicted"] for each in said)
    assert right == sum(matrix["matrix"][n][n] for n in range(2)) and said[0]["label"] in ("bad", "good")
    nowhere = str(tmp_path / "nowhere" / "out")
    assert "there is no folder" in bigtrain("evaluate", str(run), "--out", nowhere, code=2).stderr
    assert json.loads(done.stdout)["confusion"] == matrix["matrix"] and picture.read_text().startswith("<svg")
    foreign = ["data=labelled_texts", f"data.path={rows}/reviews.tsv", "--json"]
    assert json.loads(bigtrain("evaluate", str(run / "export"), *foreign).stdout)["targets"] == 40
    message = bigtrain("train", *tasks(rows)["bert_classification"], "model.classes=1", "engine=local", code=2).stderr
    assert "the data have 2 classes and the model's head 1" in message and "Traceback" not in message


@pytest.mark.parametrize("task", ["llama_lora", "qlora"])
def test_adapters_are_merged_on_export(bigtrain: Run, rows: Path, tmp_path: Path, task: str) -> None:
    run, words = tmp_path / "run", tasks(rows, rows / "llama")[task]
    bigtrain("train", *words, "engine=local", f"run.dir={run}")
    told = json.loads(bigtrain("evaluate", str(run), "--json").stdout)
    assert told["loss"] == pytest.approx(metrics(run, "eval")[-1]["loss"], rel=1e-4) and told["bits_per_byte"] > 0
    from safetensors import safe_open

    with safe_open(run / "export" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name]  # noqa: SIM118 - not a mapping
    data = [f"data.path={rows}/talks.jsonl", "data.sequence_length=96", "--json"]
    ours = json.loads(bigtrain("evaluate", str(run), *data).stdout)
    theirs = json.loads(bigtrain("evaluate", str(run / "export"), "data=conversations", *data).stdout)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    if task == "llama_lora":
        answers_are_those_of_the_chat(bigtrain, run, tmp_path / "texts")


def answers_are_those_of_the_chat(bigtrain: Run, run: Path, out: Path) -> None:
    """Written many at a time, behind padding and out of packed samples, they are what one alone is answered."""
    words = ["task=summarisation", "--beams", "1", "--json", "--out", str(out)]
    assert 0 <= json.loads(bigtrain("evaluate", str(run), *words).stdout)["rouge1"] <= 1
    texts = [json.loads(line) for line in out.read_text().splitlines()]
    asked = {each["source"]: each for each in texts if each["source"].startswith("user")}
    assert len(texts) >= 4 and asked
    source, each = max(asked.items())
    prompt = source.removeprefix("user").removesuffix("assistant").strip()
    alone = bigtrain(
        "generate", str(run), "--chat", "--prompt", prompt, "--max-new-tokens", "128", "--temperature", "0"
    ).stdout
    assert alone.strip() == each["written"]
    plain = ["data=text", "data.path=pkg://bigtrain/data/corpus/moby-dick.txt.xz", "data.sequence_length=96"]
    few = ["trainer.eval_batches=1", "task=translation"]
    assert "take data=conversations" in bigtrain("evaluate", str(run), *plain, *few, code=2).stderr


def test_adapters_and_models_that_fit_nowhere_are_said_first(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    words = tasks(rows, rows / "llama")["llama_lora"]
    fresh = [*words, "engine=local", f"data.cache={tmp_path}/nothing_yet"]
    message = bigtrain("train", *fresh, "model.lora.targets=[q_prj]", code=2).stderr
    assert "q_prj matches no linear layer; there are q_proj (2), k_proj (2)" in message and "mean 'q_proj'" in message
    message = bigtrain("train", *fresh, f"model.path={rows}/lama", "data.tokenizer=null", code=2).stderr
    assert f"model.path={rows}/lama: there is no such folder" in message and f"mean '{rows}/llama'?" in message
    assert not (tmp_path / "nothing_yet").exists(), "said before the data are prepared"


def test_folds_tell_mean_and_deviation(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folds"
    words = [*tasks(rows)["bert_classification"], "engine=local", "evaluation.folds=2", f"run.dir={folder}"]
    done = bigtrain("train", *words, "trainer.max_steps=4", "evaluation.export=false", "evaluation.report=false")
    found = json.loads((folder / "folds.json").read_text())["accuracy"]
    assert len(found["folds"]) == 2 and found["mean"] == pytest.approx(statistics.fmean(found["folds"]))
    assert "deviation" in done.stdout and done.stdout.strip().endswith("folds")
    held = [sum(map(sum, json.loads(file.read_text())["matrix"])) for file in folder.glob("*/confusion.json")]
    assert held == [20, 20]
    rare = tmp_path / "rare.tsv"
    rare.write_text((rows / "reviews.tsv").read_text() + "a film of its own\tstrange\n")
    words = [*tasks(rows)["bert_classification"], f"data.path={rare}", "engine=local", f"run.dir={tmp_path}/none"]
    message = bigtrain("train", *words, "evaluation.folds=2", code=2).stderr
    assert message.count("the label 'strange' has 1 different rows") == 1 and not (tmp_path / "none").exists()
    assert "has no folds" in bigtrain("train", "recipe=quickstart", "evaluation.folds=3", code=2).stderr


def test_what_is_best_is_what_early_stopping_looks_at(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", [*tasks(rows)["bert_classification"], "engine=local", "evaluation.export=false"]
    stop = ["trainer.eval_every=1", "trainer.max_steps=9", "checkpoint.every=1", "checkpoint.keep_best=1"]
    early = "trainer.early_stopping={patience: 2, min_delta: 9.0, metric: %s}"
    message = bigtrain("train", *words, *stop, early % "acuracy", code=2).stderr
    assert "there is no such metric. Did you mean 'accuracy'?" in message
    message = bigtrain("train", *words, *stop, early % "pearson", f"run.dir={tmp_path}/no", code=2).stderr
    assert "this objective has none. Did you mean 'precision'?" in message and "Traceback" not in message
    done = bigtrain("train", *words, *stop, early % "accuracy", f"run.dir={run}")
    assert "stopped early: 2 evaluations without a better held-out accuracy" in done.stdout
    assert "targets/s" in done.stdout and "tok/s" not in done.stdout
    found = {line["step"]: line["accuracy"] for line in metrics(run, "eval")}
    assert max(found) == 2
    manifests = {file.parent.name: json.loads(file.read_text()) for file in run.glob("checkpoints/*/manifest.json")}
    assert {manifest["metric"] for manifest in manifests.values()} <= {-found[1], -found[2]}
    bigtrain("train", f"run.dir={run}", early % "loss")
    assert max(line["step"] for line in metrics(run, "eval")) == 5, "by another metric nothing is the best yet"


def test_a_refused_resume_leaves_the_run_as_it_was(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", [*tasks(rows)["bert_classification"], "engine=local", "evaluation.export=false"]
    bigtrain("train", *words, f"run.dir={run}")
    labels = (run / "labels.json").read_text()
    bigtrain("train", f"run.dir={run}", "trainer.max_steps=99", "data.held_out=0.5", code=2)
    assert (run / "labels.json").read_text() == labels
    told = bigtrain("evaluate", str(run), "--json")
    assert "fresh weights" not in told.stderr and json.loads(told.stdout)["number_format"] == "fp32"
    assert 0 <= json.loads(told.stdout)["precision"] <= 1


def test_the_harness_measures_an_export(bigtrain: Run, rows: Path, tmp_path: Path) -> None:
    task = {
        "task": "whales", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": f"{tmp_path}/whales.jsonl"}}, "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "whales.yaml").write_text(json.dumps(task))
    choices = [" swims", " swims in the sea and dives for a very long time"]  # the shorter is likelier
    lines = [json.dumps({"question": f"Whale {n}", "choices": choices, "answer": int(n % 4 == 3)}) for n in range(8)]
    (tmp_path / "whales.jsonl").write_text("\n".join(lines))
    words = ["task=lm_eval", "--include", f"{tmp_path}/tasks"]
    done = bigtrain("evaluate", str(rows / "llama"), *words, "--tasks", "whales", "--json")
    assert json.loads(done.stdout)["results"]["whales"]["acc"] == 0.75
    message = bigtrain("evaluate", str(rows / "llama"), *words, "--tasks", "whale", code=2).stderr
    assert "Did you mean 'whales'?" in message
