"""The oracle: the same training as a raw PyTorch loop on whole batches. It shares no code with the engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from tests.distributed import tiny


def losses_and_norms(
    build_model: Callable[[], nn.Module],
    lr: float,
    steps: int,
    clip: float | None,
    bug: Literal["none", "averages of averages"] = "none",
) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each step. With the bug, each sample's mean loss is averaged over the samples."""
    from bigtrain.distributed import seed_all

    seed_all(7)
    model = build_model().train()
    optimizer = tiny.adamw(model, lr)
    losses, norms = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * tiny.factor(step)
        batch = tiny.batch_of(step)
        logits = model(batch["input_ids"])
        logits = getattr(logits, "logits", logits)
        each = nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"], ignore_index=-100, reduction="none")
        targets = (batch["labels"] != -100).sum(dim=1)
        loss = each.sum() / targets.sum() if bug == "none" else (each.sum(dim=1) / targets.clamp(min=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms
