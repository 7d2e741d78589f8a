"""CPU time a step of bigtrain's trainer over the same raw PyTorch loop, with the Hugging Face Trainer beside it.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json

All sides train the same tiny model on the same text in a process of their own, one thread each. bigtrain runs as a user
runs it (`bigtrain train`), with metrics, clipping, schedule and checkpointing armed; so does the Hugging Face Trainer.
`raw` is the loop that one would write by hand for the same arithmetic (objective, clipping, schedule, optimizer);
nothing is logged or saved.

Each side reads its own CPU clock (user + system, all threads) every 100 steps from where anyone could: a tracker of the
user's own, a callback. Each such window holds ten log points and one checkpoint; the first, with the start-up, does not
count. The sides take turns; of a round counts the lower quartile of its windows: a neighbour on the machine only adds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from _suite import MS, FailedError, Measured, Suite, in_turn, metric, process

WINDOW, LOG_EVERY = 100, 10
NAMES = {"raw": "raw loop", "bigtrain": "bigtrain", "hf_trainer": "HF Trainer"}


class Clock:
    """Notes the CPU and wall clocks at the end of every window: a tracker for bigtrain, called by hand elsewhere."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def log(self, step: int, split: str, metrics: object) -> None:
        """Of the training steps, every WINDOW-th."""
        if split == "train" and step % WINDOW == 0:
            with self.file.open("a") as out:
                print(json.dumps([step, time.process_time(), time.perf_counter()]), file=out)

    def close(self) -> None:
        """Nothing is left open."""


def clock(run_dir: Path, config: dict[str, Any], *, file: str) -> Clock:
    """The tracker component."""
    return Clock(Path(file))


def overrides(work: Path, steps: int) -> list[str]:
    """The one configuration that all sides build their parts from."""
    return [
        "recipe=smoke",
        f"run.dir={work / 'run'}",
        "model=toy",
        "model.tied=false",  # the Hugging Face Trainer refuses to save a plain module with tied weights
        "data=moby_dick",
        f"data.cache={work.parent / 'prepared'}",
        "data.vocab_size=2048",
        "data.sequence_length=64",
        "engine=local",
        "trainer.global_batch_size=8",
        "trainer.micro_batch_size=8",
        f"trainer.max_steps={steps}",
        f"trainer.log_every={LOG_EVERY}",
        "trainer.eval_every=null",
        "trainer.eval_batches=1",
        "trainer.device=cpu",
        f"checkpoint.every={WINDOW}",
        "evaluation.report=false",
        "tracker.clock._target_=overhead.clock",
        f"tracker.clock.file={work / 'clock.jsonl'}",
        "launcher.threads=1",
    ]


def parts(work: Path, steps: int) -> tuple[Any, Any, Any, Any, Any]:
    """Model, data, objective, optimizer and schedule, as bigtrain builds them from the same configuration."""
    import torch

    from bigtrain.config.components import build
    from bigtrain.config.compose import compose

    config = compose(overrides(work, steps)).config
    data = build(config.data, "data")
    data.prepare()
    torch.manual_seed(config.seed)
    model = build(config.model, "model", vocab_size=data.vocab_size)
    optimizer = build(config.optimizer, "optimizer", model)
    return model, data, build(config.objective, "objective"), optimizer, build(config.schedule, "schedule")


def batches(data: Any, count: int) -> Iterator[dict[str, Any]]:
    """`count` shuffled batches of 8, epoch after epoch."""
    from torch.utils.data import DataLoader

    loader, given = DataLoader(data.train, batch_size=8, shuffle=True, drop_last=True), 0
    while True:
        for batch in loader:
            if given == count:
                return
            given += 1
            yield batch


