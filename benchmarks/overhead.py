"""CPU time a step of bigtrain's trainer over the same raw PyTorch loop, with the Hugging Face Trainer beside it.

    python benchmarks/trainer_overhead.py --out benchmarks/results/trainer_overhead.json

All sides train the same tiny model on the same text in a process of their own, one thread each. bigtrain runs as a user
runs it (`bigtrain train`), with metrics, clipping, schedule and checkpointing armed; so does the Hugging Face Trainer.
- `raw`: the loop that one would write by hand for the same arithmetic (objective, clipping, schedule, optimizer);
  nothing is logged or saved.
- `bare`: less than that: plain cross-entropy of the logits, no clipping, a constant learning rate.
Each side reads its own CPU clock (user + system, all threads) every 100 steps from where anyone could: a tracker of the
user's own, a callback. Each such window holds ten log points and one checkpoint; the first, with the start-up, does not
count. The sides take turns, and the lower quartiles of the windows are compared: a neighbour on the machine only adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from _common import parser, table, write

SIDES = ("raw", "bigtrain", "hf_trainer", "bare")
LIMIT = 0.05
WINDOW, LOG_EVERY = 100, 10


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
        "tracker.clock._target_=trainer_overhead.clock",
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


def bare(work: Path, steps: int) -> None:
    """Forward, backward, step."""
    from torch.nn.functional import cross_entropy

    model, data, _, optimizer, _ = parts(work, steps)
    stamp = Clock(work / "clock.jsonl")
    for step, batch in enumerate(batches(data, steps)):
        logits = model(batch["input_ids"])
        loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
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
        return [sys.executable, "-m", "bigtrain", "train", *overrides(work, steps)]
    return [sys.executable, __file__, "--side", side, "--work", str(work), "--steps", str(steps)]


def measure(side: str, root: Path, steps: int) -> list[tuple[float, float]]:
    """CPU and wall seconds a step, of every window of one run but the first."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        work = Path(folder)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        done = subprocess.run(command(side, work, steps), env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{side} failed with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        stamps = [json.loads(line) for line in (work / "clock.jsonl").read_text().splitlines()]
    stamps = list({step: (cpu, wall) for step, cpu, wall in stamps}.values())  # the last log of the run may come twice
    assert len(stamps) == steps // WINDOW, f"{side}: {len(stamps)} windows of {steps // WINDOW}"
    return [
        ((cpu - cpu_before) / WINDOW, (wall - wall_before) / WINDOW)
        for (cpu_before, wall_before), (cpu, wall) in pairwise(stamps)
    ]


def main() -> None:
    """Measure, print a table, write JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=5 * WINDOW, help="of a run (default %(default)s)")
    options.add_argument("--repeats", type=int, default=4, help="runs of each side (default %(default)s)")
    options.add_argument("--side", choices=SIDES, help="run one side alone, in this process")
    options.add_argument("--work", type=Path, help="its folder")
    chosen = options.parse_args()
    if chosen.side:
        functions: dict[str, Callable[[Path, int], None]] = {"raw": raw, "bare": bare, "hf_trainer": hf_trainer}
        functions[chosen.side](chosen.work, chosen.steps)
        return

    windows: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure("raw", root, WINDOW)  # prepares the data, once for all
        for repeat in range(chosen.repeats):
            for side in (*SIDES[repeat % len(SIDES) :], *SIDES[: repeat % len(SIDES)]):
                found = measure(side, root, chosen.steps)
                windows[side] += found
                print(f"repeat {repeat + 1}  {side:<10}", *(f"{1e3 * cpu:.2f}" for cpu, _ in found), "ms", flush=True)

    def lower_quartile(side: str, which: int) -> float:
        return sorted(window[which] for window in windows[side])[len(windows[side]) // 4]

    cpu_s, wall_s = ({side: lower_quartile(side, which) for side in SIDES} for which in (0, 1))
    over = {side: cpu_s[side] / cpu_s["raw"] - 1 for side in SIDES}
    rows = [
        [side, f"{1e3 * cpu_s[side]:.2f}", f"{100 * over[side]:+.1f} %", f"{1e3 * wall_s[side]:.2f}"] for side in SIDES
    ]
    print("\n" + table(["side", "CPU ms a step", "over raw", "wall ms a step"], rows))
    verdict = f"{'within' if over['bigtrain'] <= LIMIT else 'OVER'} the limit of {100 * LIMIT:.0f} %"
    print(f"\nbigtrain: {100 * over['bigtrain']:+.1f} % CPU time over the raw loop, {verdict}")
    write(
        chosen.out,
        "trainer_overhead",
        {
            "overrides": overrides(Path("WORK"), chosen.steps),
            "steps": chosen.steps,
            "window": WINDOW,
            "repeats": chosen.repeats,
            "threads": 1,
        },
        {
            "cpu_ms_per_step": {side: 1e3 * cpu_s[side] for side in SIDES},
            "wall_ms_per_step": {side: 1e3 * wall_s[side] for side in SIDES},
            "cpu_over_raw": over,
            "limit": LIMIT,
            "windows_cpu_s_and_wall_s_per_step": windows,
        },
    )


if __name__ == "__main__":
    main()
