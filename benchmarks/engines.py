"""Every engine and precision on this machine: losses, time a step, tokens a second and peak memory, from real runs.

    python benchmarks/engines.py --out benchmarks/results/engines.json                  # small, on a CPU: 2 ranks
    python benchmarks/engines.py --model gpt2_350m --steps 30 --nvme /local --out FILE     # on a GPU

Each set-up is a `bigtrain train` of the shipped text, in a process of its own, and its numbers are those of its own
metrics.jsonl: the median over the second half of the steps, when whatever is compiled or cached is there. The losses
stand beside the numbers, so that nobody is fast by training something else. What a machine cannot run is a row that
says why.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import parser, table, write

ENGINES = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme")
WORDS = [
    "recipe=smoke", "data.vocab_size=2048", "trainer.eval_every=null", "trainer.eval_batches=1", "trainer.log_every=1",
    "checkpoint.every=null", "evaluation.report=false", "optimizer.lr=3e-4",
]  # fmt: skip


def overrides(arguments: Any) -> list[str]:
    """The one configuration that all set-ups share."""
    return [
        *WORDS,
        f"model={arguments.model}",
        f"data.sequence_length={arguments.length}",
        f"trainer.max_steps={arguments.steps}",
        f"trainer.global_batch_size={arguments.batch}",
        f"trainer.micro_batch_size={arguments.micro}",
        f"launcher.processes={arguments.processes}",
    ]


def measure(words: list[str], run_dir: Path) -> dict[str, Any]:
    """One run's numbers, or why there are none."""
    command = [sys.executable, "-m", "bigtrain", "train", *words, f"run.dir={run_dir}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("bigtrain: ")] or done.stderr.splitlines()
        return {"refused" if done.returncode == 2 else "failed": said[0].removeprefix("bigtrain: ") if said else "?"}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    half = steps[len(steps) // 2 :]
    return {
        "losses": [line["loss"] for line in steps],
        "step_time_s": statistics.median(line["step_time_s"] for line in half),
        "tokens_per_s": statistics.median(line["tokens_per_s"] for line in half),
        "memory_peak_bytes": steps[-1]["memory_peak_bytes"],
        "mfu": half[-1]["mfu"],
    }


def main() -> None:
    """Run all set-ups, print the table, write the JSON."""
    options = parser(__doc__ or "")
    options.add_argument("--engines", default=",".join(ENGINES), help="some of them, with commas between")
    options.add_argument("--precisions", default="fp32,bf16,fp16")
    options.add_argument("--model", default="toy", help="a preset: toy, gpt2_124m, llama_1b")
    options.add_argument("--length", type=int, default=128, help="tokens a sample")
    options.add_argument("--batch", type=int, default=16, help="samples a step")
    options.add_argument("--micro", type=int, default=4, help="samples at once on a rank")
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--processes", type=int, default=2, help="ranks; one a GPU")
    options.add_argument("--nvme", help="a folder on a fast local disk, for zero3_nvme")
    arguments = options.parse_args()
    shared = overrides(arguments)
    results, rows = [], []
    with tempfile.TemporaryDirectory() as work:
        for precision in arguments.precisions.split(","):
            right: list[float] | None = None
            for engine in arguments.engines.split(","):
                words = [*shared, f"engine={engine}", f"precision={precision}"]
                words += [f"engine.nvme_path={arguments.nvme}"] if engine == "zero3_nvme" and arguments.nvme else []
                found = measure(words, Path(work) / f"{engine}-{precision}")
                results.append({"engine": engine, "precision": precision, **found})
                losses = found.get("losses")
                right = right or losses
                if losses is None or right is None:
                    rows.append((engine, precision, *[""] * 4, found.get("refused") or found.get("failed")))
                else:
                    apart = max(abs(a - b) for a, b in zip(losses, right, strict=True))
                    rows.append((engine, precision, f"{found['step_time_s'] * 1e3:.0f}", f"{found['tokens_per_s']:.0f}",
                                 f"{found['memory_peak_bytes'] / 2**20:.0f}", f"{apart:.1e}", ""))  # fmt: skip
                print(engine, precision, "done", file=sys.stderr, flush=True)
    header = ("engine", "precision", "ms a step", "tokens/s", "peak MiB a rank", "loss apart", "")
    print(table(header, rows))
    write(arguments.out, "engines", {"overrides": shared, **vars(arguments)}, results)


if __name__ == "__main__":
    main()
