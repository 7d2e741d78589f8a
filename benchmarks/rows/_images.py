"""Rows of images: a convolutional network, and what a search over its settings gains."""

from __future__ import annotations

import json
from typing import Any

from _row import Row, evaluations


def cnn(row: Row) -> dict[str, Any]:
    """The 10,000 test images of MNIST."""
    run = row.train("run", "recipe=vision/mnist_cnn", f"data.path={row.data}/mnist")
    accuracy = [line["accuracy"] for line in evaluations(run)]
    return {
        "system": "CNN, 101,000 parameters", "data": "MNIST, 60,000 images, 6 epochs; 10,000 test images",
        "found": f"{accuracy[-1]:.2%} right",
        "accuracy": accuracy[-1], "by_epoch": accuracy[1:], "bars": {"99.2 %": accuracy[-1] >= 0.992},
    }  # fmt: skip


def tuning(row: Row) -> dict[str, Any]:
    """Optuna chooses by a tenth of 12,000 training images that is held out; the test images judge only the best."""
    training = row.folder / "mnist"
    training.mkdir(exist_ok=True)
    for file in (row.data / "mnist").glob("train-*"):
        (training / file.name).unlink(missing_ok=True)
        (training / file.name).symlink_to(file)
    words = (
        "recipe=vision/mnist_cnn", f"data.path={training}", "data.max_images=12000", "data.held_out=0.1",
        "trainer.epochs=3", "trainer.eval_every=84", "schedule.warmup_steps=40",
    )  # fmt: skip
    default = row.train("default", *words)
    sweep = row.folder / "sweep"
    row.run(
        "train", "-m", *words, "evaluation.export=false", "evaluation.report=false", f"data.cache={row.cache}",
        f"run.dir={sweep}", "optimizer.lr=tag(log,interval(1e-3,3e-2))", "model.width=choice(16,24,32)",
        "model.dropout=interval(0,0.5)", "data.shift=choice(1,2,3)", "sweep.trials=12", "sweep.metric=accuracy",
        *row.extra,
    )  # fmt: skip
    found = json.loads((sweep / "sweep.json").read_text())
    best = next(part for part in found["parts"] if part["number"] == found["best"])
    test = [row.evaluate(run, f"data.path={row.data}/mnist") for run in (default, best["folder"])]
    accuracies = [each["accuracy"] for each in test]
    return {
        "system": "Optuna sweep over the CNN's settings",
        "data": "12,000 images of MNIST, a tenth held out to choose by; 10,000 test images",
        "found": f"{accuracies[1]:.2%} of the test images; the recipe as it is, in as many epochs: {accuracies[0]:.2%}",
        "default_accuracy": accuracies[0], "best_accuracy": accuracies[1], "best": best["overrides"],
        "trials": found["trials"],
        "bars": {"better than the recipe": accuracies[1] > accuracies[0]},
    }  # fmt: skip
