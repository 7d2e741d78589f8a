"""What all peers train: one model's weights, one optimizer, one set of tokens in one order.

The order is bigtrain's own (`bigtrain.data.order`): bigtrain shuffles the set itself, the others get it in that order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED, LR, BETAS, EPS, DECAY, CLIP = 0, 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Size:
    """A Llama with tied embeddings, and how it is trained."""

    vocabulary: int
    layers: int
    heads: int
    width: int
    mlp_width: int
    batch: int
    length: int
    steps: int

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    def hugging_face(self) -> Any:
        """The configuration in transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )


SIZES = {
    "30M": Size(50_304, 6, 6, 384, 1024, batch=8, length=256, steps=5),
    "smallest": Size(256, 1, 2, 16, 32, batch=2, length=16, steps=5),
}


class Tokens:
    """Samples of random tokens, `input_ids` and `labels` of (S,) each; labels are shifted already."""

    def __init__(self, size: Size) -> None:
        shape = (size.batch * size.steps, size.length + 1)
        self.ids = np.random.default_rng(SEED).integers(size.vocabulary, size=shape)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index, :-1], "labels": self.ids[index, 1:]}


class Data:
    """bigtrain's data component of them; nothing is held out."""

    eval = None

    def __init__(self, size: Size) -> None:
        self.vocab_size = size.vocabulary
        self.train = Tokens(size)


def data(*, size: str, sequence_length: int) -> Data:
    """The component."""
    return Data(SIZES[size])


def ordered(size: Size) -> Any:
    """The same tokens in the order in which bigtrain takes them: (steps, batch, S + 1) int64."""
    import torch

    from bigtrain.data.order import Order

    tokens = Tokens(size)
    order = Order(len(tokens), SEED)(np.arange(len(tokens)))
    return torch.from_numpy(tokens.ids[order]).view(size.steps, size.batch, -1)


def write_weights(size: Size, folder: Path) -> None:
    """A Hugging Face folder of random weights, which each peer loads in its own way."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(SEED)
    LlamaForCausalLM(size.hugging_face()).save_pretrained(folder)


def told(size: Size) -> dict[str, Any]:
    """All of it, for the JSON."""
    return asdict(size) | {
        "seed": SEED, "optimizer": "AdamW, fused where the peer lets it be", "lr": LR, "betas": BETAS, "eps": EPS,
        "weight_decay": DECAY, "grad_clip": CLIP, "precision": "fp32", "schedule": "constant",
    }  # fmt: skip
