"""The commands: parse, hand over, and turn a `UserError` into one clear message and exit code 2."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigtrain import __version__
from bigtrain.errors import EXIT_DONE, EXIT_USER, UserError, guarded, nearest


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what stands behind it on the line, what it does, and the `module:function(argv) -> exit code`."""

    usage: str
    summary: str
    target: str
    details: str = ""


OVERRIDES = """\
Everything after the command is a Hydra override: group=option, or a.b=value.
  --config-dir DIR   a folder of your own with recipes and groups; it wins over the shipped ones
Groups: recipe model data objective optimizer schedule engine precision trainer checkpoint evaluation launcher
  tracker debug"""

TRAIN = f"""\
{OVERRIDES}

Most used:
  run.dir=DIR                   the run folder; the same one again goes on from its newest intact checkpoint
  trainer.max_steps=N           or trainer.epochs=N, or trainer.max_tokens=N
  trainer.global_batch_size=N   samples a step over all ranks;  trainer.micro_batch_size=N at once on one rank
  engine=zero2                  local ddp zero0 zero1 zero2 zero3;  precision=bf16  fp32 bf16 fp16
  launcher.processes=N          ranks on this machine
  data.path=PATH                file, folder, glob or hub name;  data.sequence_length=N
  model=llama_1b                model.path=DIR for pretrained weights
  optimizer.lr=X  schedule.warmup_steps=N  seed=N  checkpoint.every=N  tracker=wandb

Exit: 0 done, 2 wrong input, 75 stopped on request after a checkpoint, 1 anything else. Last line: the run folder."""

COMMANDS = {
    "train": Command(
        "recipe=R [overrides]", "train a model; goes on by itself in a run folder", "bigtrain.cli:train", TRAIN
    ),
    "prepare": Command("recipe=R | data=D [overrides]", "only the data steps", "bigtrain.cli:prepare", OVERRIDES),
    "evaluate": Command("PATH", "loss and perplexity of a run, checkpoint or export", "bigtrain.evaluate:main"),
    "generate": Command("PATH --prompt TEXT", "text from a trained model", "bigtrain.generate:main"),
    "export": Command("PATH --out DIR", "a Hugging Face folder, its logits proved", "bigtrain.export:main"),
    "report": Command("RUN…", "one HTML file with plots", "bigtrain.report:main"),
    "checkpoint": Command(
        "list|verify|diff PATH…", "what is there, and whether it is right", "bigtrain.checkpoint.commands:main"
    ),
    "doctor": Command("", "what this machine has, what is missing, how to mend it", "bigtrain.doctor:main"),
}


def usage() -> str:
    """The text of `bigtrain --help`."""
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    lines = [f"  {f'{name} {command.usage}':<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "bigtrain: one recipe from raw text to an exported model, exact on any engine and any number of ranks.",
            "",
            "usage: bigtrain COMMAND …        (bigtrain COMMAND --help tells more)",
            "",
            *lines,
            "",
            "Start with:  bigtrain train recipe=quickstart",
        ]
    )


def train(argv: Sequence[str]) -> int:
    """Compose, freeze the configuration into the run folder, start the ranks."""
    from bigtrain.checkpoint.folder import lock
    from bigtrain.config.compose import PENDING, compose, freeze, targets
    from bigtrain.launchers.local import commands, free_port
    from bigtrain.launchers.supervise import run

    composed = compose(argv)
    run_dir = Path(composed.config.run.dir or "")
    for note in composed.notes:
        print(note)
    new = not run_dir.exists()
    with lock(run_dir):  # says now, and not from a worker, that the folder is taken or cannot be written
        freeze(composed.raw, run_dir / PENDING)
    code = run(commands(composed.config, targets(composed.config), free_port()))
    if code == EXIT_USER and new and not (run_dir / "config.yaml").exists():
        shutil.rmtree(run_dir, ignore_errors=True)  # no rank has taken the run up: leave nothing half-made
    else:
        with contextlib.suppress(BrokenPipeError):
            print(run_dir, flush=True)
    return code


def prepare(argv: Sequence[str]) -> int:
    """The data steps alone."""
    from bigtrain.config.components import build
    from bigtrain.config.compose import compose_data

    data = build(compose_data(argv), "data")
    if not hasattr(data, "prepare"):
        raise UserError("this data component has nothing to prepare.")
    data.prepare()
    print(data.folder)
    return EXIT_DONE


def _function(target: str) -> Callable[[Sequence[str]], int]:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return EXIT_DONE
    if words[0] in ("-V", "--version"):
        print(f"bigtrain {__version__}")
        return EXIT_DONE
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        print(f"bigtrain: there is no command '{name}'.{nearest(name, COMMANDS)}", file=sys.stderr)
        return EXIT_USER
    command = COMMANDS[name]
    if command.details and any(word in ("-h", "--help") for word in rest):
        print(f"usage: bigtrain {name} {command.usage}\n\n{command.summary}\n\n{command.details}")
        return EXIT_DONE
    return guarded(_function(command.target), rest)
