"""`bigtrain evaluate PATH`: loss and perplexity on the run's own held-out text, or on another."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain import harness, predicted, written
from bigtrain.config.components import build
from bigtrain.config.compose import compose_data
from bigtrain.config.composer import Composer
from bigtrain.config.rules import held_out_samples
from bigtrain.config.schema import Component
from bigtrain.errors import EXIT_DONE, UserError, nearest
from bigtrain.telemetry.progress import console, say
from bigtrain.terminal import CommandLine, progress_bar
from bigtrain.trained import Device, Trained, lay_over, load_trained, trusted_component, vocabulary_of

if TYPE_CHECKING:
    from torch import Tensor

SUMMARY = """\
Loss and metrics: of a run on its own held-out split, or of any model on any data.

  bigtrain evaluate runs/quickstart/20250101-120000
  bigtrain evaluate RUN/checkpoints/step_00000200 --json
  bigtrain evaluate RUN data.path=other.txt            all of that text (a share of it: data.held_out=0.1)
  bigtrain evaluate RUN/export data=moby_dick          the held-out split of that data
  bigtrain evaluate RUN task=translation --beams 5     what it writes: BLEU and chrF (task=summarisation: ROUGE)
  bigtrain evaluate RUN --out predicted.jsonl          a classifier's or regression's word on each sample
  bigtrain evaluate RUN --picture confusion.svg        a classifier's confusion matrix
  bigtrain evaluate RUN task=lm_eval --tasks arc_easy,hellaswag   the public benchmarks, on the run's export

What is measured is what the run's objective says: perplexity and bits per byte, or accuracy, precision, recall and F1,
or errors. Other data is prepared with the model's own tokenizer. Overrides are laid over the run's own configuration:
data=D, data.*, precision.name=fp32, trainer.eval_batches=N; model._target_=my.Model says that a model of yours may be
used."""

TASKS = ("language_modelling", "lm_eval", *written.TASKS)
OF_TASK = {
    "causal_lm": ("causal_lm", "text"),
    "masked_lm": ("masked_lm", "masked_text"),
    "sequence_classification": ("classification", "labelled_texts"),
    "token_classification": ("classification", "tagged_words"),
    "image_classification": ("classification", "images"),
    "seq2seq": ("seq2seq", "pairs"),
}
"""The objective of a Hugging Face folder by the task of its model, and the data where the user names none."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found."""

    path: str
    step: int | None
    """Optimizer steps of the model's training, and the tokens that it saw; None where that is not known."""
    tokens: int | None
    loss: float
    """Mean over all targets, in nats."""
    metrics: dict[str, float]
    """What the objective makes of the loss: perplexity."""
    text: str
    """What was evaluated, in words."""
    targets: int
    number_format: str
    """fp32, bf16 or fp16. (A classifier has a metric by the name of precision.)"""
    confusion: list[list[int]] | None = None
    """A classifier's: rows are the true classes."""
    label_names: list[str] | None = None


