"""evaluate, generate and export on a run that was really trained, by two ranks, and on its export."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigtrain.config.components import build
from bigtrain.errors import EXIT_USER, RunError, UserError
from bigtrain.evaluate import evaluate
from bigtrain.evaluate import main as evaluate_main
from bigtrain.export import export
from bigtrain.export import main as export_main
from bigtrain.generate import Sampling, choose, complete, continuation, generate
from bigtrain.generate import main as generate_main
from bigtrain.trained import MARKER, Trained, load_trained

TALE = "the whale sea ship captain white old man deep water harpoon sail wind rope boat night"
WORDS = TALE.split()
GREEDY = Sampling(max_new_tokens=12, temperature=0)


def story(documents: int) -> str:
    """Documents of words that follow each other by a simple rule, parted by empty lines."""
    texts = [
        " ".join(WORDS[(start + i * (1 + start % 3)) % len(WORDS)] for i in range(60)) for start in range(documents)
    ]
    return "\n\n".join(texts)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where the training was started, with the text, the prepared data and the run."""
    home = tmp_path_factory.mktemp("home")
    (home / "text.txt").write_text(story(40))
    words = "recipe=smoke run.dir=run data=text data.path=text.txt data.cache=cache data.held_out=0.3 data.workers=1"
    words += " data.document_separator='\\n\\n' data.vocab_size=300 data.sequence_length=32 model.layers=2"
    words += " model.width=32 model.heads=2 model.mlp_width=64 engine=ddp launcher.processes=2 trainer.max_steps=8"
    words += " trainer.micro_batch_size=2 trainer.eval_every=4 trainer.eval_batches=3 checkpoint.every=4"
    words += " optimizer.lr=1e-2 schedule.warmup_steps=1 evaluation.generate=the evaluation.generate_tokens=8"
    words += " evaluation.export=true evaluation.report=false trainer.device=cpu"
    command = [sys.executable, "-m", "bigtrain", "train", *words.split()]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=200, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    before = Path.cwd()
    os.chdir(home)  # data.path and data.cache of the run are relative
    yield home
    os.chdir(before)


@pytest.fixture(scope="module")
def trained(home: Path) -> Trained:
    return load_trained(home / "run", device="cpu")


def eval_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"]


# ---------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_says_what_training_said(home: Path) -> None:
    first, middle, last = eval_lines(home / "run")
    assert last["loss"] < first["loss"]
    for path, line in (
        ("run", last),
        ("run/checkpoints/step_00000008", last),
        ("run/checkpoints/step_00000004", middle),
    ):
        found = evaluate(path, device="cpu")
        assert (found.step, found.tokens) == (line["step"], line["tokens"])
        assert found.loss == pytest.approx(line["loss"], abs=1e-5)
        assert found.metrics["perplexity"] == pytest.approx(line["perplexity"], rel=1e-5)
        assert found.targets == 3 * 8 * 32  # batches of eight samples, however many ranks
    odd = evaluate("run", batch_size=5, device="cpu")
    assert odd.loss == pytest.approx(last["loss"], abs=1e-5) and odd.targets == 768


