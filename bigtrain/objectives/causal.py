"""The causal language-modelling objective."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.objectives.losses import IGNORE, cross_entropy


class CausalLM:
    """Batches have `input_ids` and `labels` (B, S); the labels are shifted already, -100 where there is no target.

    Where there are `document_ids` (B, S) too, the model gets them and keeps the documents of a sample apart.
    """

    def count(self, batch: Mapping[str, Tensor]) -> int:
        """Targets in a batch on the CPU."""
        return int((batch["labels"] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum over the targets, an fp32 scalar: of the model's own `loss_sum` where it has one, else of its logits.

        Raises:
            UserError: the batch has document ids, and the model cannot take them.
        """
        own = getattr(model, "loss_sum", None)
        documents = {"document_ids": batch["document_ids"]} if "document_ids" in batch else {}
        if documents:
            _needs_documents(model, own or model.forward)
        if own is not None:
            loss: Tensor = own(batch["input_ids"], batch["labels"], **documents)
            return loss
        logits: Tensor = model(batch["input_ids"], **documents)
        summed: Tensor = cross_entropy(logits.flatten(0, -2), batch["labels"].flatten())
        return summed

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Perplexity from the loss of a target, in nats."""
        return {"perplexity": math.exp(mean_loss) if mean_loss < 700 else math.inf}


def _needs_documents(model: nn.Module, function: Callable[..., Any]) -> None:
    if "document_ids" not in inspect.signature(function).parameters:
        raise UserError(
            f"data.document_masks=true, but {type(model).__name__}.{function.__name__} takes no document_ids, so the "
            "documents of a sample would see each other: take model=decoder or model=hugging_face, data.packing=none, "
            "or data.document_masks=false."
        )