def evaluate(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
    batch_size: int | None = None,
    device: Device = "auto",
    beams: int | None = None,
    out: Path | None = None,
    picture: Path | None = None,
) -> Evaluation:
    """The mean loss over all targets of the model at `path`, and what its objective measures.

    Without `data` overrides it is the run's own held-out split, the samples and the precision of the training's
    evaluations: the loss of its last line of metrics.jsonl comes out again.

    Args:
        path: see `load_trained`, also for `device`.
        overrides: `data=…`, `data.…=…` and other settings of a run.
        config_dirs: folders of the user's own with a `data/` group.
        batch_size: samples at once; None: the run's trainer.micro_batch_size.
        beams: of the search, where a task is to write texts; None: 4; 1: greedy.
        out: a file for those texts, or for what is said of each sample.
        picture: a file for a classifier's confusion matrix, as SVG.

    Raises:
        UserError: see `load_trained`; no text to evaluate, one that changed since training, or tokens that the model
            does not know.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch-size must be at least 1, not {batch_size}.")
    task, overrides = _task(overrides)
    if beams is not None and task not in written.TASKS:
        raise UserError(f"--beams is of the search for texts: say task={' or task='.join(written.TASKS)} beside it.")
    chosen = [text for text in overrides if text.lstrip("+~").startswith(("data=", "data."))]
    rest = [text for text in overrides if text not in chosen]
    trained = load_trained(path, overrides=rest, device=device)
    config = trained.config
    if not chosen and config is None:
        raise UserError(
            f"{path} is a Hugging Face folder without held-out data: name them, as data={_of_task(trained)[1]} "
            "data.path=FILE."
        )
    kind, _ = _of_task(trained)
    objective: Component = {"_target_": f"bigtrain.objectives.{kind}"}
    if config is not None:
        objective = own_component(trained, "objective", overrides)
    kind = objective["_target_"].rpartition(".")[2]
    if out is not None and task not in written.TASKS and kind not in predicted.KINDS:
        raise UserError(f"--out is for what is written (task=translation), classified or predicted, not for {kind}.")
    built = build(objective, "objective")
    if picture is not None and not hasattr(built, "confusion"):
        raise UserError(f"--picture is for classifiers: there is no confusion matrix of {kind}.")
    component = other_data(trained, chosen, config_dirs) if chosen else own_component(trained, "data", overrides)
    data = build(component, "data")
    if not chosen and trained.checkpoint is not None and hasattr(data, "resume"):
        state = trained.checkpoint.manifest.state
        data.resume(state.get("data"), state["loop"]["position"])  # its shards, whatever was left out of them since
    if hasattr(data, "prepare"):
        data.prepare()
    if not chosen:
        check_same(trained, data)
    samples, what = choose_split(data, whole=component.get("held_out") == 0)
    known, needed = trained.vocab_size, vocabulary_of(data)
    if known is not None and needed is not None and needed > known:
        raise UserError(
            f"The text's tokenizer has {needed} tokens and the model knows {known}: leave data.tokenizer out."
        )

    if not chosen or any(text.startswith("trainer.eval_batches=") for text in overrides):
        samples, what = _first(trained, samples, what)
    precision = config.precision.name if config else "fp32"
    if precision == "fp16" and trained.device.type == "cpu":
        precision = "fp32"  # fp16 is slow and inexact there
    size = batch_size or (config.trainer.micro_batch_size if config else 8)
    from bigtrain.engines.base import summary

    sums, targets = add_up(trained, built, samples, size, precision)
    loss, metrics = summary(built, sums, targets)
    if kind == "causal_lm":
        metrics |= bits_per_byte(trained, samples, loss * targets)
    if task in written.TASKS:
        longest, beams = component.get("target_length") or 128, 4 if beams is None else beams
        metrics |= written.measure(trained, samples, task, batch_size=size, beams=beams, longest=longest, out=out)
    elif out is not None:
        predicted.write(
            trained, samples, out, names=getattr(data, "label_names", None), numbers=kind == "regression",
            batch_size=size, autocast=arithmetic(trained, precision),
        )  # fmt: skip
    step, tokens = trained.progress
    found = Evaluation(
        str(path), step, tokens, loss, metrics, f"{what} of {_name(component)}", targets, precision,
        getattr(built, "confusion", None), getattr(data, "label_names", None),
    )  # fmt: skip
    if picture is not None:
        _draw(found, picture)
    return found


def add_up(trained: Trained, objective: Any, samples: Any, batch_size: int, precision: str) -> tuple[Tensor, int]:
    """(what the objective adds up over the samples, the loss in nats first, in fp64; number of targets)."""
    import torch

    from bigtrain.data.loader import eval_batches
    from bigtrain.engines.base import tally, to_device

    total, targets = torch.zeros(1, dtype=torch.float64, device=trained.device), 0
    with progress_bar() as bar, torch.no_grad(), arithmetic(trained, precision):
        task = bar.add_task("evaluating", total=-(-len(samples) // batch_size))
        for batch in eval_batches(samples, micro_batch_size=batch_size):
            total = total + tally(objective, trained.model, to_device(batch, trained.device)).double()
            targets += objective.count(batch)
            bar.advance(task)
    if targets == 0:
        raise UserError("The text to evaluate has no targets: it is too short.")
    return total, targets


def arithmetic(trained: Trained, precision: str) -> AbstractContextManager[Any]:
    """What the model computes in: that of the training's evaluations."""
    import torch

    from bigtrain.engines.base import DTYPES

    return torch.autocast(trained.device.type, DTYPES[precision]) if precision != "fp32" else nullcontext()


def _of_task(trained: Trained) -> tuple[str, str]:
    return OF_TASK[getattr(trained.model, "task", "causal_lm")]


