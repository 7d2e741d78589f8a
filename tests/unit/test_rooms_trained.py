"""Loading trained models: from runs, checkpoints and Hugging Face folders, whole, damaged, foreign and hostile."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.manifest import File
from bigtrain.checkpoint.save import save
from bigtrain.config.components import build
from bigtrain.config.compose import compose, freeze
from bigtrain.data import tokenizer as tokenizers_
from bigtrain.distributed import Ranks, rng_state
from bigtrain.engines.state import persistent_buffers, whole_parameters
from bigtrain.errors import UserError
from bigtrain.evaluate import evaluate
from bigtrain.export import export
from bigtrain.generate import generate
from bigtrain.trained import load_trained

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
TEXT = "It was the best of times, it was the worst of times. " * 20
SMALL = ["model.layers=1", "model.width=16", "model.heads=2", "model.mlp_width=32", "data.sequence_length=32"]
NEOX = [
    "model=hugging_face",
    "model.config={model_type: gpt_neox, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "intermediate_size: 32, max_position_embeddings: 32}",
]


def make_run(folder: Path, overrides: list[str] = SMALL, steps: tuple[int, ...] = (3, 5)) -> Path:
    """A run folder as training leaves it, with random weights that grow with the step."""
    composed = compose(["recipe=smoke", f"run.dir={folder}", *overrides])
    folder.mkdir()
    freeze(composed.raw, folder / "config.yaml")
    tokenizer = tokenizers_.train(iter([TEXT]), 280)
    tokenizers_.save(tokenizer, folder / "tokenizer")
    torch.manual_seed(0)
    model = build(composed.config.model, "model", vocab_size=tokenizer.get_vocab_size())
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * step)
        parts = whole_parameters(model, 0, 1, master=lambda p: p, state=lambda p: {})
        state = {"loop": {"step": step, "tokens": 100 * step}, "data": "1234"}
        save(folder, step, [*parts, *persistent_buffers(model, 0)], state, rng_state(), ALONE)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def edit(run: Path, **components: dict[str, Any]) -> None:
    """What somebody else might have written into config.yaml."""
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | components))


def rewrite(folder: Path, table: manifest.Manifest) -> None:
    (folder / manifest.NAME).unlink()
    manifest.write(folder, table)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


# --------------------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("path", ["", "checkpoints", "checkpoints/step_00000005"])
def test_a_run_gives_its_newest_model_ready_for_use(run: Path, path: str) -> None:
    trained = load_trained(run / path, device="cpu")
    assert trained.kind == ("checkpoint" if "step" in path else "run")
    assert trained.progress == (5, 500)
    assert (trained.window, trained.vocab_size) == (32, len(trained.need_tokenizer()))
    assert not trained.model.training
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}
    older = load_trained(run / "checkpoints/step_00000003", device="cpu")
    assert older.progress == (3, 300)
    moved = trained.model.state_dict()["norm.weight"] - older.model.state_dict()["norm.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "checkpoints/step_00000005/rank_00000.safetensors")
    assert load_trained(run, device="cpu").progress == (3, 300)
    said = capsys.readouterr()
    assert "step_00000005: rank_00000.safetensors is damaged" in said.err
    assert "step_00000003" in said.err and said.out == ""
    with pytest.raises(UserError, match=r"No checkpoint in .*step_00000005 is intact"):
        load_trained(run / "checkpoints/step_00000005")


def test_any_transformers_model_comes_from_a_run_and_from_its_export(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["data.sequence_length=32", *NEOX])
    ids = torch.arange(20).reshape(2, 10)
    out = export(run, tmp_path / "out", device="cpu")
    ours, theirs = (load_trained(path, device="cpu") for path in (run, out))
    assert theirs.kind == "hugging_face" and theirs.progress == (5, 500)
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(ids), ours.model(ids), rtol=0, atol=1e-5)
    assert ours.window == theirs.window == 32


def test_the_users_words_win_over_the_frozen_ones(run: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint of the model .*blocks\.1\..* is not in it \(and"):
        load_trained(run, overrides=["model.layers=2"])
    with pytest.raises(UserError, match="unknown key 'modl'. Did you mean 'model'"):
        load_trained(run, overrides=["modl.layers=2"])
    with pytest.raises(UserError, match="only values"):
        load_trained(run, overrides=["model=toy"])
    trained = load_trained(run, overrides=["trainer.device=cpu", "model.dropout=0.5"])
    assert trained.config is not None and trained.config.model["dropout"] == 0.5


# --------------------------------------------------------------------------------------------------- hostile folders


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module where the command is typed, which leaves a trace when it is imported. Returns the trace's path."""
    trace = tmp_path / "trace"
    (tmp_path / "evil_parts.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
        "from bigtrain.models.native import Decoder\nfrom bigtrain.models.shapes import resolve\n"
        "class Twice(Decoder):\n"
        "    def __init__(self, vocab_size=None, layers=1):\n"
        "        given = dict(vocab_size=vocab_size, sequence_length=32, layers=layers, heads=2, width=16)\n"
        "        super().__init__(resolve(None, given | dict(mlp_width=32, tied=True)))\n"
        "    def forward(self, input_ids):\n"
        "        return 2 * super().forward(input_ids)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "evil_parts", raising=False)
    return trace


def test_a_run_folder_cannot_name_what_is_called(run: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for target in ("os.system", "subprocess.getoutput", "bigtrain.models.build.os.system"):
        edit(run, model={"_target_": target, "command": f"touch {touched}", "cmd": f"touch {touched}"})
        for command in (lambda: generate(run, "a"), lambda: export(run, tmp_path / "o"), lambda: evaluate(run)):
            with pytest.raises(UserError, match=f"model._target_={target}, which bigtrain.models does not ship"):
                command()
    edit(run, model={"_target_": "bigtrain.telemetry.tensorboard", "run_dir": str(touched), "config": {}})
    with pytest.raises(UserError, match="does not ship"):
        load_trained(run)
    assert not touched.exists() and not (tmp_path / "o").exists()


def test_what_is_evaluated_cannot_be_named_by_the_folder_either(run: Path, tmp_path: Path) -> None:
    for key in ("data", "objective"):
        before = yaml.safe_load((run / "config.yaml").read_text())[key]
        edit(run, **{key: {"_target_": "os.system", "command": f"touch {tmp_path / 'touched'}"}})
        with pytest.raises(UserError, match=f"{key}._target_=os.system, which bigtrain.{key}s? does not ship"):
            evaluate(run)
        edit(run, **{key: before})
    assert not (tmp_path / "touched").exists()


def test_a_model_of_the_users_own_is_used_where_the_user_says_so(run: Path, evil: Path) -> None:
    edit(run, model={"_target_": "evil_parts.Twice"})
    with pytest.raises(UserError, match="say so: model._target_=evil_parts.Twice"):
        load_trained(run)
    assert not evil.exists()
    trained = load_trained(run, overrides=["model._target_=evil_parts.Twice"])
    assert evil.exists() and type(trained.model).__name__ == "Twice"


def test_components_that_are_not_needed_are_not_looked_at(run: Path, evil: Path) -> None:
    edit(run, optimizer={"_target_": "evil_parts.Twice"}, tracker={"x": {"_target_": "evil_parts.Twice"}})
    assert generate(run, "It was", max_new_tokens=2).startswith("It was")
    assert not evil.exists()


def test_a_manifest_cannot_lead_out_of_its_folder(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.safetensors"
    folder = run / "checkpoints/step_00000005"
    data = (folder / "rank_00000.safetensors").read_bytes()
    outside.write_bytes(data)
    table = manifest.read(folder)
    for name in ("../../../secret.safetensors", str(outside)):
        files = {name: File(len(data), hashlib.sha256(data).hexdigest())}
        tensors = {
            key: replace(entry, slices=tuple(replace(part, file=name) for part in entry.slices))
            for key, entry in table.tensors.items()
        }
        rewrite(folder, replace(table, files=files, tensors=tensors))
        with pytest.raises(UserError, match="is not a file that a checkpoint may hold"):
            load_trained(folder)


class Bomb:
    """Unpickling it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_read(run: Path, tmp_path: Path) -> None:
    folder, trace = run / "checkpoints/step_00000005", tmp_path / "trace"
    data = pickle.dumps(Bomb(trace))
    (folder / "rank_00000.safetensors").write_bytes(data)
    table = manifest.read(folder)
    files = {"rank_00000.safetensors": File(len(data), hashlib.sha256(data).hexdigest())}
    rewrite(folder, replace(table, files=files, tensors={}, extra={}))
    with pytest.raises(UserError):
        load_trained(folder)
    shutil.rmtree(folder)
    out = export(run, tmp_path / "out", device="cpu")
    (out / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(trace)}, out / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load it"):
        load_trained(out)
    assert not trace.exists()


def test_code_in_a_hugging_face_folder_is_not_run(run: Path, tmp_path: Path) -> None:
    trace, out = tmp_path / "trace", export(run, tmp_path / "out", device="cpu")
    for module in ("modeling_x", "configuration_x", "tokenization_x"):
        (out / f"{module}.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    for file, change in {
        "config.json": {
            "model_type": "x",
            "auto_map": {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M"},
        },
        "tokenizer_config.json": {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}},
    }.items():
        before = json.loads((out / file).read_text())
        (out / file).write_text(json.dumps(before | change))
        with pytest.raises(UserError):
            load_trained(out, device="cpu").need_tokenizer()
        (out / file).write_text(json.dumps(before))
    assert not trace.exists()


# ------------------------------------------------------------------------------------------------------ wrong paths


def test_a_path_that_is_none_of_the_three_is_told_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in {
        tmp_path / "rum": r"There is no .*rum\. Did you mean '.*/run'",
        tmp_path / "rum/checkpoints/step_00000005": r"Did you mean '.*/run'",
        run / "checkpoints/step_00000006": r"Did you mean '.*/checkpoints/step_0000000[35]'",
        tmp_path / "empty": "neither a run folder",
        tmp_path: r"There are runs in it: .*/run",
        run / "config.yaml": "is a file",
    }.items():
        with pytest.raises(UserError, match=message):
            load_trained(path)
    lonely = tmp_path / "step_00000005"
    (run / "checkpoints/step_00000005").rename(lonely)
    with pytest.raises(UserError, match="a checkpoint without its run"):
        load_trained(lonely)


def test_a_run_without_checkpoint_or_tokenizer_is_told_so(run: Path, tmp_path: Path) -> None:
    (run / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="There is no tokenizer"):
        generate(run, "a")
    (run / "checkpoints").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_trained(run)


# ------------------------------------------------------------------------------------------------- the export's proof


def test_an_export_that_is_another_function_is_refused_and_nothing_is_left(
    run: Path, evil: Path, tmp_path: Path
) -> None:
    from bigtrain.errors import RunError

    edit(run, model={"_target_": "evil_parts.Twice"})
    with pytest.raises(RunError, match=r"logits differ by .* more than 1e-05: it is refused"):
        export(run, tmp_path / "folder/out", overrides=["model._target_=evil_parts.Twice"], device="cpu")
    assert list((tmp_path / "folder").iterdir()) == []


def test_weights_that_do_not_fit_fp16_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(10_000_000,))
    with pytest.raises(UserError, match=r"embedding.weight do not fit fp16"):
        export(run, tmp_path / "out", dtype="fp16", device="cpu")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["run"]
