"""What a classifier or a regression says of each held-out sample, for a look at single ones: a JSON object a line."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.terminal import progress_bar

if TYPE_CHECKING:
    from bigtrain.trained import Trained

KINDS = ("classification", "regression")


def write(
    trained: Trained,
    samples: Any,
    out: Path,
    *,
    names: list[str] | None,
    numbers: bool,
    batch_size: int,
    autocast: AbstractContextManager[Any],
) -> None:
    """One line a sample, in the order of the set: `text` (where there is a tokenizer), `label`, `predicted`, and of a
    classifier `probability`. Of tokens with a label each: lists.

    Args:
        trained: its model gives logits (B, C), (B, S, C) or of a regression (B, 1).
        samples: the held-out split.
        out: the file.
        names: of the classes.
        numbers: a regression.
        batch_size: samples at once.
        autocast: what the model computes in.
    """
    import torch

    from bigtrain.data.loader import eval_batches
    from bigtrain.data.sets import IGNORE
    from bigtrain.engines.base import to_device
    from bigtrain.objectives.labelled import logits_of

    def named(number: int) -> str | int:
        return names[number] if names else number

    def row(label: Any, logits: Any) -> dict[str, Any]:
        if numbers:
            return {"label": float(label), "predicted": float(logits.flatten()[0])}
        best = logits.softmax(-1).max(-1)
        if label.dim() == 0:
            told = {"label": named(int(label)), "predicted": named(int(best.indices))}
            return told | {"probability": round(float(best.values), 6)}
        there = label != IGNORE
        pairs = zip(label[there].tolist(), best.indices[there].tolist(), strict=True)
        labels, guessed = zip(*((named(a), named(b)) for a, b in pairs), strict=True)
        return {"label": labels, "predicted": guessed}

    def empty(label: Any) -> bool:
        return math.isnan(float(label)) if numbers else bool((label == IGNORE).all())

    with progress_bar() as bar, torch.no_grad(), autocast, out.open("w", encoding="utf-8") as lines:
        task = bar.add_task("predicting", total=-(-len(samples) // batch_size))
        for batch in eval_batches(samples, micro_batch_size=batch_size):
            logits = logits_of(trained.model, to_device(batch, trained.device)).float().cpu()
            for number, label in enumerate(batch["labels"]):
                if empty(label):  # a copy that fills the batch up
                    continue
                told = row(label, logits[number])
                if trained.tokenizer is not None and "input_ids" in batch:
                    told = {
                        "text": trained.tokenizer.decode(batch["input_ids"][number], skip_special_tokens=True)
                    } | told
                lines.write(json.dumps(told, ensure_ascii=False) + "\n")
            bar.advance(task)