def own_component(trained: Trained, key: str, overrides: Sequence[str]) -> Component:
    """The run's own component, if it is bigtrain's or the user names it."""
    assert trained.config is not None
    return trusted_component(getattr(trained.config, key), key, trained.path, overrides)


def other_data(trained: Trained, chosen: Sequence[str], config_dirs: Sequence[str]) -> Component:
    """The data component that the user's `data=D` and `data.a=b` make, over the run's own where no `data=` is given.

    The tokenizer and the length of a sample are the model's, unless the user gives others. A `data.path` without
    `data.held_out` means all of that text.
    """
    folders = [Path(folder).resolve() for folder in config_dirs]
    groups, values = Composer(folders).parse(chosen)
    if not groups and trained.config is not None:
        own = {"data": copy.deepcopy(trained.config.data)}
        lay_over(own, chosen)
        component = trusted_component(own["data"], "data", trained.path, chosen)
    else:
        words = [word for folder in folders for word in ("--config-dir", str(folder))]
        component = compose_data([*words, *(groups or [f"data={_of_task(trained)[1]}"]), *values.values()])
    given = {key.removeprefix("data.") for key in values}
    if "path" in given and "domains" in component:  # the other text is in none of the run's domains
        component |= {"domains": None, "stages": None}
    if "tokenizer" in component and "tokenizer" not in given:
        trained.need_tokenizer()
        component["tokenizer"] = str(trained.tokenizer_path)
    prepared = (Path(str(component.get("path"))).expanduser() / "manifest.json").is_file()  # it has its split already
    if "held_out" in component and "path" in given and "held_out" not in given and not prepared:
        component["held_out"] = 0.0
    names = getattr(getattr(trained.model, "config", None), "id2label", None)
    if names and component.get("labels", 0) is None and not component.get("label_ranges"):
        component["labels"] = [names[number] for number in sorted(names)]  # numbered as the model has them
    length = component.get("sequence_length")
    if "sequence_length" not in given and isinstance(length, int) and trained.window is not None:
        component["sequence_length"] = trained.window if trained.config else min(length, trained.window)
    return component


def check_same(trained: Trained, data: Any) -> None:
    """A `UserError` where the run's data is not what it was: its held-out text may have been trained on."""
    assert trained.checkpoint is not None
    from bigtrain.data.resuming import texts

    own = data.texts if hasattr(data, "texts") else data.state() if hasattr(data, "state") else None
    now = getattr(data, "fingerprint", None) if own is None else own
    then = texts(trained.checkpoint.manifest.state.get("data"))
    if now != then:
        raise UserError(
            f"The data of {trained.path} has changed since it was trained ({then} then, {now} now), so its held-out "
            "split is another. To evaluate on a text as it is now, give it as data.path=FILE."
        )


def choose_split(data: Any, whole: bool) -> tuple[Any, str]:
    """(samples, their name): the held-out split; all of it where nothing is held out on purpose."""
    if not whole:
        if data.eval is None or len(data.eval) == 0:
            raise UserError("Nothing is held out of this data: give a text, as data.path=FILE.")
        return data.eval, "the held-out split"
    # Training leaves out what is left after the last whole sample.
    return (data.whole if hasattr(data, "whole") else data.train), "all"


def _first(trained: Trained, samples: Any, what: str) -> tuple[Any, str]:
    """As many samples as an evaluation of the training looked at (`trainer.eval_batches`)."""
    from torch.utils.data import Subset

    assert trained.config is not None
    limit = held_out_samples(trained.config)
    size = len(samples) if limit is None else limit
    if size >= len(samples):
        return samples, what
    return Subset(samples, range(size)), f"the first {size} of {len(samples)} samples of {what}"


def bits_per_byte(trained: Trained, samples: Any, nats: float) -> dict[str, float]:
    """The loss by what the targets stand for, so that models with other tokenizers compare; {} without a tokenizer."""
    import numpy as np

    if trained.tokenizer is None:
        return {}
    table = np.array(written.bytes_of_tokens(trained.tokenizer, trained.vocab_size or len(trained.tokenizer)))
    size = 0
    for number in range(len(samples)):
        labels = np.asarray(samples[number]["labels"])
        size += int(table[labels[labels >= 0]].sum())
    return {"bits_per_byte": nats / np.log(2) / size} if size else {}


def _task(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """`task=` among the overrides, and the others."""
    given = [text.partition("=")[2] for text in overrides if text.startswith("task=")]
    for task in given:
        if task not in TASKS:
            raise UserError(f"there is no task={task}.{nearest(task, TASKS)}")
    return given[-1] if given else None, [text for text in overrides if not text.startswith("task=")]


def _name(component: Component) -> str:
    path = component.get("path") or list(component.get("domains") or [component["_target_"]])
    return ", ".join(map(str, path)) if isinstance(path, list | tuple) else str(path)


def print_table(found: Evaluation) -> None:
    """step, tokens, loss, perplexity."""
    from rich.table import Table

    say(f"{found.text}: {found.targets:,} targets, {found.number_format}")
    table = Table()
    for name in ("step", "tokens", "loss", *found.metrics):
        table.add_column(name, justify="right")
    known = ["-" if number is None else f"{number:,}" for number in (found.step, found.tokens)]
    table.add_row(*known, f"{found.loss:.5f}", *(f"{value:,.3f}" for value in found.metrics.values()))
    console().print(table)


def _draw(found: Evaluation, file: Path) -> None:
    from bigtrain.confusion import confusion_svg

    assert found.confusion is not None
    try:
        file.write_text(confusion_svg(found.confusion, found.label_names), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--picture {file} cannot be written: {error.strerror}.") from error
    print(f"confusion matrix: {file}", file=sys.stderr)


def _harness(path: str, options: argparse.Namespace, overrides: Sequence[str]) -> int:
    others = [text for text in overrides if text != "task=lm_eval"]
    if others:
        raise UserError(f"'{others[0]}' has no effect with task=lm_eval, which measures an export as it is.")
    names = [name for name in options.tasks.split(",") if name]
    if not names:
        raise UserError("task=lm_eval: which ones? --tasks arc_easy,hellaswag")
    found = harness.measure(
        path, names, include=options.include, few_shot=options.few_shot, limit=options.limit,
        batch_size=options.batch_size or 8, device=options.device,
    )  # fmt: skip
    if options.json:
        print(json.dumps({"path": path, "results": found}))
    else:
        harness.print_table(found)
    return EXIT_DONE


def main(argv: Sequence[str]) -> int:
    """The command."""
    line = CommandLine("evaluate", SUMMARY)
    line.add_argument("--batch-size", type=int, metavar="N", help="samples at once; default trainer.micro_batch_size")
    line.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    line.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="a folder with data/ of your own"
    )
    line.add_argument("--beams", type=int, metavar="N", help="of the search for texts; default 4; 1: greedy")
    line.add_argument("--tasks", default="", metavar="A,B", help="of task=lm_eval: names of the harness's tasks")
    line.add_argument("--include", type=Path, metavar="DIR", help="and a folder with tasks of your own, in YAML")
    line.add_argument("--few-shot", type=int, metavar="N", help="and examples before a question; default: the task's")
    line.add_argument("--limit", type=int, metavar="N", help="and questions of each task, for a try; default: all")
    line.add_argument("--out", type=Path, metavar="FILE", help="what was written or predicted, a JSON object a line")
    line.add_argument("--picture", type=Path, metavar="FILE", help="a classifier's confusion matrix, as .svg")
    options, path, overrides = line.read(argv)
    if _task(overrides)[0] == "lm_eval":
        return _harness(path, options, overrides)
    if options.tasks or options.include or options.few_shot is not None or options.limit is not None:
        raise UserError("--tasks, --include, --few-shot and --limit are for task=lm_eval.")
    if options.picture and options.picture.suffix != ".svg":
        raise UserError(f"--picture {options.picture}: the picture is an .svg file.")
    for name, file in ("out", options.out), ("picture", options.picture):
        if file and not file.parent.is_dir():
            raise UserError(f"--{name} {file}: there is no folder {file.parent}.")
    if options.beams is not None and options.beams < 1:
        raise UserError(f"beams must be at least 1, not {options.beams}.")
    found = evaluate(
        path,
        overrides=overrides,
        config_dirs=options.config_dir,
        batch_size=options.batch_size,
        device=options.device,
        beams=options.beams,
        out=options.out,
        picture=options.picture,
    )
    if options.json:
        flat = dataclasses.asdict(found)
        metrics = flat.pop("metrics")
        print(json.dumps(flat | metrics))
    else:
        print_table(found)
    return EXIT_DONE
