"""Peak memory and time of a training step with a large vocabulary: bigtrain's native model and the HF Trainer.

    python benchmarks/lm_head_memory.py --out benchmarks/results/lm_head_memory.json

The same GPT-2 (30 M parameters, vocabulary 50,304), the same weights, batches (8 x 256), AdamW and clipping, in fp32
and without dropout: the HF Trainer's own loop, and bigtrain's native model in its local engine. Each measurement is a
process of its own, the two sides in turn, and the table has the medians. Memory is the process's high-water mark (on a
GPU: the allocator's) over the steps after the first, as a whole and above what the imports took; the first step is left
out of the times too. CPU seconds are those of all threads, and bear a machine that has other work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VOCABULARY, LAYERS, HEADS, WIDTH, BATCH, LENGTH, SEED = 50_304, 6, 6, 384, 8, 256, 0
LR, BETAS, EPS, DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "sequence_length": LENGTH, "layers": LAYERS, "heads": HEADS, "width": WIDTH,
}  # fmt: skip
CONFIG = {
    **SHAPE, "batch": BATCH, "length": LENGTH,
    "precision": "fp32", "optimizer": "adamw", "lr": LR, "betas": BETAS, "weight_decay": DECAY, "grad_clip": 1.0,
}  # fmt: skip


ROWS = {
    "peak_bytes": ("peak memory, MiB", 2**20, 0),
    "above_imports_bytes": ("above imports, MiB", 2**20, 0),
    "step_s": ("seconds a step", 1, 3),
    "step_cpu_s": ("CPU seconds a step", 1, 3),
}


class Meter:
    """High-water marks and times of steps."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.base = self._now()

    def _now(self) -> int:
        if self.cuda:
            import torch

            return torch.cuda.memory_allocated()
        return self._status("VmRSS")

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

    def lowered(self) -> None:
        """Forget the high-water mark: from here on, what the steps need."""
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """The high-water mark in bytes."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        return self._status("VmHWM")

    def tick(self) -> None:
        """The end of a step."""
        if self.cuda:
            import torch

            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.times) == 1:
            self.lowered()

    def result(self, losses: Sequence[float]) -> dict[str, Any]:
        """What the parent process reads."""
        steps, cpu = ([b - a for a, b in itertools.pairwise(times)] for times in (self.times, self.cpu))
        peak = self.peak()
        return {
            "peak_bytes": peak,
            "above_imports_bytes": peak - self.base,
            "step_s": statistics.median(steps),
            "step_cpu_s": statistics.median(cpu),
            "losses": list(losses),
        }


def batches(steps: int) -> Any:
    """(steps, batch, length + 1) token ids."""
    import torch

    shape = (steps, BATCH, LENGTH + 1)
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))


def ours(folder: str, steps: int, device: str) -> dict[str, Any]:
    """bigtrain's native model, objective and optimizer in its local engine."""
    import torch

    from bigtrain.config import schema
    from bigtrain.distributed import Ranks
    from bigtrain.engines import build_engine
    from bigtrain.models import decoder
    from bigtrain.objectives import causal_lm
    from bigtrain.optim import adamw

    meter, data = Meter(device), batches(steps)
    config = schema.RunConfig(
        run=schema.Run(), seed=SEED, model={}, data={}, objective={}, optimizer={}, schedule={},
        engine=schema.Engine("local"), precision=schema.Precision("fp32"),
        trainer=schema.Trainer(global_batch_size=BATCH, micro_batch_size=BATCH, grad_clip=1.0),
        checkpoint=schema.Checkpoint(), evaluation=schema.Evaluation(), launcher=schema.Launcher("local"),
    )  # fmt: skip
    engine = build_engine(
        config,
        lambda: decoder(preset="gpt2_124m", **SHAPE),
        causal_lm(),
        lambda model: adamw(model, lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS),
        Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device(device)),
    )
    losses = []
    for ids in data:
        batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
        losses.append(engine.train_step([batch], batch["labels"].numel(), 1.0).loss)
        meter.tick()
    return meter.result([loss.item() for loss in losses])


