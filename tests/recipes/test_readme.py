"""What the README tells people to type, typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recipes.conftest import Run, metrics

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for line in README.splitlines() if line.startswith("bigtrain train recipe=smoke ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_bring_your_own(command: str, bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    for name, code in FILES:
        (tmp_path / name).write_text(code)
    small = ["data.sequence_length=32", "trainer.max_steps=3", "trainer.eval_batches=2", "trainer.device=cpu"]
    if "data._target_" not in command:
        small += [prepared, "data.vocab_size=512"]
    bigtrain(*command.split()[1:], *small, "run.dir=run")
    before, after = metrics(tmp_path / "run", "eval")
    assert after["step"] == 3 and after["loss"] < before["loss"]


def test_a_typo_in_your_own_model_is_named(bigtrain: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dict(FILES)["mine.py"])
    done = bigtrain("train", "recipe=smoke", "model._target_=mine.Net", "model.widht=64", code=2)
    assert "unknown key 'model.widht'" in done.stderr and "Did you mean 'width'?" in done.stderr


def test_there_is_something_of_each_kind() -> None:
    assert {name for name, _ in FILES} == {"mine.py", "counting.py", "smooth.py", "signs.py"}
    assert all(len(code.strip().splitlines()) <= 12 for _, code in FILES)
    assert len(COMMANDS) == 5
