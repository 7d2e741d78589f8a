"""`bigtrain verify` as a user types it: the table, verify.json, exit codes and refusals."""

from __future__ import annotations

import json
from pathlib import Path

from tests.recipes.conftest import TINY, Run

FEW = ["--steps", "2", "launcher.threads=1", *TINY]


def test_a_shipped_recipe_agrees(bigtrain: Run, tmp_path: Path, prepared: str) -> None:
    said = bigtrain("verify", "recipe=smoke", "--only", "probe,recipe,packing", prepared, *FEW).stdout
    out = tmp_path / said.splitlines()[-1]
    found = json.loads((out / "verify.json").read_text())
    verdicts = {f"{row['group']}: {row['name']}": row["verdict"] for row in found["rows"]}
    assert set(verdicts.values()) == {"ok"}, verdicts
    assert {"reference: local, fp32", "recipe: as it is: ddp, fp32", "packing: best_fit", "packing: none"} <= set(
        verdicts
    )
    assert "probe: leak with document masks: an earlier token, another sample, another document" in verdicts
    assert all(row["memory"] > 1e8 and row["seconds"] > 0 for row in found["rows"] if "ln V" not in row["name"])
    assert found["ranks"] == 2
    assert not (out / "work").exists()  # checkpoints of the runs
    assert all(name.split(":")[0] in said for name in verdicts)


def test_what_cannot_be_asked_for_is_one_message(bigtrain: Run) -> None:
    assert "resume" in bigtrain("verify", "--help").stdout
    assert "Did you mean 'resume'?" in bigtrain("verify", "recipe=smoke", "--only", "resum", code=2).stderr
    assert "Did you mean '--steps'?" in bigtrain("verify", "recipe=smoke", "--step=3", code=2).stderr
    assert "which recipe?" in bigtrain("verify", code=2).stderr
    assert "at least 2" in bigtrain("verify", "recipe=smoke", "--steps=1", code=2).stderr