def test_evaluate_prints_a_table_or_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = eval_lines(home / "run")[-1]
    assert evaluate_main(["run", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert [text.index(word) for word in ("step", "tokens", "loss", "perplexity")] == sorted(
        text.index(word) for word in ("step", "tokens", "loss", "perplexity")
    )
    assert f"{line['loss']:.5f}" in text and "the first 24 of" in text
    assert evaluate_main(["run", "--device", "cpu", "--json", "task=language_modelling"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(line["loss"], abs=1e-5) and found["step"] == 8


def test_a_picture_is_refused_before_anything_is_evaluated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtrain.evaluate.add_up", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(UserError, match="for classifiers: there is no confusion matrix of causal_lm"):
        evaluate_main(["run", "--device", "cpu", "--picture", "matrix.svg"])
    with pytest.raises(UserError, match="--picture nowhere/matrix.svg: there is no folder nowhere"):
        evaluate_main(["run", "--device", "cpu", "--picture", "nowhere/matrix.svg"])


def test_evaluate_prepares_again_what_is_gone_and_refuses_what_has_changed(home: Path) -> None:
    loss = eval_lines(home / "run")[-1]["loss"]
    (home / "cache").rename(home / "old-cache")
    try:
        assert evaluate("run", device="cpu").loss == pytest.approx(loss, abs=1e-5)
        text = (home / "text.txt").read_text()
        (home / "text.txt").write_text(text + "\n\nthe whale has changed\n\nand changed again")
        with pytest.raises(UserError, match="has changed since it was trained"):
            evaluate("run", device="cpu")
        (home / "text.txt").write_text(text)
    finally:
        shutil.rmtree(home / "cache")
        (home / "old-cache").rename(home / "cache")


def test_evaluate_on_another_text_is_the_mean_over_all_of_it(home: Path, trained: Trained) -> None:
    (home / "other.txt").write_text("the old man and the sea. " * 90)
    tokenizer = trained.need_tokenizer()
    ids = torch.tensor([*tokenizer((home / "other.txt").read_text())["input_ids"], tokenizer.eos_token_id])
    wanted, targets = 0.0, 0
    for start in range(0, len(ids) - 1, 32):
        part = ids[start : start + 33]
        with torch.no_grad():
            logits = trained.model(part[None, :-1])[0]
        wanted += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
        targets += len(part) - 1
    for path in ("run", "run/export"):
        words = ["data.path=other.txt", "data.cache=cache2", "data.sequence_length=32"]
        found = evaluate(path, overrides=words, device="cpu")
        assert found.targets == targets == len(ids) - 1 > 768  # all of it, not trainer.eval_batches
        assert found.loss == pytest.approx(wanted / targets, abs=1e-5)


def test_the_export_evaluates_like_the_run(home: Path) -> None:
    whole = evaluate("run", overrides=["trainer.eval_batches=null"], device="cpu")
    words = ["data=text", "data.path=text.txt", "data.document_separator=\\n\\n", "data.held_out=0.3"]
    found = evaluate("run/export", overrides=[*words, "data.sequence_length=32", "data.cache=cache2"], device="cpu")
    assert found.targets == whole.targets > 384
    assert found.loss == pytest.approx(whole.loss, abs=1e-5)
    assert (found.step, found.tokens) == (whole.step, whole.tokens)


def test_evaluate_refuses_what_it_cannot_do(home: Path) -> None:
    for arguments, message in (
        (["run/export"], "without held-out data: name them, as data=text data.path=FILE"),
        (["run", "task=translating"], "no task=translating. Did you mean .translation"),
        (["run", "--batch-size", "0"], "batch-size must be at least 1"),
        (["run", "data.path=othr.txt"], "no such file"),
        (["run", "data.held_out=x"], "data.held_out must be float"),
        (["run", "data.path=text.txt", "data.tokenizer=nowhere"], "nowhere"),
        (["run", "--jsn"], "no option --jsn. Did you mean '--json'"),
        (["run", "run/export"], "one PATH, not run and run/export"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_main(arguments)


# ---------------------------------------------------------------------------------------------------------- generate


def test_the_sample_of_the_training_is_that_of_the_command(home: Path) -> None:
    sample = (home / "run/sample.txt").read_text()
    assert generate("run", "the", max_new_tokens=8) + "\n" == sample
    assert sample.startswith("the")


def test_greedy_is_transformers_greedy(home: Path, trained: Trained) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(home / "run/export")
    tokenizer = AutoTokenizer.from_pretrained(home / "run/export")
    for prompt in ("the whale", "captain", "old man"):
        ids = tokenizer(prompt, return_tensors="pt")
        wanted = theirs.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
        prompt_ids = ids["input_ids"][0].tolist()
        ours = [*prompt_ids, *continuation(trained, prompt_ids, GREEDY, seed=0)]
        assert ours == [token for token in wanted.tolist() if token != tokenizer.eos_token_id]
        assert complete(trained, prompt, GREEDY) == tokenizer.decode(wanted, skip_special_tokens=True)
        assert generate("run/export", prompt, max_new_tokens=12, temperature=0) == complete(trained, prompt, GREEDY)


def test_seeds_decide_and_a_long_text_leaves_the_window_behind(trained: Trained) -> None:
    long = Sampling(max_new_tokens=60, temperature=1.5, top_k=0)
    texts = [complete(trained, "the whale", long, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    ids = list(range(1, 41))  # longer than the window of 32: only the last 32 count
    cropped = list(continuation(trained, ids[-32:], GREEDY, 0))
    assert list(continuation(trained, ids, GREEDY, 0)) == cropped


def test_the_end_of_text_ends_it(trained: Trained) -> None:
    tokenizer = trained.need_tokenizer()
    first = next(continuation(trained, [5], GREEDY, 0))
    before, tokenizer.eos_token_id = tokenizer.eos_token_id, first
    try:
        assert list(continuation(trained, [5], GREEDY, 0)) == []
    finally:
        tokenizer.eos_token_id = before


def test_top_k_and_top_p_keep_the_likeliest_and_the_odds() -> None:
    chances = torch.tensor([0.05, 0.5, 0.15, 0.3])
    generator = torch.Generator().manual_seed(0)

    def drawn(**settings: Any) -> dict[int, float]:
        sampling = Sampling(**{"temperature": 1.0, "top_k": 0} | settings)
        tokens = [choose(chances.log(), sampling, generator) for _ in range(4000)]
        return {token: tokens.count(token) / 4000 for token in sorted(set(tokens))}

    assert drawn() == pytest.approx({0: 0.05, 1: 0.5, 2: 0.15, 3: 0.3}, abs=0.03)
    assert drawn(top_k=2) == pytest.approx({1: 0.625, 3: 0.375}, abs=0.03)
    assert drawn(top_p=0.9) == pytest.approx({1: 0.526, 2: 0.158, 3: 0.316}, abs=0.03)
    assert drawn(top_p=0.4) == drawn(top_k=1) == drawn(temperature=0) == drawn(temperature=1e-30) == {1: 1.0}
    squared = chances**2 / (chances**2).sum()
    assert drawn(temperature=0.5) == pytest.approx(dict(enumerate(squared.tolist())), abs=0.03)
    with pytest.raises(RunError, match="not numbers"):
        choose(chances * math.nan, Sampling(), generator)


def test_generate_reads_standard_input_and_makes_several(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("the whale\n"))
    words = ["run", "--prompt", "-", "--samples", "2", "--seed", "4", "--max-new-tokens", "5", "--device", "cpu"]
    assert generate_main(words) == 0
    one, two = capsys.readouterr().out.split("---\n")
    assert one == generate("run", "the whale", max_new_tokens=5, seed=4) + "\n"
    assert two == generate("run", "the whale", max_new_tokens=5, seed=5) + "\n"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "-1", "temperature must be 0"),
        ("--temperature", "nan", "temperature must be 0"),
        ("--top-k", "-2", "top-k must be"),
        ("--top-p", "0", "top-p must be"),
        ("--top-p", "1.5", "top-p must be"),
        ("--max-new-tokens", "0", "max-new-tokens must be"),
        ("--max-new-tokens", "ten", "--max-new-tokens: invalid int value: 'ten'"),
        ("--samples", "0", "samples must be"),
        ("--seed", "-1", "seed must be"),
        ("--tempratur", "1", "no option --tempratur. Did you mean '--temperature'"),
    ],
)
def test_generate_refuses_bad_values(home: Path, option: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_main(["run", "--prompt", "the", option, value])


# ------------------------------------------------------------------------------------------------------------ export


def test_the_folder_is_the_same_function_and_comes_back_in(home: Path, trained: Trained) -> None:
    from transformers import AutoModelForCausalLM

    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        child.name for child in (home / "run/export").iterdir()
    }
    ids = torch.randint(0, trained.vocab_size or 0, (3, 32), generator=torch.Generator().manual_seed(5))
    settings = {"path": str(home / "run/export"), "vocab_size": None, "sequence_length": 32}
    native = build({"_target_": "bigtrain.models.decoder", **settings}, "model").eval()
    theirs = AutoModelForCausalLM.from_pretrained(home / "run/export")
    with torch.no_grad():
        wanted = trained.model(ids)
        torch.testing.assert_close(native(ids), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs(ids).logits, wanted, rtol=0, atol=1e-5)


def test_an_export_replaces_its_own_and_nothing_else(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep/out"
    assert export_main(["run/checkpoints/step_00000004", "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(out) and "differ from the model's by" in said[-2]
    assert json.loads((out / MARKER).read_text())["step"] == 4
    export("run", out, device="cpu")
    assert json.loads((out / MARKER).read_text())["step"] == 8
    assert [child.name for child in out.parent.iterdir()] == ["out"]

    (out / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.md, which no export wrote"):
        export("run", out, device="cpu")
    (out / "notes.md").unlink()
    (out / MARKER).unlink()
    with pytest.raises(UserError, match="bigtrain did not write"):
        export("run", out, device="cpu")
    assert (out / "model.safetensors").is_file()
    export("run", out, force=True, device="cpu")
    assert (out / MARKER).is_file()

    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    for wrong, message in (
        (tmp_path / "full", "is not empty and no export"),
        (tmp_path / "full/thesis.txt", "is a file"),
        (tmp_path / "full/thesis.txt/out", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            export("run", wrong, force=True, device="cpu")
    with pytest.raises(UserError, match="is what should be exported"):
        export(out, out, device="cpu")
    assert (tmp_path / "full/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precisions_round_the_weights_once(
    home: Path, tmp_path: Path, trained: Trained, dtype: Any, torch_dtype: torch.dtype
) -> None:
    from safetensors.torch import load_file

    out = export("run", tmp_path / "out", dtype=dtype, device="cpu")
    assert json.loads((out / "config.json").read_text())["dtype"] == str(torch_dtype).removeprefix("torch.")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch_dtype}
    back = load_trained(out, device="cpu")
    wanted = trained.model.state_dict()["norm.weight"].to(torch_dtype).float()
    assert torch.equal(back.model.state_dict()["hf.model.norm.weight"], wanted)
    assert export(out, tmp_path / "again", device="cpu").is_dir()


# --------------------------------------------------------------------------------------------------- the command line


def test_the_doors_import_no_torch() -> None:
    script = "import sys, bigtrain.evaluate, bigtrain.generate, bigtrain.export; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("command", ["evaluate", "generate", "export"])
def test_help_and_faults_of_the_command(command: str) -> None:
    bare = [sys.executable, "-m", "bigtrain", command]
    shown = subprocess.run([*bare, "--help"], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0 and f"bigtrain {command} runs/" in shown.stdout
    extra = {"generate": ["--prompt", "x"], "export": ["--out", "x"]}.get(command, [])
    failed = subprocess.run([*bare, "no-such-run", *extra], capture_output=True, text=True, timeout=60)
    assert failed.returncode == EXIT_USER
    assert failed.stderr.startswith("bigtrain: There is no no-such-run.") and failed.stderr.count("\n") == 1
