"""Any causal language model of transformers behind bigtrain's model protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bigtrain.errors import UserError
from bigtrain.models.adapters import add_adapters
from bigtrain.models.build import whole_modules
from bigtrain.models.lora import Lora
from bigtrain.models.masks import within_documents
from bigtrain.models.native import Exchange, Head, check_heads
from bigtrain.models.pretrained import from_config, pretrained
from bigtrain.models.tasks import HuggingFaceSeq2Seq, HuggingFaceTask
from bigtrain.telemetry.meters import matmul_parameters, training_flops_per_token

_STYLES: dict[str, dict[str, Any]] = {
    "colwise": {"partition_type": "column"},
    "rowwise": {"partition_type": "row"},
    "embedding_rowwise": {"partition_type": "skip"},
    "replicated_with_grad_allreduce": {"partition_type": "skip", "grad_allreduce": True},
}
"""The styles of transformers' plans for tensor parallelism, in AutoTP's words; embeddings stay whole."""


class HuggingFace(nn.Module):
    """A transformers model: token ids in, logits out. The objective computes the loss from the logits."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        self.config = hf.config
        self.sequence_length: int | None = None
        """What it is trained at, where that is known."""
        self.part: int | None = None
        """Which part of the sequence it is given; None: the whole."""
        self.keeps_apart = False
        """Whether a document is computed as if alone where its positions start from 0 again."""
        self._core: Callable[..., Any] | None = None
        """The attention that others now stand in front of."""
        self.teacher: HuggingFace | None = None
        """A frozen model beside it: a reference for preferences, a teacher for distillation."""

    def stand_beside(self, teacher: HuggingFace, path: str) -> None:
        """Take a frozen model along; a `UserError` where it has other tokens."""
        own, theirs = (each.hf.get_input_embeddings().weight.shape[0] for each in (self, teacher))
        if own != theirs:
            raise UserError(f"model.teacher={path} knows {theirs} tokens and the model {own}: they must be the same.")
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> HuggingFace:
        """As of any module, but the teacher stays as it is."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def flops_per_token(self) -> float | None:
        """FLOPs of forward and backward for one token at `sequence_length`, for MFU; None where it is not known, or
        where a part of the model is frozen."""
        text = self.config.get_text_config()
        heads, width = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
        if not (self.sequence_length and heads and width and hasattr(text, "num_hidden_layers")):
            return None
        if self.teacher is not None or not all(parameter.requires_grad for parameter in self.parameters()):
            return None
        looked_up = self.hf.get_input_embeddings().weight
        tied = looked_up is getattr(self.hf.get_output_embeddings(), "weight", None)
        return training_flops_per_token(
            matmul_parameters(self, [] if tied else [looked_up]),
            layers=text.num_hidden_layers,
            heads=heads,
            head_dim=getattr(text, "head_dim", None) or width // heads,
            sequence_length=self.sequence_length,
        )

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """input_ids (B, S) int64 -> logits (B, S, V).

        With document_ids (B, S) int64, the same number for neighbouring tokens of one document, each document is
        computed as if it were alone: transformers makes a block-diagonal mask of positions that start from 0 again.

        Raises:
            UserError: document_ids, and this model does not keep documents apart.
        """
        logits: Tensor = self.hf(**self._inputs(input_ids, document_ids)).logits
        return logits

    def _inputs(self, input_ids: Tensor, document_ids: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}  # with a cache there would be no mask
        if document_ids is not None:
            self._check_apart()
            inputs["position_ids"] = within_documents(document_ids)[0]
        elif self.part is not None:
            start, length = self.part * input_ids.shape[1], input_ids.shape[1]
            inputs["position_ids"] = torch.arange(start, start + length, device=input_ids.device).unsqueeze(0)
        return inputs

    def _check_apart(self) -> None:
        kind = self.config.get_text_config().model_type
        if self.part is not None:
            raise UserError(
                f"data.document_masks=true with engine.sequence_parallel: the attention of transformers' {kind} is "
                "exchanged without its masks. Take model=decoder, or one of the two."
            )
        if not self.keeps_apart:
            raise UserError(
                f"data.document_masks=true, but in transformers' {kind} with model.attention="
                f"{self.config._attn_implementation} packed documents may see each other: a trial of a few tokens "
                "did not keep them apart. Take another model (such as llama, qwen3 or gpt2) with model.attention=sdpa, "
                "data.packing=none, or data.document_masks=false."
            )

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, *, max_new_tokens: int, beams: int, end_ids: list[int]
    ) -> Tensor:
        """(B, T) int64: what follows prompts that are padded on the left, as beam search finds it (1: greedy), up to
        one of `end_ids`, and filled up by the first of them."""
        found: Tensor = self.hf.generate(
            input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, num_beams=beams,
            do_sample=False, eos_token_id=end_ids, pad_token_id=end_ids[0], early_stopping=beams > 1,
        )  # fmt: skip
        return found[:, input_ids.shape[1] :]

    def enable_sequence_parallel(self, part: int, parts: int, exchange: Exchange) -> None:
        """From now on `input_ids` are the part of index `part` of `parts` equal ones of a sequence.

        Raises:
            UserError: the heads cannot be divided by the parts, or the attention cannot be reached.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        text = self.config.get_text_config()
        kind = text.model_type
        heads = getattr(text, "num_attention_heads", None) or parts
        check_heads(heads, getattr(text, "num_key_value_heads", None) or heads, parts)
        windows = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
        if windows or (getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)):
            raise UserError(f"engine.sequence_parallel={parts}: a {kind} with sliding windows has masks of its own.")
        if self._core is None:
            if self.config._attn_implementation not in ALL_ATTENTION_FUNCTIONS.valid_keys():
                raise UserError(f"engine.sequence_parallel={parts} needs model.attention=sdpa (or flash_attention_2).")
            self._core = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        core = self._core

        def exchanged(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: None, **options: Any) -> Any:
            options.pop("position_ids", None)  # of this part: the core sees the whole sequence
            return exchange(lambda *heads: core(module, *heads, mask, **options)[0], q, k, v), None

        ALL_ATTENTION_FUNCTIONS.register("bigtrain_exchanged", exchanged)  # no mask goes with it: causal, on the whole
        self.hf.set_attn_implementation("bigtrain_exchanged")
        reached = self.hf.config._attn_implementation == "bigtrain_exchanged"
        if not reached or "position_ids" not in inspect.signature(self.hf.base_model.forward).parameters:
            raise UserError(
                f"engine.sequence_parallel={parts}: transformers' {kind} does not let its attention or its positions "
                "be replaced; take another model, or model=decoder."
            )
        self.part = part

    def tensor_parallel_plan(self, parts: int) -> tuple[list[dict[str, Any]], Any]:
        """How AutoTP is to cut the model into `parts`, by transformers' own plan, and the configuration that it reads.

        Raises:
            UserError: a model without a plan, or whose heads cannot be divided.
        """
        text = self.config.get_text_config()
        plan = {**(getattr(self.config, "base_model_tp_plan", None) or {})}
        other = sorted(set(plan.values()) - set(_STYLES))
        if not plan or other:
            fault = f"a plan that AutoTP does not know ({other[0]})" if other else "no plan for tensor parallelism"
            raise UserError(
                f"engine.tensor_parallel={parts}: transformers has {fault} for {text.model_type}. "
                "Take a model such as llama or qwen3, or model=decoder."
            )
        heads = text.num_attention_heads
        check_heads(heads, getattr(text, "num_key_value_heads", None) or heads, parts, "tensor_parallel")
        specs = []
        for name, style in plan.items():
            pattern = name.replace(".", r"\.").replace("*", r"\d+")
            specs.append({"patterns": [rf".*{pattern}\.weight$"], **_STYLES[style]})
        return specs, self.config

    def enable_activation_checkpointing(self, context_fn: Callable[[], Any] | None = None) -> None:
        """Compute each block again in backward, with the same random numbers.

        `context_fn` goes to `torch.utils.checkpoint.checkpoint`: what the block keeps besides.
        """
        contexts = {} if context_fn is None else {"context_fn": context_fn}
        # Newer releases warn of the old name.
        enable = getattr(self.hf, "activation_checkpointing_enable", self.hf.gradient_checkpointing_enable)
        enable({"use_reentrant": False, **contexts})


