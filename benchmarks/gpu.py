"""One big GPU: models of 124 M, 350 M and 1.2 B parameters in bf16, real text, all that a run does included.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Moby Dick through tokenizer, shards, order and loader; AdamW, clipping, metrics, a checkpoint at the end. `local` with
and without compile, compiled in fp8 too, and `zero1`. On a machine without a GPU only --small runs, which says nothing
about speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _grid import WORDS, train
from _suite import MIB, MS, Measured, Suite, in_turn, metric

MODELS = {
    "124 M, 32 x 1,024": ["model=gpt2_124m", "data.sequence_length=1024", "trainer.micro_batch_size=32"],
    "350 M, 16 x 1,024": ["model=gpt2_350m", "data.sequence_length=1024", "trainer.micro_batch_size=16"],
    "1.2 B, 8 x 2,048": ["model=llama_1b", "data.sequence_length=2048", "trainer.micro_batch_size=8"],
}
BATCH = {"124 M, 32 x 1,024": 32, "350 M, 16 x 1,024": 16, "1.2 B, 8 x 2,048": 8}
SMALL = ["model=toy", "model.width=32", "data.sequence_length=32", "trainer.micro_batch_size=2"]
ENGINES = {
    "local, compiled": ["engine=local", "trainer.compile=true"],
    "local, compiled, fp8": ["engine=local", "trainer.compile=true", "precision=fp8"],
    "local": ["engine=local"],
    "zero1": ["engine=zero1"],
}


def measure(rounds: int, small: bool, say: Callable[[str], None]) -> Measured:
    """See `Suite`."""
    import torch

    models = {"toy": [*SMALL, "trainer.global_batch_size=2", "trainer.max_steps=4", "precision=fp32"]} if small else {
        model: [*words, f"trainer.global_batch_size={BATCH[model]}", "trainer.max_steps=40", "precision=bf16"]
        for model, words in MODELS.items()
    }  # fmt: skip
    engines = {"local": ENGINES["local"]} if small else ENGINES
    measured = Measured({"shared": WORDS, "models": models, "engines": engines})
    if not small and not torch.cuda.is_available():
        measured.notes.append("this machine has no GPU: nothing was measured (bigtrain bench gpu --small tries it out)")
        return measured
    with tempfile.TemporaryDirectory() as folder:
        for model, words in models.items():
            runs = {engine: partial(train, [*words, *given], Path(folder)) for engine, given in engines.items()}
            measured.groups[model] = in_turn(
                runs, rounds, lambda text, model=model: say(f"{model}: {text}"), measured.notes
            )
    return measured


SUITE = Suite(
    about=(__doc__ or "").partition("\n")[0],
    metrics={
        "tokens/s": metric(("tokens/s", 1.0), "higher"),
        "MFU": metric(("%", 100.0), "higher"),
        "step": metric(MS),
        "peak memory": metric(MIB),
    },
    pictured=("tokens/s", "MFU"),
    measure=measure,
)

if __name__ == "__main__":
    SUITE.main()
