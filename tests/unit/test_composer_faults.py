"""A recipe file of one's own with a fault that Hydra finds: what it says, and the nearest right thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigtrain.config.compose import compose
from bigtrain.errors import UserError

FIRST = "# @package _global_\n"


def test_a_recipe_named_by_its_path_is_told_how_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    file.write_text(FIRST + "defaults: [/recipe/smoke, _self_]\n")
    with pytest.raises(UserError, match=f"name it by --config-dir {tmp_path} recipe=mine"):
        compose([f"recipe={file}"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("defaults: [/recipe/mine, _self_]\n", "a file builds on itself through its defaults"),
        ("defaults: [/recipe/smoek, _self_]\n", "Did you mean 'smoke'"),
        ("defaults: [recipe/smoke, _self_]\n", "begins with a slash: /recipe/smoke"),
        ("defaults: [/recipe/smoke, {override /model: gpt2}, _self_]\n", "'model/gpt2'. Did you mean 'gpt2_"),
        ("- trainer\n- model\n", "a list where settings belong"),
        ("defaults: [/recipe/smoke, _self_]\ntrainer: [max_steps, 2]\n", "a list where settings belong"),
        ("defaults: [/recipe/smoke, _self_]\nhardware: h100\n", "- override /hardware: h100"),
        ("defaults: [/recipe/smoke, _self_]\nprecision: bf16\n", "- override /precision: bf16"),
    ],
)
def test_it_is_one_message(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(FIRST + text)
    with pytest.raises(UserError) as error:
        compose(["--config-dir", str(tmp_path), "recipe=mine"])
    assert told in str(error.value), str(error.value)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    file.write_text(FIRST + "defaults: [/recipe/smoke, _self_]\n# é", encoding="latin-1")
    (tmp_path / "recipe" / "another.yaml").write_text("# é", encoding="utf-16")
    with pytest.raises(UserError, match=f"{file} is no UTF-8 text"):
        compose(["--config-dir", str(tmp_path), "recipe=mine"])


def test_a_null_of_ones_own_file_is_told_to_be_from_there(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    file.write_text(FIRST + "defaults: [/recipe/smoke, _self_]\ntrainer: {global_batch_size: null}\n")
    with pytest.raises(UserError, match=f"must be int, not null \\(from {file}\\)"):
        compose(["--config-dir", str(tmp_path), "recipe=mine"])


def test_a_target_in_a_recipe_replaces_the_settings_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    file = tmp_path / "recipe" / "mine.yaml"
    own = "optimizer: {_target_: torch.optim.SGD, lr: 0.1, momentun: 0.9}\n"
    file.write_text(FIRST + "defaults: [/recipe/smoke, _self_]\n" + own)
    with pytest.raises(UserError, match="unknown key 'optimizer.momentun' .*Did you mean 'momentum'"):  # its own stay
        compose(["--config-dir", str(tmp_path), "recipe=mine"])
    file.write_text(file.read_text().replace("momentun", "momentum"))
    composed = compose(["--config-dir", str(tmp_path), "recipe=mine"])
    assert composed.raw["optimizer"] == {
        "_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1
    }  # fmt: skip
    assert composed.notes == ["optimizer: torch.optim.SGD takes no betas, eps, decay_all: left out"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe", "smoke"], "A setting has no dashes: recipe=VALUE"),
        (["recipe=smoke", "trainer.max_steps", "=", "3"], "Without spaces around the =."),
        (["recipe=mine"], "must end in .yaml, not .yml: mine.yaml"),
    ],
)
def test_a_slip_on_the_command_line(words: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yml").write_text(FIRST)
    with pytest.raises(UserError) as error:
        compose(["--config-dir", str(tmp_path), *words])
    assert told in str(error.value), str(error.value)
