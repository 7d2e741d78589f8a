"""Models of transformers for other tasks than the next token: their Auto class, behind bigtrain's model protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError, nearest

AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image_classification": "AutoModelForImageClassification",
}
"""Task -> the Auto class of transformers."""

WITH_CLASSES = ("sequence_classification", "token_classification", "image_classification")


class HuggingFaceTask(nn.Module):
    """A transformers model: a batch's tensors in, logits out."""

    def __init__(self, hf: Any, task: str) -> None:
        super().__init__()
        self.hf, self.task = hf, task
        self.config = hf.config

    def forward(self, **inputs: Tensor) -> Tensor:
        """`input_ids` (B, S), `attention_mask` and what else the data gives, or `images` (B, C, H, W) -> logits."""
        if "images" in inputs:
            inputs["pixel_values"] = inputs.pop("images")
        logits: Tensor = self.hf(**inputs).logits
        return logits

    def name_labels(self, names: Sequence[str]) -> None:
        """The classes' names, as they will stand in the export's config.json."""
        if self.task in WITH_CLASSES:
            self.config.id2label = dict(enumerate(names))
            self.config.label2id = {name: number for number, name in enumerate(names)}

    @property
    def classes(self) -> int | None:
        """Of the head; None where it has none."""
        return int(self.config.num_labels) if self.task in WITH_CLASSES else None

    def enable_activation_checkpointing(self, context_fn: Callable[[], Any] | None = None) -> None:
        """Compute each block again in backward, with the same random numbers."""
        contexts = {} if context_fn is None else {"context_fn": context_fn}
        # Newer releases warn of the old name.
        enable = getattr(self.hf, "activation_checkpointing_enable", self.hf.gradient_checkpointing_enable)
        enable({"use_reentrant": False, **contexts})


class HuggingFaceSeq2Seq(HuggingFaceTask):
    """An encoder and a decoder. The labels become what the decoder sees, one place later."""

    def forward(self, **inputs: Tensor) -> Tensor:
        """`input_ids`, `attention_mask` (B, S) and `labels` (B, T), -100 behind their end -> logits (B, T, V)."""
        decoder_ids = self.hf.prepare_decoder_input_ids_from_labels(labels=inputs.pop("labels"))
        logits: Tensor = self.hf(**inputs, decoder_input_ids=decoder_ids, use_cache=False).logits
        return logits

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, beams: int, end_id: int
    ) -> Tensor:
        """(B, T) int64: the likeliest sequences that beam search finds (1: greedy), ended and filled up by `end_id`."""
        found: Tensor = self.hf.generate(
            input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, num_beams=beams,
            do_sample=False, eos_token_id=end_id, pad_token_id=end_id,
        )  # fmt: skip
        return found[:, 1:]  # behind the token that a decoder starts with


def auto_class(task: str) -> Any:
    """The Auto class of a task; a `UserError` where there is no such task."""
    import transformers

    if task not in AUTO:
        raise UserError(f"model.task={task}: there is no such task.{nearest(task, AUTO)}")
    return getattr(transformers, AUTO[task])


def check_task(config: Any, task: str, what: str) -> None:
    """A `UserError` where transformers has no model of this kind for the task."""
    if type(config) not in auto_class(task)._model_mapping:
        kind = "causal language model" if task == "causal_lm" else f"model for {task.replace('_', ' ')}"
        raise UserError(f"{what} is a {config.model_type}, which is not a {kind}.")


SUFFIXES = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ForConditionalGeneration": "seq2seq",
    "ForImageClassification": "image_classification",
}


def task_of(config: Any) -> str:
    """The task of a folder's model, by the name of its architecture; causal_lm where it tells none of the others."""
    named = (getattr(config, "architectures", None) or [""])[0]
    return next((task for suffix, task in SUFFIXES.items() if named.endswith(suffix)), "causal_lm")