def theirs(folder: str, steps: int, device: str) -> dict[str, Any]:
    """transformers' GPT-2 through its Trainer, as its documentation has it."""
    import accelerate  # noqa: F401 - part of the imports, not of the model
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

    meter, data = Meter(device), batches(steps)

    class Each(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.tick()

    # The Trainer shifts the labels itself: one token more goes in, so that as many targets come out.
    rows = [{"input_ids": row[:-1], "labels": row[1:]} for row in data.flatten(0, 1)]

    class Shifted(Trainer):
        """Labels that are shifted already, as bigtrain's batches are: only their name differs."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            inputs["shift_labels"] = inputs["labels"]
            return super().compute_loss(model, inputs, return_outputs, **kwargs)

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)  # type: ignore[arg-type]

    set_seed(0)
    model = GPT2LMHeadModel.from_pretrained(folder)
    arguments = TrainingArguments(
        output_dir=str(Path(folder) / "trainer"), per_device_train_batch_size=BATCH, max_steps=steps,
        learning_rate=LR, lr_scheduler_type="constant", weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=EPS, max_grad_norm=1.0, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
        use_cpu=device == "cpu", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Shifted(model=model, args=arguments, train_dataset=rows, callbacks=[Each()])  # type: ignore[arg-type]
    trainer.train()
    return meter.result([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


SIDES: dict[str, Callable[[str, int, str], dict[str, Any]]] = {"bigtrain": ours, "hf_trainer": theirs}


def measure(side: str, folder: str, steps: int, device: str) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder, "--steps", str(steps), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def environment(device: str) -> dict[str, Any]:
    """Hardware, versions and commit."""
    from importlib.metadata import version

    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("bigtrain", "torch", "transformers", "accelerate")},
        "commit": commit or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side")
    parser.add_argument("--steps", type=int, default=8, help="steps a process, the first not counted")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side](args.folder, args.steps, args.device)))
        return
    compare(args.rounds, args.steps, args.device, args.out)


def compare(rounds: int, steps: int, device: str | None, out: Path | None) -> None:
    """Measure both sides in turn, print the table and write the JSON."""
    import tempfile

    import torch

    from bigtrain.distributed import seed_all
    from bigtrain.models import decoder
    from bigtrain.models.hf import save_hugging_face

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        seed_all(SEED)  # as the engine does: the same weights on both sides
        model = decoder(preset="gpt2_124m", **SHAPE)
        parameters = sum(p.numel() for p in model.parameters())
        save_hugging_face(model, Path(folder, "model"))
        del model
        for _ in range(rounds):
            for side in SIDES:
                runs[side].append(measure(side, str(Path(folder, "model")), steps, device))
    medians = {
        side: {key: statistics.median(run[key] for run in found) for key in ROWS} for side, found in runs.items()
    }
    ratios = {key: medians["bigtrain"][key] / medians["hf_trainer"][key] for key in ROWS}
    pairs = zip(runs["bigtrain"][0]["losses"], runs["hf_trainer"][0]["losses"], strict=True)
    apart = max(abs(a - b) for a, b in pairs)
    print(f"{parameters / 1e6:.1f} M parameters, vocabulary {VOCABULARY}, batch {BATCH} x {LENGTH}, fp32, {device}")
    print(f"{'median of ' + str(rounds):>24} {'bigtrain':>12} {'HF Trainer':>12} {'ratio':>7}")
    for key, (name, unit, digits) in ROWS.items():
        a, b = medians["bigtrain"][key] / unit, medians["hf_trainer"][key] / unit
        print(f"{name:>24} {a:>12.{digits}f} {b:>12.{digits}f} {ratios[key]:>7.3f}")
    print(f"losses of the two differ by {apart:.1e} at most")
    if out is not None:
        report = {
            "suite": "lm_head_memory", "config": CONFIG | {"parameters": parameters, "steps": steps, "rounds": rounds},
            "environment": environment(device), "medians": medians, "ratios": ratios,
            "largest_loss_difference": apart, "runs": runs,
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
