"""How often `bigtrain data blame` ranks a poisoned document first, 1 in 200, by the kind of poison.

    python benchmarks/data_blame.py --out benchmarks/results/data_blame.json

A small model is trained on the first part of Moby Dick. From there each seed trains on 200 documents of the rest, one
of them poisoned (`_poison.py`), in a real run; then `blame` gets the run folder and nothing else.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from _common import parser, table, write
from _poison import KINDS, documents, poison
from _poison import write as write_corpus

from bigtrain.ledger.blame import Blame, blame
from bigtrain.ledger.opened import OpenedRun
from bigtrain.train import main as train

BASE_DOCUMENTS = 600
SETTINGS = [
    "recipe=smoke", "engine=local", "trainer.device=cpu", "trainer.eval_every=null", "evaluation.report=false",
    "trainer.global_batch_size=8", "trainer.micro_batch_size=8", "data.document_separator=null", "data.held_out=0",
    "data.sequence_length=128",
]  # fmt: skip
BASE = [
    "model.layers=2", "model.width=96", "model.heads=4", "data.vocab_size=1024", "optimizer.lr=4e-3",
    "schedule.warmup_steps=30", "evaluation.export=true", "trainer.log_every=50",
]  # fmt: skip
SEED = [
    "trainer.max_steps=null", "trainer.epochs=1", "trainer.log_every=1", "optimizer.lr=1e-3",
    "schedule.warmup_steps=10", "checkpoint.every=25", "checkpoint.keep_last=10",
]  # fmt: skip


def quietly(words: Sequence[str]) -> None:
    """One run of `bigtrain train`, in this process."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = train(words)
    if code:
        raise SystemExit(f"bigtrain train {' '.join(words)}\n{said.getvalue()[-3000:]}")


def one(folder: Path, base: Path, texts: Sequence[str], kind: str, seed: int) -> tuple[int, Blame]:
    """(the rank of the poisoned document, 0 where it is no candidate; all that was found)."""
    bad = poison(folder / "corpus.jsonl", texts, kind, seed)
    quietly(
        [
            *SETTINGS, *SEED, f"data.path={folder}/corpus.jsonl", f"data.cache={folder}/prepared", f"seed={seed}",
            f"data.tokenizer={base}", f"model.path={base}", f"run.dir={folder}/run",
        ]
    )  # fmt: skip
    with redirect_stderr(io.StringIO()):
        found = blame(OpenedRun(folder / "run"), device="cpu")
    ranked = [suspect.offset for suspect in found.suspects]
    return ranked.index(bad) + 1 if bad in ranked else 0, found


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, default=100)
    options.add_argument("--base-steps", type=int, default=1000, help="steps of the model that all runs begin with")
    options.add_argument("--kind", choices=list(KINDS), help="this kind of poison only")
    given = options.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    ranks: dict[str, list[int]] = defaultdict(list)
    texts, began = documents(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "base.jsonl", texts[:BASE_DOCUMENTS])
        quietly(
            [
                *SETTINGS, *BASE, f"data.path={folder}/base.jsonl", f"data.cache={folder}/prepared",
                f"trainer.max_steps={given.base_steps}", f"run.dir={folder}/base",
            ]
        )  # fmt: skip
        base_s = time.perf_counter() - began
        print(f"base: {base_s:.0f} s", file=sys.stderr, flush=True)
        spiked = 0
        for seed in range(given.seeds):
            kind = given.kind or list(KINDS)[seed % len(KINDS)]
            with tempfile.TemporaryDirectory(dir=folder) as here:
                rank, found = one(Path(here), folder / "base" / "export", texts[BASE_DOCUMENTS:], kind, seed)
            ranks[kind].append(rank)
            spiked += bool(found.found)
            top = found.suspects[0]
            print(
                f"seed {seed:3d}  {kind:20}  rank {rank or '-':>3}  first: {top.strange:4.1f}  "
                f"{len(found.suspects)} candidates, {len(found.found)} spikes",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    hits = sum(rank == 1 for of in ranks.values() for rank in of)
    rows = [
        [kind, f"{sum(rank == 1 for rank in of)} of {len(of)}", ", ".join(str(r or "-") for r in sorted(of) if r != 1)]
        for kind, of in ranks.items()
    ]
    print(table(["poison", "ranked first", "other ranks"], [*rows, ["all", f"{hits} of {given.seeds}", ""]]))
    print(f"{time.perf_counter() - began:.0f} s, {base_s:.0f} s of them for the first model; {spiked} runs had a spike")
    write(
        given.out, "data_blame", {"settings": SETTINGS, "base": BASE, "seed": SEED, "base_steps": given.base_steps},
        {"hits": hits, "seeds": given.seeds, "ranks": ranks, "runs_with_spikes": spiked},
    )  # fmt: skip


if __name__ == "__main__":
    main()
