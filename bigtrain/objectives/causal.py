"""The causal language-modelling objective."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from bigtrain.objectives.losses import IGNORE, cross_entropy


class CausalLM:
    """Batches have `input_ids` and `labels` (B, S); the labels are shifted already, -100 where there is no target."""

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Targets in a batch on the CPU."""
        return int((batch["labels"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the targets, an fp32 scalar: of the model's own `loss_sum` where it has one, else of its logits."""
        own = getattr(model, "loss_sum", None)
        if own is not None:
            loss: Tensor = own(batch["input_ids"], batch["labels"])
            return loss
        logits: Tensor = model(batch["input_ids"])
        summed: Tensor = cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())
        return summed

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Perplexity from the loss of a target, in nats."""
        return {"perplexity": math.exp(mean_loss) if mean_loss < 700 else math.inf}
