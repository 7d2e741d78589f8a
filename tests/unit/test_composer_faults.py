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
