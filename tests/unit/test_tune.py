"""Sweeps that Optuna chooses, before anything starts: their words, their space, what is refused, the picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bigtrain import sweep
from bigtrain.config.composer import Composer
from bigtrain.errors import UserError
from bigtrain.launchers.sweep import write_ledger
from bigtrain.launchers.tuning import Settings, part_of, settings_from, space_of, words_from
from bigtrain.report.sweep_picture import draw, on_the_scale
from bigtrain.tune import best

LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        (LR, FloatDistribution(1e-4, 1e-2, log=True)),
        ("optimizer.lr=interval(1,2)", FloatDistribution(1.0, 2.0)),
        ("model.width=int(interval(8,64))", IntDistribution(8, 64)),
        ("seed=range(1,4)", IntDistribution(1, 3)),
        ("seed=range(10,0,-5)", IntDistribution(5, 10, step=5)),
        ("seed=tag(log,range(1,100))", IntDistribution(1, 99, log=True)),
        ("optimizer.weight_decay=range(0,0.3,0.1)", FloatDistribution(0.0, 0.2, step=0.1)),
        ("model.width=32,64", CategoricalDistribution(["32", "64"])),
        ("optimizer=choice(adamw,lion)", CategoricalDistribution(["adamw", "lion"])),
        ("optimizer.betas=[0.9,0.95],[0.9,0.99]", CategoricalDistribution(["[0.9,0.95]", "[0.9,0.99]"])),
    ],
)
def test_hydras_grammar_becomes_optunas_distributions(word: str, wanted: object) -> None:
    (found,) = space_of(["recipe=smoke", word], Composer()).values()
    if isinstance(found, FloatDistribution) and isinstance(wanted, FloatDistribution):
        assert (found.low, found.log, found.step) == (wanted.low, wanted.log, wanted.step)
        assert found.high == pytest.approx(wanted.high)
    else:
        assert found == wanted


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=1", "no override has several"),
        ("optimizer.lr=tag(log,interval(0,1))", "cannot read the sweep .*log"),
        ("optimizer.lr=interval(2,1)", "cannot read the sweep"),
        ("seed=range(", "cannot read the sweep"),
        ("seed=range(3,3)", "is empty"),
        ("optimizer.lr=tag(log,choice(1,2))", r"tag\(log, …\) has no effect"),
        ("optimizer.lr=tag(lg,interval(1,2))", r"tag\(lg, …\) has no effect"),
        ("optimizer=choice(adamw,lino)", "there is no optimizer=lino. Did you mean 'lion'?"),
    ],
)
def test_a_space_that_is_none(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of([word], Composer())


def test_the_words_of_a_sweep_are_taken_off() -> None:
    words = ["recipe=smoke", "sweep.trials=20", LR, "sweep.metric=accuracy", "sweep.trials=3", "sweep.prune=false"]
    settings, rest = settings_from(words)
    assert rest == ["recipe=smoke", LR]
    assert settings == Settings(trials=3, metric="accuracy", prune=False) and settings.way == "maximize"
    assert settings_from(words_from(settings)) == (settings, [])
    assert settings_from(rest) == (None, rest)
    assert [Settings(1, metric).way for metric in ("loss", "mae", "f1")] == ["minimize", "minimize", "maximize"]
    assert Settings(1, "bits", "minimize").way == "minimize"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.trails=3", "there is no sweep.trails. Did you mean 'trials'?"),
        ("sweep.trials=0", "a whole number, 1 or more"),
        ("sweep.trials=1.5", "a whole number, 1 or more"),
        ("sweep.prune=no", "true or false"),
        ("sweep.direction=minimise", "Did you mean 'minimize'?"),
        ("sweep.metric=bits", "sweep.metric=bits: is more of it better"),
    ],
)
def test_words_that_are_wrong(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep.train(["-m", "recipe=smoke", LR, "sweep.trials=2", word])


def test_where_the_words_have_no_effect() -> None:
    with pytest.raises(UserError, match="sweep.metric is for Optuna: give sweep.trials=N"):
        sweep.train(["-m", "recipe=smoke", "seed=1,2", "sweep.metric=loss"])
    with pytest.raises(UserError, match="'sweep.trials=2' is for a sweep: bigtrain train -m"):
        sweep.train(["recipe=smoke", "sweep.trials=2"])
    with pytest.raises(UserError, match="one after another: bigtrain train -m"):
        sweep.submit(["-m", "recipe=smoke", LR, "sweep.trials=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lrr=interval(1,2)"], "optimizer.lrr=1.5: .*lrr.*Did you mean 'lr'.* Nothing was started"),
        ([LR, "trainer.micro_batch_size=3"], "micro-batches of 3 .*Nothing was started"),
        ([LR, "evaluation.folds=3"], "evaluation.folds with sweep.trials: a trial is one run"),
        ([LR, "launcher=slurm"], "launcher=slurm: sweep.trials chooses each run by those before it"),
        ([LR, "launcher=kubernetes", "launcher.image=i", "launcher.claim=c"], "launcher=kubernetes: sweep.trials"),
    ],
)
def test_what_is_refused_before_the_first_trial(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sweep.train(["-m", "recipe=smoke", *words, "sweep.trials=2", "run.dir=sweep"])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_sweep(tmp_path: Path) -> None:
    folder, more = tmp_path / "sweep", ["sweep.trials=2", f"run.dir={tmp_path / 'sweep'}"]
    write_ledger(folder, ["recipe=smoke", LR, "sweep.trials=2"], [])
    for words in (["seed=interval(1,2)"], ["optimizer.lr=interval(1,2)"], [LR, "sweep.metric=perplexity"]):
        with pytest.raises(UserError, match=r"holds another sweep \(optimizer.lr=tag.*, minimize loss\)"):
            sweep.train(["-m", "recipe=smoke", *words, *more])
    with pytest.raises(UserError, match="holds another sweep"):
        sweep.train(["-m", "recipe=smoke", "seed=1,2", more[-1]])
    write_ledger(folder, ["recipe=smoke", "seed=1,2"], [])
    with pytest.raises(UserError, match="holds a grid of runs"):
        sweep.train(["-m", "recipe=smoke", LR, *more])


def test_without_optuna_the_extra_is_named(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "optuna"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')\n")
    paths = [str(hidden.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "bigtrain", "train", "-m", "recipe=smoke", LR, "sweep.trials=2", "run.dir=sweep"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "pip install 'bigtrain[tune]'" in done.stderr and "Traceback" not in done.stderr


def test_a_trials_words_are_its_values(tmp_path: Path) -> None:
    part = part_of(tmp_path, 3, {"optimizer.lr": 0.000123456789, "+seed": 7, "optimizer": "lion"})
    assert part.overrides == ["optimizer.lr=0.000123457", "+seed=7", "optimizer=lion"]
    assert Path(part.folder).name == "3_optimizer.lr-0.000123457_seed-7_optimizer-lion"


def _row(number: int, metric: float | None, state: str = "done") -> dict[str, object]:
    return {"number": number, "values": {"lr": 10.0**-number, "optimizer": "lion"}, "metric": metric, "state": state}


def test_the_best_was_done_to_its_end() -> None:
    rows = [_row(0, 3.0), _row(1, 1.0, "pruned"), _row(2, 2.0), _row(3, None, "failed")]
    assert best(rows, "minimize") is rows[2] and best(rows, "maximize") is rows[0]
    assert best(rows[1:2], "minimize") is None


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_picture(direction: str, tmp_path: Path) -> None:
    import matplotlib.image

    far = 3000.0 if direction == "minimize" else -3000.0
    rows = [_row(0, 3.0), _row(1, far, "pruned"), _row(2, 2.0), _row(3, None, "failed"), _row(4, 2.5)]
    scaled = on_the_scale(rows, [3.0, 2.0, 2.5], direction == "minimize")
    assert [row["at"] for row in scaled if not row["off"]] == [3.0, 2.0, 2.5]
    assert [row["number"] for row in scaled if row["off"]] == [1] and abs(scaled[1]["at"]) < 10
    for number, some in enumerate((rows, rows[:1])):
        draw(tmp_path / f"{number}.png", some, "loss", direction, ["lr"])
        image = matplotlib.image.imread(tmp_path / f"{number}.png")
        star = abs(image[..., :3] - [0xE0 / 255, 0x7B / 255, 0x2E / 255]).max(-1) < 0.02
        assert star.sum() > 200  # the star in each panel, and the line of the best so far
