"""What the README tells people to type, typed."""

from __future__ import annotations

import json
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


RECIPE = """# @package _global_
defaults:
  - override /model: toy
  - override /data: text
  - override /engine: local
{data}  vocab_size: 512
  sequence_length: 32
model: {{width: 16, layers: 1, heads: 2}}
trainer: {{max_steps: 4, global_batch_size: 8, micro_batch_size: 8, log_every: 1, device: cpu}}
"""


def test_domains_with_a_step_of_your_own_and_other_weights_on_the_way(bigtrain: Run, tmp_path: Path) -> None:
    (data,) = re.findall(r"```yaml\n(data:\n  domains:.*?)```", README, re.DOTALL)
    (tmp_path / "my/recipe").mkdir(parents=True)
    (tmp_path / "my/recipe/own.yaml").write_text(RECIPE.format(data=data.replace("jsonl.zst", "jsonl")))
    (tmp_path / "shouting.py").write_text(dict(FILES)["shouting.py"])
    for folder, file in (("web", "a.jsonl"), ("books", "b.txt")):
        (tmp_path / folder).mkdir()
        lines = [f"{folder} {number} of a quiet text, {number * 37 % 101} " * 9 for number in range(300)]
        text = "".join(json.dumps({"text": line}) + "\n" for line in [*lines, "LOUD " * 50])
        (tmp_path / folder / file).write_text(text if file.endswith("jsonl") else "\n".join(lines))
    own = ("train", "--config-dir", "my", "recipe=own", "run.dir=run")
    first = bigtrain(*own)
    assert "web: 80 % of tokens" in first.stderr and "from sample 62,500,000 on: web 50 %, books 50 %" in first.stderr
    assert "shouting" in (tmp_path / "run/data_report.html").read_text()
    then = bigtrain(*own, "data.domains.web.weight=0.6", "data.domains.books.weight=0.4", "trainer.max_steps=6")
    assert "another from sample 32 on" in then.stdout and "web: 60 % of tokens" in then.stderr
    # A run folder's word is not enough to import it; the message says what is.
    named = "data.clean.2._target_=shouting.quiet"
    assert named in bigtrain("data", "trace", "run", "--step", "6", code=2).stderr
    assert len(bigtrain("data", "trace", "run", "--step", "6", named).stdout.splitlines()) > 8
    bigtrain("train", "run.dir=run", named, "trainer.max_steps=8")


def test_a_typo_in_your_own_model_is_named(bigtrain: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(dict(FILES)["mine.py"])
    done = bigtrain("train", "recipe=smoke", "model._target_=mine.Net", "model.widht=64", code=2)
    assert "unknown key 'model.widht'" in done.stderr and "Did you mean 'width'?" in done.stderr


def test_there_is_something_of_each_kind() -> None:
    assert {name for name, _ in FILES} == {"shouting.py", "mine.py", "counting.py", "smooth.py", "signs.py"}
    assert all(len(code.strip().splitlines()) <= 12 for _, code in FILES)
    assert len(COMMANDS) == 5
