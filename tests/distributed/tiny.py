"""A tiny language model, its data and its configuration, for engines to be compared on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.config.schema import (
    Checkpoint,
    Engine,
    Evaluation,
    Launcher,
    Precision,
    Run,
    RunConfig,
    Trainer,
)

VOCAB, HIDDEN, LENGTH, GLOBAL_BATCH = 61, 15, 8, 24  # odd sizes: partitions need padding; 1 to 4 ranks divide it


class Tiny(nn.Module):
    """Embedding, mixing over the past, two linear layers, norm, dropout, head; a frozen parameter and two buffers."""

    def __init__(self, dropout: float = 0.0, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, hidden)
        self.up = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(2 * hidden, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, VOCAB, bias=False)
        self.frozen = nn.Parameter(torch.ones(hidden), requires_grad=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", torch.tensor([1.0, 1 / 3]))
        self.register_buffer("positions", torch.arange(1, LENGTH + 1) / 7, persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x = x + (x.cumsum(dim=1) / (self.positions[:, None] * 7) * self.scale[1]).to(x.dtype)
        x = x + self.down(self.dropout(torch.relu(self.up(x))))
        return self.head(self.dropout(self.norm(x * self.frozen)))


def gpt2() -> nn.Module:
    """Hugging Face's GPT-2 from a configuration: its head is tied to its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=LENGTH,
        n_embd=12,
        n_layer=1,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return GPT2LMHeadModel(config)


class NextToken:
    """The objective: sum of cross-entropy over the targets."""

    def count(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"] != -100).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["input_ids"])
        logits = getattr(logits, "logits", logits)
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
        )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        return {}


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    """Decay on matrices only, so that there are two groups."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


OFFLOADED: dict[str, tuple[str, dict[str, Any]]] = {
    "zero2_offload": ("zero2", {"offload_optimizer": "cpu"}),
    "zero3_offload": ("zero3", {"offload_optimizer": "cpu", "offload_parameters": "cpu"}),
}
"""conf/engine's names for a stage with settings."""


def config(engine: str, world_size: int, accumulation: int = 1, **changes: Any) -> RunConfig:
    """A run of `engine` with the global batch cut into `accumulation` micro-batches a rank."""
    precision, fp8 = changes.pop("precision", "fp32"), changes.pop("fp8", None)
    engine, offload = OFFLOADED.get(engine, (engine, {}))
    of_engine = offload | {key: changes.pop(key) for key in ("sharded_init", "extra", "bucket_size") if key in changes}
    trainer = {"grad_clip": 0.2, "max_steps": 20, **changes}
    return RunConfig(
        run=Run(),
        seed=7,
        model={},
        data={},
        objective={},
        optimizer={},
        schedule={},
        engine=Engine(name=engine, **{"bucket_size": 1000, **of_engine}),  # type: ignore[arg-type]
        precision=Precision(name=precision, fp8=fp8),
        trainer=Trainer(
            global_batch_size=GLOBAL_BATCH, micro_batch_size=GLOBAL_BATCH // world_size // accumulation, **trainer
        ),
        checkpoint=Checkpoint(),
        evaluation=Evaluation(),
        launcher=Launcher(name="local"),
    )


def batch_of(step: int) -> dict[str, Tensor]:
    """The global batch of a step: ragged, from whole samples down to one with no target at all."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(VOCAB, (GLOBAL_BATCH, LENGTH + 1), generator=generator)
    ids[:, 1::2] = (ids[:, :-1:2] * 3 + 1) % VOCAB  # something to learn
    inputs, labels = ids[:, :-1], ids[:, 1:].clone()
    lengths = torch.randint(1, LENGTH + 1, (GLOBAL_BATCH,), generator=generator)
    lengths[step % GLOBAL_BATCH] = 0
    labels[torch.arange(LENGTH) >= lengths[:, None]] = -100
    return {"input_ids": inputs, "labels": labels}


def factor(step: int) -> float:
    """Of the learning rate."""
    return 1.0 - step / 40


def micro_batches(step: int, rank: int, world_size: int, accumulation: int) -> list[dict[str, Tensor]]:
    """This rank's part of the global batch, in micro-batches."""
    whole = batch_of(step)
    size = GLOBAL_BATCH // world_size // accumulation
    starts = [(micro * world_size + rank) * size for micro in range(accumulation)]
    return [{key: value[start : start + size] for key, value in whole.items()} for start in starts]
