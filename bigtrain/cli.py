"""The commands: parse, hand over, and turn a `UserError` into one clear message and exit code 2."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bigtrain import __version__
from bigtrain.errors import EXIT_DONE, EXIT_USER, UserError, guarded, nearest
from bigtrain.terminal import quiet_libraries


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
  tracker profiler hardware debug"""

TRAIN = f"""\
{OVERRIDES}

Most used:
  run.dir=DIR                   the run folder; the same one again goes on from its newest intact checkpoint
  trainer.max_steps=N           or trainer.epochs=N, or trainer.max_tokens=N
  trainer.global_batch_size=N   samples a step over all ranks;  trainer.micro_batch_size=N at once on one rank
  engine=zero2                  local ddp fsdp horovod zero0 zero1 zero2 zero3 zero2_offload zero3_offload zero3_nvme
                                zeropp
  precision=bf16                fp32 bf16 fp16 fp8
  launcher.processes=N          ranks on this machine, or on each node;  launcher.threads=N CPU threads of a rank
  launcher=torchrun             local torchrun deepspeed ssh horovod slurm kubernetes
  launcher.hostfile=FILE        the machines, for deepspeed, ssh and horovod
  data.path=PATH                file, folder, glob or hub name;  data.sequence_length=N
  model=llama_1b                model.path=DIR for pretrained weights
  optimizer.lr=X  schedule.warmup_steps=N  seed=N  checkpoint.every=N  tracker=wandb
  profiler=default               a trace of a few steps, and a page that says where they went

Sweeps: -m (--multirun) trains once for each combination of values, in Hydra's grammar, each in its own run folder:
  bigtrain train -m recipe=R optimizer.lr=1e-3,3e-4 seed=range(1,4)       here, one after another
  bigtrain train -m recipe=R optimizer.lr=1e-3,3e-4 launcher=slurm …      an array of jobs, through submitit
  bigtrain train -m run.dir=SWEEP                                        goes on with what is not finished
With sweep.trials=N Optuna chooses N runs, one after another, and ends the hopeless ones; the values of each are drawn
from interval(a,b), range(a,b) or choice(a,b,c), those of tag(log,…) from a logarithmic scale:
  bigtrain train -m recipe=R 'optimizer.lr=tag(log,interval(1e-4,1e-2))' 'model.width=choice(32,64)' sweep.trials=20
  sweep.metric=accuracy         of the evaluations; loss.     sweep.direction=maximize   known of bigtrain's own metrics
  sweep.prune=false             end no run early              sweep.startup_trials=N     drawn at random first; 5

Exit: 0 done, 2 wrong input, 75 stopped on request after a checkpoint, 1 anything else. Last line: the run folder."""

SUBMIT = """\
Renders the job into the run folder, looks at the cluster, hands it over. Overrides are those of `bigtrain train`.
  --dry-run   prints the script and the commands of any launcher; starts nothing, writes nothing

  launcher=slurm                 sbatch; launcher.start=srun | torchrun | deepspeed starts the ranks on the nodes
  launcher.nodes=N launcher.processes=M launcher.gpus=G    nodes; ranks and GPUs on each
  launcher.time=12:00:00 launcher.partition=P launcher.account=A launcher.qos=Q launcher.constraint=C
  launcher.cpus_per_task=N launcher.mem=64G launcher.container=IMAGE launcher.array=1-4%1 launcher.dependency=afterok:1
  launcher.setup=["module load cuda"]  launcher.extra=["--exclusive"]  launcher.preflight=false

  launcher=kubernetes            kubectl apply; launcher.kind=trainjob | pytorchjob | jobset, launcher.image=IMAGE,
                                 launcher.claim=NAME of a volume claim that all nodes can mount

Before the time limit, and when preempted, the ranks write a checkpoint, and the job queues itself again and goes on.
Sweeps: -m (--multirun), as in `bigtrain train --help`.
Exit: 0 submitted, 2 wrong input. Last line: the run folder."""

HARDWARE = "h100 h100x8 h200 h200x8 a100 a100x8 a100_40gb a100_40gbx8 l40s l40sx8 rtx4090 rtx4090x8 v100 v100x8 cpu"

