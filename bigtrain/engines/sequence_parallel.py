"""DeepSpeed Ulysses (arXiv:2309.14509): neighbouring ranks share a micro-batch, each with a part of every sequence.

Everything but attention looks at one token at a time, so each rank computes it for its own part. Around attention an
all-to-all trades the sequence for the heads: each rank gets whole sequences of its share of the heads, and gives back
its part of the sequence of all heads.

For ZeRO all ranks stay data-parallel ranks: a gradient is a sum over ranks, and whether they hold other samples or
other tokens makes no difference to it. So nothing else of DeepSpeed has to know of the cut, but its batch arithmetic
(`sequence_parallel_size`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.distributed import Ranks, run_on_first
from bigtrain.engines.base import Batch
from bigtrain.errors import UserError


class SequenceParallel:
    """The group of ranks that share sequences, and what each of them does with a batch and with attention."""

    def __init__(self, model: nn.Module, ranks: Ranks, size: int) -> None:
        """Put the exchange around the model's attention; every rank calls it.

        Raises:
            UserError: the model offers no way to do it, its heads cannot be divided, or its tokens see each other
                elsewhere too.
        """
        from deepspeed.sequence.layer import DistributedAttention

        if not hasattr(model, "enable_sequence_parallel"):
            raise UserError(
                f"engine.sequence_parallel={size}, but the attention of {type(model).__name__} cannot be reached: it "
                "has no method `enable_sequence_parallel(part, parts, exchange)`. Give it one, or take model=decoder."
            )
        self.part = ranks.rank % size
        groups = [dist.new_group(range(first, first + size)) for first in range(0, ranks.world_size, size)]
        self.group = groups[ranks.rank // size]
        self._attention = DistributedAttention(_core, self.group, scatter_idx=2, gather_idx=1)
        enable: Any = model.enable_sequence_parallel
        enable(self.part, self.size, self.exchange)
        run_on_first(lambda: _check_reached(model, size))  # it may be the only one that has the weights yet
        enable(self.part, self.size, self.exchange)

    @property
    def size(self) -> int:
        """Ranks that share a sequence."""
        return dist.get_world_size(self.group)

    def exchange(self, attend: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` on whole sequences: q (B, H, S/N, W), k and v (B, K, S/N, W) -> (B, S/N, H, W), with `attend` called
        on (B, H/N, S, W) and (B, K/N, S, W)."""
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        attended: Tensor = self._attention(q, k, v, 0, None, attend)
        return attended

    def cut(self, batch: Batch) -> Batch:
        """This rank's part of tokens and labels (B, S); document ids stay whole, as attention sees the whole.

        Raises:
            UserError: the sequence cannot be divided, or the batch holds something that is no sequence of tokens.
        """
        length = batch["input_ids"].shape[1]
        part, rest = divmod(length, self.size)
        if rest:
            raise UserError(f"engine.sequence_parallel={self.size} does not divide the sequence length of {length}.")
        strange = sorted(set(batch) - {"input_ids", "labels", "document_ids"})
        if strange:
            raise UserError(f"engine.sequence_parallel={self.size}: no way is known to cut '{strange[0]}' of a batch.")
        start = self.part * part
        return {
            key: tensor if key == "document_ids" else tensor[:, start : start + part] for key, tensor in batch.items()
        }


@torch.no_grad()
def _check_reached(model: Any, size: int) -> None:
    """With nothing in the place of attention no token may see another: found out, rather than believed.

    Raises:
        UserError: one does.
    """
    ids = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    model.enable_sequence_parallel(0, 1, lambda attend, q, k, v: torch.zeros_like(q).transpose(1, 2))
    logits = model(ids)
    model.train(training)
    if not torch.equal(logits[0, 1:], logits[1, 1:]):
        raise UserError(
            f"engine.sequence_parallel={size}: in {type(model).__name__} tokens see each other elsewhere than in the "
            "attention that it lets be exchanged. Take another model, or engine.sequence_parallel=1."
        )


def _core(q: Tensor, k: Tensor, v: Tensor, attend: Any) -> Tensor:
    attended: Tensor = attend(*(heads.transpose(1, 2) for heads in (q, k, v)))
    return attended