class HuggingFaceLinearHead(HuggingFace):
    """One whose logits are a plain linear head over the last hidden states, so that the loss needs no logits."""

    def __init__(self, hf: Any) -> None:
        super().__init__(hf)
        # The same parameter under the same name, in a module that can also give the loss.
        hf.set_output_embeddings(Head(hf.get_output_embeddings().weight))

    def loss_sum(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Sum of cross-entropy over the targets, an fp32 scalar; labels (B, S) are shifted already, -100 is none."""
        hidden = self.hf.base_model(**self._inputs(input_ids, document_ids)).last_hidden_state
        loss: Tensor = self.hf.get_output_embeddings()(hidden, labels)
        return loss


def build_hugging_face(
    path: str | None,
    config: dict[str, Any] | None,
    *,
    task: str,
    vocab_size: int | None,
    classes: int | None,
    sequence_length: int | None,
    attention: str,
    lora: Lora | None,
    teacher: str | None,
    allow_missing: bool,
) -> HuggingFace | HuggingFaceTask:
    """`bigtrain.models.hugging_face`."""
    if (path is None) == (config is None):
        given = "none is" if path is None else "both are"
        raise UserError(
            f"model=hugging_face needs model.path (pretrained) or model.config (random), and {given} given."
        )
    if teacher is not None and task != "causal_lm":
        raise UserError(f"model.teacher stands beside causal language models, and this is model.task={task}.")
    with whole_modules():
        fresh: list[str] = []
        if path is not None:
            hf, fresh = pretrained(path, task, attention, classes, allow_missing)
        else:
            hf = from_config(config or {}, task, vocab_size, classes, attention)
        if task != "image_classification":
            _check_fit(hf, path, vocab_size, sequence_length)
        model: HuggingFace | HuggingFaceTask
        if task == "causal_lm":
            model = HuggingFaceLinearHead(hf) if _linear_head(hf) else HuggingFace(hf)
            model.sequence_length, model.keeps_apart = sequence_length, _keeps_apart(hf)
        else:
            model = HuggingFaceSeq2Seq(hf, task) if task == "seq2seq" else HuggingFaceTask(hf, task)
        if lora is not None:
            add_adapters(hf, lora, fresh)
        if teacher is not None:
            other, _ = pretrained(teacher, task, attention, None, False)
            assert isinstance(model, HuggingFace)
            model.stand_beside(HuggingFace(other), teacher)
        return model


def _check_fit(hf: Any, path: str | None, vocab_size: int | None, sequence_length: int | None) -> None:
    rows = hf.get_input_embeddings().weight.shape[0]
    if vocab_size is not None and vocab_size > rows:
        raise UserError(
            f"The model {'in ' + path if path else 'of model.config'} knows {rows} tokens, and the tokenizer has "
            f"{vocab_size}; use the tokenizer that belongs to it."
        )
    longest = getattr(hf.config.get_text_config(), "max_position_embeddings", None)
    if sequence_length is not None and longest is not None and sequence_length > longest:
        raise UserError(f"The model takes {longest} tokens: sequence_length={sequence_length} is too long.")


@torch.no_grad()
def _linear_head(hf: Any) -> bool:
    """Whether logits = last hidden states x head weight, found out on a few tokens rather than from a list of names.

    Soft-capped, scaled or biased logits make it False. A `UserError` where a token sees the one after it. Without
    memory (`bigtrain plan`) there is nothing to find out on: it is what its head looks like.
    """
    if isinstance(hf.get_input_embeddings().weight, FakeTensor):
        return _unbiased(hf.get_output_embeddings())
    training = hf.training
    hf.eval()
    try:
        rows = hf.get_input_embeddings().weight.shape[0]
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=hf.device) % rows
        logits = hf(input_ids=ids, use_cache=False).logits
        scale = logits.abs().max().item()
        if rows > 5 and not torch.allclose(logits[0, :3], logits[1, :3], rtol=0, atol=1e-4 * scale):
            raise UserError(f"A {hf.config.model_type} of this configuration is not causal: tokens see what follows.")
        head = hf.get_output_embeddings()
        if not _unbiased(head):
            return False
        hidden = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.shape[-1] == head.in_features and torch.equal(logits, head(hidden))
    except (AttributeError, TypeError):  # no head of its own, or a base model that gives something else
        return False
    finally:
        hf.train(training)


def _unbiased(head: Any) -> bool:
    return isinstance(head, nn.Linear) and head._parameters.get("bias") is None


@torch.no_grad()
def _keeps_apart(hf: Any) -> bool:
    """Whether packed documents are computed as if each were alone, found out on a few tokens rather than from a list.

    It depends on the family, its configuration, the kind of attention and the version of transformers: what is
    recurrent leaks, and what has no `position_ids`. Only sdpa and eager attention are tried: flash_attention_2 needs a
    GPU (and looks at the positions of one sample only), flex_attention would be compiled for minutes.
    """
    if hf.config._attn_implementation not in ("sdpa", "eager"):
        return False
    training = hf.training
    hf.eval()
    try:
        documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]], device=hf.device)
        ids = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], device=hf.device)
        ids = ids % hf.get_input_embeddings().weight.shape[0]
        places = ((0, 0), (0, 3), (1, 1))  # of the documents of three tokens
        packed = hf(input_ids=ids, position_ids=within_documents(documents)[0], use_cache=False).logits
        alone = hf(input_ids=torch.stack([ids[row, at : at + 3] for row, at in places]), use_cache=False).logits
        apart = torch.stack([packed[row, at : at + 3] for row, at in places])
        return torch.allclose(apart, alone, rtol=0, atol=1e-5 * alone.abs().max().item())
    except Exception:  # of any kind, from any of its models: one that cannot try cannot keep them apart
        return False
    finally:
        hf.train(training)
