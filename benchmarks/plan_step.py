"""What `bigtrain plan` says of the time of a step against what real trainings take, on this machine.

    python benchmarks/plan_step.py [--out FILE.json] [--ranks 1,2] [--width 256] [--samples 4] [--steps 6]

The families and engines of `plan_memory.py`, fp32 on a CPU and bf16 on GPUs, with and without activation checkpointing,
in real processes. What the machine reaches is measured where the plan is made (`hardware=cpu`), or is a data sheet's
(`--hardware h200`).
"""

from __future__ import annotations

import os
from typing import Any

from _common import parser, table, write
from _grid import merged
from plan_memory import cases, on_ranks, summary

from bigtrain.plan.show import PARTS


def planned(words: list[str], ranks: int) -> dict[str, float]:
    """Seconds of the parts of a step, by the plan."""
    from bigtrain.config.compose import compose
    from bigtrain.plan.plan import plan
    from bigtrain.plan.subject import Cluster

    pace = plan(compose(words, ranks).config, where=Cluster(1, ranks)).pace
    assert pace is not None
    return {part: getattr(pace, part) for part in PARTS}


def main() -> None:
    import torch

    arguments = parser(__doc__ or "")
    arguments.add_argument("--ranks", default="1,2", help="numbers of processes (GPUs, where there are any)")
    arguments.add_argument("--hardware", default="cpu", help="as of `bigtrain plan`")
    arguments.add_argument("--width", type=int, default=256, help="of the models")
    arguments.add_argument("--samples", type=int, default=4, help="of a micro-batch")
    arguments.add_argument("--length", type=int, default=256, help="tokens of a sample")
    arguments.add_argument("--steps", type=int, default=6, help="of which the later half counts")
    given = arguments.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = [f"data.sequence_length={given.length}", f"model.sequence_length={given.length}", "model.vocab_size=8192"]
    sizes += ["engine.bucket_size=10000000", f"hardware={given.hardware}"]
    rows: list[dict[str, Any]] = []
    for ranks in map(int, given.ranks.split(",")):
        grid = [
            (told, merged(words, sizes))
            for told, words in cases(given.width, given.samples, ranks, device)
            if told["precision"] == ("fp32" if device == "cpu" else "bf16") and (ranks > 1 or told["engine"] == "torch")
        ]
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        found = on_ranks([words for _, words in grid], ranks, "time", steps=given.steps, threads=threads)
        for (told, words), each in zip(grid, found, strict=True):
            parts = planned(words, ranks)
            took = max(rank["step_s"] for rank in each)
            rows.append(told | {"ranks": ranks, "measured": took, "planned": sum(parts.values()), "parts": parts})
    cells = [
        [f"{row['family']}, {row['engine']} x {row['ranks']}, checkpointing {row['checkpointing']}"]
        + [f"{1e3 * row[name]:.0f}" for name in ("measured", "planned")]
        + [f"{row['planned'] / row['measured'] - 1:+.0%}"]
        + [f"{1e3 * row['parts'][part]:.0f}" for part in PARTS]
        for row in rows
    ]
    print(table(["a step, ms", "measured", "planned", "error", *PARTS], cells))
    figures = summary(rows) | {
        "within_15_percent": sum(abs(row["planned"] / row["measured"] - 1) <= 0.15 for row in rows)
    }
    print(figures)
    write(given.out, "plan_step", vars(given) | {"device": device}, {"summary": figures, "rows": rows})


if __name__ == "__main__":
    main()
