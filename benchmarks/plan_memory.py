"""What `bigtrain plan` says of memory against what torch's allocator hands out, over a grid of real trainings.

    python benchmarks/plan_memory.py [--out FILE.json] [--ranks 1,2,4] [--width 64] [--samples 8]

Three families (GPT-2's, Llama's, Llama's with grouped keys) x torch alone and ZeRO 0 to 3 x activation checkpointing x
fp32 and bf16 x ranks, three steps each, in real processes under gloo; on GPUs the same under NCCL. Of each the most
bytes
that a rank holds at once, and the plan's. With --out a picture is drawn beside the JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import ROOT, parser, table, write

FAMILIES = {
    "GPT-2": "positions=learned norm=layer_norm activation=gelu bias=true tied=true heads=4 mlp_width={4}",
    "Llama": "heads=4 mlp_width={3} tied=false",
    "Llama, grouped": "heads=4 kv_heads=2 mlp_width={3} tied=false",
}
ENGINES = ("torch", "zero0", "zero1", "zero2", "zero3")
"""torch: `local`, and on several ranks `ddp`."""
LENGTH = 128  # tokens


def cases(width: int, samples: int, ranks: int, device: str) -> list[tuple[dict[str, str], list[str]]]:
    """Each with what it is called, and its overrides."""
    found = []
    grid = itertools.product(FAMILIES, ENGINES, ("none", "full"), ("fp32", "bf16"))
    for family, engine, checkpointing, precision in grid:
        name = engine if engine != "torch" else "local" if ranks == 1 else "ddp"
        shape = FAMILIES[family].replace("{4}", str(4 * width)).replace("{3}", str(3 * width))
        words = ["recipe=smoke", "trainer.max_steps=5", f"data.sequence_length={LENGTH}", "model.vocab_size=1024"]
        words += [f"model.{word}" for word in shape.split()]
        words += [f"model.width={width}", "model.layers=4", f"model.sequence_length={LENGTH}", f"engine={name}"]
        words += [f"precision={precision}", f"trainer.activation_checkpointing={checkpointing}"]
        words += [f"trainer.micro_batch_size={samples}", f"trainer.global_batch_size={samples * ranks}"]
        words += ["engine.bucket_size=100000", f"trainer.device={device}"]
        told = {"family": family, "engine": engine, "checkpointing": checkpointing, "precision": precision}
        found.append((told, words))
    return found


def measured(words: list[list[str]], ranks: int) -> list[int]:
    """Bytes of the rank that holds most, of each case."""
    return [max(rank["peak"] for rank in one) for one in on_ranks(words, ranks, "peak", steps=3, threads=1)]


def on_ranks(
    words: list[list[str]], ranks: int, wanted: str, *, steps: int, threads: int
) -> list[list[dict[str, Any]]]:
    """What each rank says of each case, which is trained for so many steps: see `_peak.py`."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "cases.json", Path(folder) / "out.json"
        given.write_text(json.dumps(words))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += [str(ROOT / "benchmarks" / "_peak.py"), str(given), str(out), str(steps), wanted]
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        if wanted == "peak":
            # oneDNN's bf16 products take workspaces from torch's allocator where a CPU has AVX-512 (up to 1 MB a
            # thread): a kernel's own, as on a GPU, and not the same on all machines.
            environment |= {"ONEDNN_MAX_CPU_ISA": "AVX2"}
        subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL, env=environment)
        found: list[list[dict[str, Any]]] = json.loads(out.read_text())
        return found


def planned(words: list[str], ranks: int) -> float:
    """The plan's bytes, of the same."""
    from bigtrain.config.compose import compose
    from bigtrain.plan.memory import memory
    from bigtrain.plan.subject import Cluster, setup_of, shape_of

    config = compose(words, ranks).config
    device = "cpu" if config.trainer.device == "cpu" else "cuda"
    return memory(shape_of(config), setup_of(config, Cluster(1, ranks), device)).total


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the errors: in parts of what was measured."""
    errors = [row["planned"] / row["measured"] - 1 for row in rows]
    sizes = sorted(abs(error) for error in errors)
    return {
        "configurations": len(rows),
        "median": statistics.median(sizes),
        "p95": sizes[min(len(sizes) - 1, round(0.95 * (len(sizes) - 1)))],
        "largest_under": -min(errors),
        "largest_over": max(errors),
    }


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Measured against planned, and the errors by engine and ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), constrained_layout=True)
    for engine in ENGINES:
        mine = [row for row in rows if row["engine"] == engine]
        left.scatter([r["measured"] / 2**20 for r in mine], [r["planned"] / 2**20 for r in mine], s=14, label=engine)
    top = max(max(row["measured"], row["planned"]) for row in rows) / 2**20 * 1.05
    left.plot([0, top], [0, top], color="grey", linewidth=0.8)
    left.set(xlabel="measured, MiB", ylabel="planned, MiB", title=f"{len(rows)} trainings")
    left.legend()
    groups = [(engine, ranks) for engine in ENGINES for ranks in sorted({row["ranks"] for row in rows})]
    errors = [
        [100 * (r["planned"] / r["measured"] - 1) for r in rows if (r["engine"], r["ranks"]) == group]
        for group in groups
    ]
    right.boxplot(errors, tick_labels=[f"{engine} x {ranks}" for engine, ranks in groups], whis=(0, 100))
    right.axhline(0, color="grey", linewidth=0.8)
    right.set(ylabel="planned over measured, %", title="error of the plan")
    right.tick_params(axis="x", labelsize=7, rotation=90)
    figure.savefig(file, dpi=110)


def main() -> None:
    import torch

    arguments = parser(__doc__ or "")
    arguments.add_argument("--ranks", default="1,2,4", help="numbers of processes (GPUs, where there are any)")
    arguments.add_argument("--width", type=int, default=64, help="of the models")
    arguments.add_argument("--samples", type=int, default=8, help="of a micro-batch")
    given = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for ranks in map(int, given.ranks.split(",")):
        grid = cases(given.width, given.samples, ranks, device)
        for (told, words), peak in zip(grid, measured([words for _, words in grid], ranks), strict=True):
            rows.append(told | {"ranks": ranks, "measured": peak, "planned": planned(words, ranks)})
    figures = summary(rows)
    for engine in ENGINES:
        print(f"{engine}: median {summary([row for row in rows if row['engine'] == engine])['median']:.2%}")
    print(table(list(figures), [[f"{value:.2%}" if isinstance(value, float) else value for value in figures.values()]]))
    write(given.out, "plan_memory", vars(given) | {"device": device}, {"summary": figures, "rows": rows})
    if given.out is not None:
        draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
