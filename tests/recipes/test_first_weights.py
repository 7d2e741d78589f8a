"""A new run that begins with the weights of another one: on any engine it sees the other's last held-out loss first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.recipes.conftest import TINY, Run, metrics

WORDS = [
    "train", "recipe=quickstart", *TINY, "trainer.global_batch_size=8", "trainer.micro_batch_size=2",
    "trainer.eval_batches=4", "evaluation.generate=null", "evaluation.report=false", "evaluation.export=false",
    "optimizer.lr=1e-2",
]  # fmt: skip


def test_a_run_begins_with_the_weights_of_another_on_any_engine(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    bigtrain(*WORDS, prepared, "engine=fsdp", "launcher.processes=2", "trainer.max_steps=12", "run.dir=first")
    reached = metrics(tmp_path / "first", "eval")[-1]["loss"]
    began = metrics(tmp_path / "first", "eval")[0]["loss"]
    assert reached < began - 0.1
    for engine, processes in (("local", 1), ("zero3", 2)):
        words = [*WORDS, prepared, f"engine={engine}", f"launcher.processes={processes}", f"run.dir={engine}"]
        done = bigtrain(*words, "trainer.max_steps=3", "checkpoint.weights_from=first")
        assert "starting from the weights of first/checkpoints/step_00000012" in done.stdout
        lines = metrics(tmp_path / engine, "eval")
        assert lines[0]["step"] == 0 and lines[0]["tokens"] == 0
        assert lines[0]["loss"] == pytest.approx(reached, abs=1e-5)
        assert lines[-1]["loss"] < reached  # its own steps count from there

    said = bigtrain("train", "run.dir=local", "checkpoint.weights_from=zero3", "trainer.max_steps=4", code=2).stderr
    assert "the run in local has begun already, with first" in said and "Traceback" not in said

    shutil.rmtree(tmp_path / "first")  # a run that goes on does not need them any more
    done = bigtrain("train", "run.dir=local", "trainer.max_steps=4")
    assert "going on from local/checkpoints/step_00000003" in done.stdout


def test_weights_that_do_not_fit_are_refused(bigtrain: Run, prepared: str, tmp_path: Path) -> None:
    local = [*WORDS, prepared, "engine=local", "launcher.processes=1", "trainer.max_steps=1"]
    bigtrain(*local, "run.dir=first")

    def refused(*words: str) -> str:
        said = bigtrain(*local, "run.dir=other", *words, code=2).stderr
        assert "Traceback" not in said
        return said

    said = refused("checkpoint.weights_from=firts")
    assert "checkpoint.weights_from=firts: there is no such run or checkpoint. Did you mean 'first'?" in said
    (tmp_path / "empty").mkdir()
    assert "checkpoint.weights_from=empty holds no checkpoint" in refused("checkpoint.weights_from=empty")
    said = refused("checkpoint.weights_from=first", "model.width=64")
    assert "checkpoint.weights_from=first is of a model with model.width=32, and this one has 64" in said
    assert "with model.heads=2, and this one has 1" in refused("checkpoint.weights_from=first", "model.heads=1")
    (tmp_path / "empty" / "config.json").touch()
    assert "model.path=empty begins with that" in refused("checkpoint.weights_from=empty")
    said = refused("checkpoint.weights_from=first/config.yaml")
    assert "is a file: give the run's folder, first." in said

    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Words of {number}, unlike those of the whale." for number in range(900)))
    texts = ["data=text", f"data.path={other}", "data.tokenizer=null", "data.held_out=0.1"]
    said = refused("checkpoint.weights_from=first", *texts)
    assert "the data have other tokens" in said and "data.tokenizer=first/tokenizer" in said
    bigtrain(*local, *texts[:2], "data.held_out=0.1", "data.tokenizer=first/tokenizer", "run.dir=right",
             "checkpoint.weights_from=first")  # fmt: skip