VERIFY = f"""\
Runs a few steps of the recipe under each engine, accumulation, activation checkpointing, precision, packing, with
dropout and through a resume, on real ranks, and compares every loss and gradient norm with one process of torch alone.
Probes look for leaks between tokens, samples and documents, and for a wrong normaliser.

  --only engine,resume   parts of the table: probe recipe engine accumulation activation precision packing dropout
                         resume
  --ranks N              ranks of a set-up; else the recipe's, and at least 2 on a CPU
  --steps N              steps of each set-up (6)
  --timeout S            seconds that a set-up may take (600)

{OVERRIDES}

Exit: 0 all agree, 1 something differs, 2 wrong input. The table is kept as verify.json in the folder that the last
line names, beside the ranks' logs. What a machine cannot run is a row that says why."""

PLAN = f"""\
Memory of a rank, time of a step, days and money of the run, from the configuration alone; what binds is named.

  hardware=h100x8     the node: {HARDWARE}
                      hardware.gpus=N hardware.price=X … change it; --config-dir DIR joins nodes of your own
  nodes=N             how many of them
  engine=auto         the cheapest engine, micro-batch, activation checkpointing and tensor parallelism that fit
  --json              the same as JSON, in bytes, seconds, tokens and dollars
  --dry               and a step of rank 0 here, among ranks that do not exist: shapes, shares and messages, counted

{OVERRIDES}

Exit: 0 it fits (or the hardware is not said), 1 it does not fit, 2 wrong input."""

BENCH = """\
Runs suites of the benchmarks, each with its competitors in processes of their own, and writes SUITE.json, SUITE.png and
README.md into DIR. No SUITE: all but gpu.

  peers        speed and memory beside HF Trainer, Accelerate, Lightning Fabric, LitGPT and loops by hand, at equal loss
  overhead     the trainer's CPU time over the same raw loop, and HF Trainer's
  imports      CPU time until a trainer is built
  checkpoint   how long training stands still for 400 MB, until they are on the disk, and loading them
  throughput   by engine, precision, activation checkpointing and compile
  memory       peak bytes a rank, against the formulae
  scaling      1, 2 and 4 ranks of this machine
  gpu          124 M, 350 M and 1.2 B parameters in bf16 on one big GPU

  --out DIR        (benchmarks/results)
  --against FILE   an earlier SUITE.json, or a folder of them: exit 1 where a figure has become worse by more than its
                   interval. Of another machine only ratios are compared
  --rounds N       of each suite, instead of its own number
  --small          toy sizes: does everything run?

The peers need an extra: pip install -e '.[benchmark]'. One that is not installed is left out, with a line that says so.
Exit: 0 done, 1 a regression, 2 wrong input. Last line: DIR."""

COMMANDS = {
    "train": Command(
        "recipe=R [overrides]", "train a model; goes on by itself in a run folder", "bigtrain.sweep:train", TRAIN
    ),
    "submit": Command(
        "recipe=R launcher=slurm [--dry-run]", "hand a run to a scheduler", "bigtrain.sweep:submit", SUBMIT
    ),
    "prepare": Command("recipe=R | data=D [overrides]", "only the data steps", "bigtrain.cli:prepare", OVERRIDES),
    "plan": Command(
        "recipe=R [hardware=H nodes=N]", "memory, time and cost before anything is launched", "bigtrain.plan:main", PLAN
    ),
    "verify": Command(
        "recipe=R [overrides]", "proves that engines and set-ups agree on a recipe", "bigtrain.verify:main", VERIFY
    ),
    "evaluate": Command("PATH", "loss and perplexity of a run, checkpoint or export", "bigtrain.evaluate:main"),
    "generate": Command("PATH --prompt TEXT", "text from a trained model", "bigtrain.generate:main"),
    "export": Command("PATH --out DIR", "a Hugging Face folder, its logits proved", "bigtrain.export:main"),
    "report": Command("RUN…", "one HTML file with plots", "bigtrain.report:main"),
    "checkpoint": Command(
        "list|verify|diff PATH…", "what is there, and whether it is right", "bigtrain.checkpoint.commands:main"
    ),
    "data": Command(
        "trace|blame|verify PATH…", "the documents of a step, or behind a spike; checksums", "bigtrain.ledger:main"
    ),
    "bench": Command("[SUITE…]", "the benchmark suites, beside other trainers", "bigtrain.bench:main", BENCH),
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


def prepare(argv: Sequence[str]) -> int:
    """The data steps alone."""
    from bigtrain.config.components import build
    from bigtrain.config.compose import compose_data
    from bigtrain.report.data_page import report_on

    data = build(compose_data(argv), "data")
    if not hasattr(data, "prepare"):
        raise UserError("this data component has nothing to prepare.")
    data.prepare()
    report_on(data)
    for folder in getattr(data, "folders", {"data": data.folder}).values():
        print(folder)
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
    quiet_libraries()
    return guarded(_function(command.target), rest)