def raw(work: Path, steps: int) -> None:
    """The loop by hand, same arithmetic."""
    import torch

    model, data, objective, optimizer, schedule = parts(work, steps)
    stamp, rates = Clock(work / "clock.jsonl"), [group["lr"] for group in optimizer.param_groups]
    for step, batch in enumerate(batches(data, steps)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(step, steps)
        loss = objective.loss(model, batch) / objective.count(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamp.log(step + 1, "train", None)
    print(f"last loss {loss.item():.3f}")


def hf_trainer(work: Path, steps: int) -> None:
    """The Hugging Face Trainer around the same model, data, optimizer and schedule."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    model, data, objective, optimizer, schedule = parts(work, steps)

    stamp = Clock(work / "clock.jsonl")

    class Stamp(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            stamp.log(state.global_step, "train", None)

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Any, labels: Any, num_items_in_batch: Any = None) -> dict[str, Any]:
            batch = {"input_ids": input_ids, "labels": labels}
            return {"loss": objective.loss(self.inner, batch) / (num_items_in_batch or objective.count(batch))}

    arguments = TrainingArguments(
        output_dir=str(work / "run"),
        per_device_train_batch_size=8,
        max_steps=steps,
        logging_steps=LOG_EVERY,
        save_strategy="steps",
        save_steps=WINDOW,
        save_total_limit=3,
        max_grad_norm=1.0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(
        model=WithLoss(),
        args=arguments,
        train_dataset=data.train,
        data_collator=default_data_collator,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: schedule(step, steps))),
        callbacks=[Stamp()],
    ).train()


def command(side: str, work: Path, steps: int) -> list[str]:
    """What is run in a process of its own for one side."""
    if side == "bigtrain":
        return ["-m", "bigtrain", "train", *overrides(work, steps)]
    return [__file__, "--side", side, str(work), str(steps)]


def run_side(side: str, root: Path, steps: int) -> dict[str, float]:
    """CPU and wall seconds a step: the lower quartile of the windows of one run, but for the first."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        work = Path(folder)
        process(command(side, work, steps), threads=1)
        stamps = [json.loads(line) for line in (work / "clock.jsonl").read_text().splitlines()]
    stamps = list({step: (cpu, wall) for step, cpu, wall in stamps}.values())  # the last log of the run may come twice
    if len(stamps) != steps // WINDOW:
        raise FailedError(f"{len(stamps)} windows of {steps // WINDOW}")
    counted = list(pairwise(stamps)) or [((0.0, 0.0), stamps[0])]
    cpu, wall = (sorted((b[i] - a[i]) / WINDOW for a, b in counted)[(len(counted) - 1) // 4] for i in (0, 1))
    return {"CPU a step": cpu, "step": wall}


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    steps = WINDOW if small else 3 * WINDOW
    measured = Measured({"overrides": overrides(Path("WORK"), steps), "steps": steps, "window": WINDOW, "threads": 1})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        say("preparing the data")
        run_side("raw", root, WINDOW)
        sides = {name: partial(run_side, side, root, steps) for side, name in NAMES.items()}
        found = in_turn(sides, rounds, say, measured.notes)
    for case in found:
        for one, raw in zip(found[case], found["raw loop"], strict=True):
            one["CPU over the raw loop"] = one["CPU a step"] - raw["CPU a step"]
    measured.groups["toy model, 8 x 64"] = found
    return measured


def target(text: str, over: tuple[str, str], bound: float) -> dict[str, Any]:
    """bigtrain's overhead over something else."""
    of = ["bigtrain", "CPU over the raw loop"]
    return {"text": text, "group": "toy model, 8 x 64", "of": of, "over": over, "at_most": bound}


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={"CPU a step": metric(MS), "CPU over the raw loop": metric(MS), "step": metric(MS)},
    pictured=("CPU a step", "CPU over the raw loop"),
    targets=(
        target("overhead at most 3 % of the raw loop's CPU time", ("raw loop", "CPU a step"), 0.03),
        target("overhead at most 15 % of HF Trainer's", ("HF Trainer", "CPU over the raw loop"), 0.15),
    ),
    measure=measure,
    rounds=1,
)


def main() -> None:
    """One side alone, in this process (`--side SIDE WORK STEPS`), or the suite."""
    if sys.argv[1:2] == ["--side"]:
        functions: dict[str, Callable[[Path, int], None]] = {"raw": raw, "hf_trainer": hf_trainer}
        functions[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))
    else:
        SUITE.main()


if __name__ == "__main__":
    main()
