"""The configuration: what is refused, in which words, and that nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from bigtrain.config.check import check, check_fields
from bigtrain.config.compose import compose, compose_data, flatten, freeze, load_run
from bigtrain.config.composer import CONF, Composer
from bigtrain.config.elsewhere import HERE
from bigtrain.config.rules import accumulation
from bigtrain.config.schema import RunConfig, Trainer
from bigtrain.errors import UserError

RECIPES = Composer().options("recipe")
ASKS_FOR = {
    "pretrain/classics": ["data.domains.sotu.path=somewhere"],
    **{name: ["data.path=somewhere"] for name in ("chatbot/lstm", "vision/mnist_cnn", "vision/vit")},
}
"""What a recipe cannot know."""
QUICK = ["recipe=quickstart", "trainer.device=cpu"]


def refused(*overrides: str, recipe: str = "quickstart") -> str:
    with pytest.raises(UserError) as error:
        compose([f"recipe={recipe}", "trainer.device=cpu", *overrides])
    return str(error.value)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_composes(recipe: str) -> None:
    config = compose([f"recipe={recipe}", "trainer.device=cpu", *ASKS_FOR.get(recipe, [])]).config
    assert config.run.name == recipe and config.run.dir.startswith(f"runs/{recipe}/")


@pytest.mark.parametrize("group", ["model", "optimizer", "schedule", "engine", "precision", "objective", "tracker"])
def test_every_option_of_every_group_composes(group: str) -> None:
    for option in Composer().options(group):
        extra = ["engine=ddp", "launcher.processes=1"] if group in ("optimizer",) else []
        extra += ["launcher.processes=1"] if option == "local" else []
        extra += ["model.path=somewhere"] if option == "hugging_face" else []
        chosen = getattr(compose([*QUICK, *extra, f"{group}={option}"]).config, group)
        assert chosen or option == "none", option


@pytest.mark.parametrize("option", Composer().options("clean"))
def test_clean_options_compose_into_the_data(option: str) -> None:
    steps = compose([*QUICK, f"clean={option}"]).config.data["clean"]
    assert len(steps) > 3 and all(step["_target_"].startswith("bigtrain.data.clean.") for step in steps)
    changed = compose([*QUICK, f"clean={option}", "data.clean.2.blank_lines=5"]).config.data["clean"]
    assert changed[2]["blank_lines"] == 5
    assert compose([*QUICK, "clean=null"]).config.data["clean"] == []


@pytest.mark.parametrize("option", Composer().options("debug"))
def test_debug_options_compose_with_every_recipe(option: str) -> None:
    assert compose([*QUICK, f"debug={option}"]).config != compose(QUICK).config
    for recipe in RECIPES:
        compose([f"recipe={recipe}", "trainer.device=cpu", *ASKS_FOR.get(recipe, []), f"debug={option}"])


def test_every_yaml_starts_with_a_command_that_uses_it() -> None:
    for file in CONF.rglob("*.yaml"):
        head = file.read_text().splitlines()[:2]
        assert any(line.startswith("# ") and "bigtrain " in line for line in head) or file.name == "config.yaml", file


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_unknown_key_is_refused_however_it_is_added(prefix: str) -> None:
    message = refused(f"{prefix}trainer.max_stepz=5")
    assert "unknown key 'trainer.max_stepz'" in message
    assert "from the command line" in message and "Did you mean 'max_steps'?" in message


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_an_unknown_setting_of_a_component_is_refused(prefix: str) -> None:
    message = refused(f"{prefix}optimizer.weight_decai=0.1")
    assert "unknown key 'optimizer.weight_decai'" in message and "Did you mean 'weight_decay'?" in message


def test_an_unknown_top_level_key_is_refused() -> None:
    assert "Did you mean 'trainer'?" in refused("trainr.max_steps=3")


def test_a_setting_that_no_file_mentions_can_be_given_plainly() -> None:
    config = compose([*QUICK, "engine.extra={zero_optimization: {round_robin_gradients: true}}"]).config
    assert config.engine.extra == {"zero_optimization": {"round_robin_gradients": True}}


def test_an_unknown_option_names_the_nearest() -> None:
    assert "there is no engine=zero22. Did you mean 'zero2'?" in refused("engine=zero22")
    assert "Did you mean 'quickstart'?" in refused(recipe="quickstrat")


def test_a_run_folder_as_a_recipe_is_told_the_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert f"Did you mean 'recipe={tmp_path}/config.yaml'?" in refused(recipe=str(tmp_path))


def test_what_other_trainers_call_a_setting_is_known_by_a_name_that_there_is() -> None:
    given = {"path": "x", "tokenizer": "x", "packing": "concat", "sequence_length": 128, "layers": 2, "width": 64,
             "heads": 2, "kv_heads": 2, "mlp_width": 64, "compile": "true", "weight_decay": 0.1, "lr": 0.1}  # fmt: skip
    names = [name for others in HERE.values() for name in others.split()]
    assert len(names) == len(set(names))
    for here in HERE:
        if "." not in here:
            assert here in {field.name for field in fields(RunConfig)}
        elif here != "run.dir":  # a fault of its value, at most, is no unknown key
            key = here.rpartition(".")[2]
            try:
                compose([*QUICK, "data=text", "data.path=x", f"{here}={given.get(key, 2)}"])
            except UserError as error:
                assert "unknown key" not in str(error), error


def test_settings_that_this_model_has_not_are_not_named() -> None:
    assert "model.heads" not in refused("data.path=x", "model.n_head=4", recipe="vision/mnist_cnn")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=ten", ["trainer.max_steps must be int or null, not 'ten'", "command line"]),
        ("trainer.compile=2", ["trainer.compile must be bool"]),
        ("optimizer.lr=fast", ["optimizer.lr must be float, not 'fast'"]),
        ("trainer.activation_checkpointing=fll", ["none | selective | full", "Did you mean 'full'?"]),
        ("trainer=3", ["there is no trainer=3"]),
        ("nodes=2", ["unknown key 'nodes'", "Did you mean 'launcher.nodes'?"]),
        ("lr=1e-3", ["unknown key 'lr'", "Did you mean 'optimizer.lr'?"]),
        ("batch_size=8", ["unknown key 'batch_size'", "Did you mean 'trainer.global_batch_size'?"]),
        ("trainer.learning_rate=1e-3", ["Did you mean 'optimizer.lr'?"]),
        ("evaluation.every=5", ["Did you mean 'trainer.eval_every'?"]),
        ("model.n_layer=2", ["Did you mean 'layers'?"]),
        ("trainer.early_stopping={patients: 3}", ["unknown key 'trainer.early_stopping.patients'", "'patience'"]),
        ("trainer.max_steps=0", ["at least 1"]),
        ("trainer.grad_clip=-1", ["above 0"]),
        ("trainer.epochs=1  trainer.max_steps=2", ["trainer.max_steps and trainer.epochs are set"]),
        ("trainer.max_steps=null", ["none is set"]),
        ("optimizer.lr=nan", ["optimizer.lr must be float, not nan"]),
        ("model=null", ["there is no model=None", "gpt2_124m"]),
        ("hydra.run.dir=x", ["no effect here"]),
        ("run.dir=''", ["run.dir is empty"]),
        ("data.path=a b é", ["quoted twice"]),
        ("trainer.global_batch_size=12", ["cannot be divided", "global_batch_size=", "2 ranks"]),
        ("trainer.early_stopping={}  trainer.eval_every=null", ["set trainer.eval_every"]),
        ("engine=local", ["engine=local is for one process"]),
        ("optimizer=muon", ["whole matrices", "engine=ddp"]),
        ("optimizer._target_=bigtrain.optim.adamww", ["has no 'adamww'", "Did you mean 'adamw'?"]),
        ("optimizer._target_=nonsuch.Thing", ["cannot be imported", "nonsuch"]),
        (
            "optimizer._target_=torch.optim.AdamW  optimizer.lrr=1",
            ["unknown key 'optimizer.lrr'", "Did you mean 'lr'?"],
        ),
        ("trainer.max_steps=1,2", ["sweep"]),
        ("data.path=[", ["cannot read the override"]),
        ("launcher.nodes=2", ["this machine only"]),
        ("trainer.max_steps=${nonsuch}", ["cannot resolve", "nonsuch"]),
    ],
)
def test_bad_values_are_refused_in_words(override: str, words: list[str]) -> None:
    message = refused(*override.split("  "))
    for word in words:
        assert word in message, message


def test_the_file_of_a_bad_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 3, micro_batch: 8}\n")
    with pytest.raises(UserError, match=r"unknown key 'trainer.micro_batch' \(from .*mine.yaml\)") as error:
        compose(["--config-dir", str(tmp_path), "recipe=mine"])
    assert "Did you mean 'micro_batch_size'?" in str(error.value)


def test_a_recipe_without_its_first_line_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("trainer: {max_steps: 3}\n")
    with pytest.raises(UserError, match="lacks its first line: # @package _global_"):
        compose(["--config-dir", str(tmp_path), "recipe=mine"])


def test_a_users_folder_wins_over_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "adamw.yaml").write_text("_target_: bigtrain.optim.adamw\nlr: 0.125\n")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 3}\n")
    assert compose([f"--config-dir={tmp_path}", "recipe=mine"]).config.optimizer["lr"] == 0.125


def test_global_batch_arithmetic() -> None:
    assert accumulation(Trainer(global_batch_size=32, micro_batch_size=4), 2) == 4
    with pytest.raises(UserError, match=r"=1 or trainer.global_batch_size=24 or trainer.global_batch_size=32\.$"):
        accumulation(Trainer(global_batch_size=30, micro_batch_size=4), 2)
    with pytest.raises(UserError, match=r"take trainer.micro_batch_size=1 or trainer.global_batch_size=8\.$"):
        accumulation(Trainer(global_batch_size=2, micro_batch_size=4), 2)
    with pytest.raises(UserError, match=r"take trainer.global_batch_size=8\.$"):
        accumulation(Trainer(global_batch_size=3, micro_batch_size=4), 2)
    with pytest.raises(UserError, match=r"take trainer.micro_batch_size=16 or trainer.global_batch_size=512\.$"):
        accumulation(Trainer(global_batch_size=128, micro_batch_size=64), 8)


def test_the_end_on_the_command_line_replaces_the_recipes() -> None:
    trainer = compose([*QUICK, "trainer.max_tokens=1e6"]).config.trainer
    assert (trainer.max_tokens, trainer.max_steps, trainer.epochs) == (1_000_000, None, None)


def test_faults_of_a_users_own_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "broken.yaml").write_text("a: [1\n b")
    (tmp_path / "recipe" / "lost.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: nonsuch\n")
    with pytest.raises(UserError, match=r"broken\.yaml"):
        compose(["--config-dir", str(tmp_path), "recipe=broken"])
    with pytest.raises(UserError, match="nonsuch"):
        compose(["--config-dir", str(tmp_path), "recipe=lost"])
    with pytest.raises(UserError, match="needs a folder"):
        compose(["recipe=smoke", "--config-dir"])


def test_a_truncated_config_is_named(tmp_path: Path) -> None:
    run = frozen_run(tmp_path / "run")
    (run / "config.yaml").write_text((run / "config.yaml").read_text()[:300])
    for attempt in (lambda: compose([*QUICK, f"run.dir={run}"]), lambda: load_run(run / "config.yaml")):
        with pytest.raises(UserError, match=r"config\.yaml (is cut short|cannot be read)"):
            attempt()


def test_a_users_own_component_is_checked_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_model.py").write_text("class Net:\n    def __init__(self, width: int, depth: int = 2): ...\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "net.yaml").write_text("_target_: mine_model.Net\nwidth: 8\n")
    base = [*QUICK, "--config-dir", str(tmp_path), "model=net"]
    assert compose(base).config.model == {"_target_": "mine_model.Net", "width": 8}
    with pytest.raises(UserError, match=r"unknown key 'model.widht'.*Did you mean 'width'"):
        compose([*base, "model.widht=9"])
    with pytest.raises(UserError, match="model.width must be int, not 'wide'"):
        compose([*base, "model.width=wide"])
    with pytest.raises(UserError, match=r"model.width has no value.*mine_model.Net needs it"):
        compose([*base, "~model.width"])


def frozen_run(folder: Path, *overrides: str) -> Path:
    composed = compose([*QUICK, f"run.dir={folder}", *overrides])
    folder.mkdir()
    freeze(composed.raw, folder / "config.yaml")
    return folder


def test_a_run_goes_on_with_its_own_settings_and_says_what_changed(tmp_path: Path) -> None:
    run = frozen_run(tmp_path / "run", "optimizer.lr=0.5", "trainer.max_steps=7")
    again = compose([*QUICK, f"run.dir={run}", "trainer.max_steps=9", "engine=zero1"])
    assert again.config.optimizer["lr"] == 0.5 and again.config.trainer.max_steps == 9
    assert again.config.engine.name == "zero1"
    assert any("changed since the run began: trainer.max_steps: 7 -> 9" in note for note in again.notes)
    assert "kept from the run: optimizer.lr: 0.004 in the recipe, here 0.5" in again.notes
    alone = compose([f"run.dir={run}"])
    assert alone.config.optimizer["lr"] == 0.5 and not alone.notes


def test_a_run_starts_again_from_its_config_alone(tmp_path: Path) -> None:
    run = frozen_run(tmp_path / "run", "optimizer.lr=0.5")
    again = compose([f"recipe={run}/config.yaml", f"run.dir={tmp_path}/other"])
    assert again.config.optimizer["lr"] == 0.5 and again.config.run.dir == f"{tmp_path}/other"


@pytest.mark.parametrize("target", ["os.system", "bigtrain.cli.main", "bigtrain.models.native.os.system"])
def test_a_run_folder_cannot_name_what_is_imported(tmp_path: Path, target: str) -> None:
    run = frozen_run(tmp_path / "run")
    raw = yaml.safe_load((run / "config.yaml").read_text())
    raw["model"] = {"_target_": target}
    freeze(raw, run / "config.yaml")
    for attempt in (lambda: compose([f"run.dir={run}"]), lambda: compose([*QUICK, f"run.dir={run}"])):
        with pytest.raises(UserError, match="a run folder's word is not enough"):
            attempt()
    with pytest.raises(UserError, match="a run folder's word is not enough"):
        load_run(run / "config.yaml")


def test_data_alone() -> None:
    assert compose_data(["data=moby_dick"])["_target_"] == "bigtrain.data.text"
    with pytest.raises(UserError, match="unknown key 'data.pth'"):
        compose_data(["data=moby_dick", "data.pth=x"])


def test_typos_and_help_do_not_import_torch() -> None:
    script = (
        "import sys; from bigtrain.cli import main\n"
        "codes = [main(['--help']), main(['train', '--help']), main(['train', 'recipe=quickstart', 'optimizer.lrr=1']),"
        " main(['trian']), main(['train', 'recipe=quickstart', 'trainer.global_batch_size=7'])]\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert codes == [0, 0, 2, 2, 2], codes"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (
        "Traceback" not in done.stderr
        and "Did you mean 'lr'?" in done.stderr
        and "Did you mean 'train'?" in done.stderr
    )


@dataclass(slots=True)
class Inner:
    depth: int = 1


@dataclass(slots=True)
class Example:
    kind: Literal["a", "b"]
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3.0, int, 3),
        (2, float, 2.0),
        ([1, 2], tuple[float, float], (1.0, 2.0)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        (None, int | None, None),
        (["a"], str | list[str], ["a"]),
        ({"kind": "a", "inner": {"depth": 2}}, Example, Example("a", Inner(2))),
    ],
)
def test_check_converts(value: Any, annotation: Any, expected: Any) -> None:
    result = check(value, annotation, "key")
    assert result == expected and type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [(True, int), (1.5, int), ("1", int), (1, bool), ([1], tuple[int, int]), (float("nan"), int)],
)
def test_check_refuses(value: Any, annotation: Any) -> None:
    with pytest.raises(UserError, match="^key"):
        check(value, annotation, "key")


def test_slots_leave_no_room_for_a_stray_attribute() -> None:
    example = check_fields({"kind": "b"}, Example, "")
    with pytest.raises(AttributeError):
        example.stray = 1


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
