"""What `bigtrain plan` says of throughput against published rows of training throughput.

    python benchmarks/plan_pace.py [--out FILE.json]

`published.json` holds the tables of llm-foundry, torchtitan, FlashAttention, llm.c, nanoGPT and TinyLlama, each row
with its source, the commit and its line verbatim. One constant was read off one part of them (`CALIBRATED`): the
products of a step reach 0.87 of what one large product does. Peaks and bandwidths are data sheets', single products and
attention are published benchmarks of kernels (`conf/hardware/`). All other rows are predictions: nothing was fitted to
them.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from _common import ROOT, parser, table, write

from bigtrain.config.schema import Hardware
from bigtrain.models.shapes import resolve
from bigtrain.plan.memory import Setup
from bigtrain.plan.pace import pace
from bigtrain.plan.plan import peak_of

ROWS = Path(__file__).parent / "published.json"
CALIBRATED = ("mosaicml/llm-foundry", "A100 40GB")
NODES = {"A100 40GB": "a100_40gb", "A100 80GB": "a100", "H100 80GB": "h100"}
"""Those of other power and memory than the ones in conf/hardware are not predicted: the H100 of 96 GB and 500 W."""
FLASH_1 = 0.5
"""What the kernels of 2022, FlashAttention and its Triton form, reach of what FlashAttention-2 does: on the A100 77 to
97 beside 140 to 171 TFLOP/s, on the H100 136 to 156 beside 232 to 284 (its own figures; causal, heads of 64)."""


def predicted(row: dict[str, Any], shape: dict[str, Any]) -> float:
    """Tokens a second and GPU."""
    settings = yaml.safe_load((ROOT / "conf" / "hardware" / f"{NODES[row['device']]}.yaml").read_text())
    node = Hardware(**settings | {"gpus": min(row["gpus"], row["gpus_per_node"])})
    if row["attention"] == "flash1":
        node = replace(node, attention=node.attention * FLASH_1)
    ranks = row["gpus"] // row["tensor_parallel"]
    setup = Setup(
        engine=row["engine"],
        ranks=ranks,
        micro_batch_size=row["micro_batch_size"],
        sequence_length=row["sequence_length"],
        accumulation=max(1, row["global_batch_size"] // (row["micro_batch_size"] * ranks)),
        precision="bf16",
        activation_checkpointing=row["activation_checkpointing"],
        tensor_parallel=row["tensor_parallel"],
    )
    model = resolve(None, shape | {"sequence_length": row["sequence_length"]})
    nodes = -(-row["gpus"] // row["gpus_per_node"])
    found = pace(model, setup, node, peak_of(node, "bf16"), nodes, compiled=row["compile"])
    return found.tokens_per_s / row["gpus"]


def compared() -> list[dict[str, Any]]:
    """Every row of a known device with `predicted` and `error`, predicted / published - 1.

    torchtitan's selective checkpointing is another one than bigtrain's, which computes no product again: left out.
    """
    content = json.loads(ROWS.read_text(encoding="utf-8"))
    found = []
    for row in content["rows"]:
        if row["device"] in NODES and row["activation_checkpointing"] != "selective":
            told = predicted(row, content["models"][row["model"]])
            found.append(row | {"predicted": told, "error": told / row["tokens_per_s_per_gpu"] - 1})
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the errors, without their sign."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "rows": len(rows),
        "within_15_percent": sum(error <= 0.15 for error in errors),
        "median": statistics.median(errors),
        "p90": errors[round(0.9 * (len(errors) - 1))],
    }


def group(row: dict[str, Any]) -> tuple[str, str]:
    """Whose table it is of, and the device."""
    return row["source"].split()[0], row["device"]


def main() -> None:
    given = parser(__doc__ or "").parse_args()
    rows = compared()
    lines = []
    for key in dict.fromkeys(map(group, rows)):
        found = summary([row for row in rows if group(row) == key])
        kind = "calibrated on" if key == CALIBRATED else "predicted"
        errors = [f"{found[name]:.1%}" for name in ("median", "p90")]
        lines.append([*key, kind, found["rows"], found["within_15_percent"], *errors])
    print(table(["tables of", "device", "", "rows", "within 15 %", "median error", "p90"], lines))
    told = [row for row in rows if group(row) != CALIBRATED]
    print(f"predicted rows: {summary(told)}")
    kept = ("source", "model", "device", "gpus", "sequence_length", "tokens_per_s_per_gpu", "predicted", "error")
    write(given.out, "plan_pace", {}, {"predicted": summary(told), "rows": [{k: row[k] for k in kept} for row in rows]})


if __name__ == "__main__":
    main()
