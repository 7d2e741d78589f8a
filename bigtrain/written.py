"""What a model that makes a text from a text writes over a held-out set, against what it should have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.errors import UserError
from bigtrain.terminal import progress_bar
from bigtrain.trained import end_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from bigtrain.trained import Trained

TASKS = ("translation", "summarisation")


Texts = tuple["Tensor", "Tensor", "Tensor"]
"""Tokens: what was given, what was written, what should have been."""


def measure(
    trained: Trained, samples: Any, task: str, *, batch_size: int, beams: int, longest: int, out: Path | None
) -> dict[str, float]:
    """BLEU and chrF of translations, ROUGE of summaries, by beam search; nothing is kept but sums.

    Args:
        trained: its model has `generate`.
        samples: of a model that makes a text from a text: `input_ids`, `attention_mask` and `labels`; of a causal one:
            `input_ids` and shifted `labels`, whose every run of targets is an answer to what stands before it.
        task: one of `TASKS`.
        batch_size: texts at once.
        beams: of the search; 1: greedy.
        longest: tokens of a text.
        out: a file for the texts, a JSON object a line: `source`, `written`, `reference`.

    Raises:
        UserError: the model writes no texts.
    """
    import numpy as np

    from bigtrain.text_metrics import Bleu, ChrF, Rouge, TextMetric

    if getattr(trained.model, "generate", None) is None:
        raise UserError(
            f"task={task} is for models that make a text from a text (objective=seq2seq), and for causal ones of "
            "transformers (model=hugging_face)."
        )
    metrics: list[TextMetric] = [Bleu(), ChrF()] if task == "translation" else [Rouge()]
    totals: list[Any] = [0.0] * len(metrics)
    tokenizer = trained.need_tokenizer()
    lines = out.open("w", encoding="utf-8") if out else None
    turn = end_of_turn(tokenizer)

    def text(ids: Any) -> str:
        kept = [token for token in ids.tolist() if token >= 0]
        said: str = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said.strip()

    def answer(ids: Any) -> str:
        return text(ids).partition(turn)[0].strip() if turn else text(ids)

    write = _made if getattr(trained.model, "task", None) == "seq2seq" else _answered
    for source, written, labels in write(trained, samples, batch_size, beams, longest):
        hypothesis, reference = answer(written), answer(labels)
        for at, metric in enumerate(metrics):
            totals[at] = totals[at] + metric.statistics(hypothesis, [reference])
        if lines is not None:
            row = {"source": text(source), "written": hypothesis, "reference": reference}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    if lines is not None:
        lines.close()
    found: dict[str, float] = {}
    for metric, total in zip(metrics, totals, strict=True):
        found |= metric.score(np.asarray(total, np.float64))
    return found


def end_of_turn(tokenizer: Any) -> str:
    """What the chat template writes behind an answer: words like any others to a tokenizer that was trained without."""
    if not tokenizer.chat_template:
        return ""
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "0!0"}]
    made: str = tokenizer.apply_chat_template(talk, tokenize=False)
    return made.rpartition("0!0")[2].strip()


def _made(trained: Trained, samples: Any, batch_size: int, beams: int, longest: int) -> Iterator[Texts]:
    """By a model that makes a text from a text."""
    from bigtrain.data.loader import eval_batches
    from bigtrain.data.sets import IGNORE

    generate: Any = trained.model.generate
    end = trained.need_tokenizer().eos_token_id
    with progress_bar() as bar:
        task = bar.add_task("writing", total=-(-len(samples) // batch_size))
        for batch in eval_batches(samples, micro_batch_size=batch_size):
            inputs = {name: batch[name].to(trained.device) for name in ("input_ids", "attention_mask")}
            written = generate(**inputs, max_new_tokens=longest, beams=beams, end_id=end)
            for source, ids, labels in zip(batch["input_ids"], written.cpu(), batch["labels"], strict=True):
                if (labels != IGNORE).any():  # else a copy that fills the batch up
                    yield source, ids, labels
            bar.advance(task)


def _answered(trained: Trained, samples: Any, batch_size: int, beams: int, longest: int) -> Iterator[Texts]:
    """By a causal model, of prompts of about one length at a time; told in the order of the samples."""
    import torch

    generate: Any = trained.model.generate
    asked = [pair for number in range(len(samples)) for pair in answers(samples[number])]
    if not asked or len(asked[0][0]) < 2:
        raise UserError("what should it answer? The data have no prompts with answers: take data=conversations.")
    order = sorted(range(len(asked)), key=lambda number: len(asked[number][0]))
    found: dict[int, Tensor] = {}
    ends = sorted(end_tokens(trained))
    with progress_bar() as bar:
        task = bar.add_task("writing", total=len(asked))
        for start in range(0, len(asked), batch_size):
            part = order[start : start + batch_size]
            prompts = [asked[number][0] for number in part]
            size = len(prompts[-1])
            ids = torch.full((len(part), size), ends[0])
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, size - len(prompt) :], mask[row, size - len(prompt) :] = prompt, 1
            inputs = {"input_ids": ids.to(trained.device), "attention_mask": mask.to(trained.device)}
            written = generate(**inputs, max_new_tokens=longest, beams=beams, end_ids=ends).cpu()
            found |= zip(part, written, strict=True)
            bar.advance(task, len(part))
    for number, (prompt, answer) in enumerate(asked):
        yield prompt, found[number], answer


def answers(sample: Mapping[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """(what stands before it in its document, its tokens) of every run of targets of a sample.

    Args:
        sample: `input_ids` and `labels` (S,), the latter shifted and -100 where there is none; where several documents
            share it, `document_ids` (S,).
    """
    import torch

    from bigtrain.data.sets import IGNORE

    ids, labels = (torch.as_tensor(sample[name]) for name in ("input_ids", "labels"))
    documents = torch.as_tensor(sample.get("document_ids", torch.zeros_like(ids)))
    found, begin, first = [], 0, None
    for at in range(len(ids)):
        if at and documents[at] != documents[at - 1]:
            begin = at
        if labels[at] == IGNORE:
            continue
        first = at if first is None else first
        last = at + 1 == len(ids) or labels[at + 1] == IGNORE or documents[at + 1] != documents[at]
        if last:
            found.append((ids[begin : first + 1], labels[first : at + 1]))
            first = None
    return found


def bytes_of_tokens(tokenizer: Any, tokens: int) -> list[int]:
    """How many bytes of text each token stands for; 0 for special ones.

    In byte-level vocabularies a character of a token's name is a byte; SentencePiece writes a space as ▁ and a lone
    byte as <0x0A>.
    """
    names, special = tokenizer.convert_ids_to_tokens(list(range(tokens))), set(tokenizer.all_special_ids)
    by_bytes = '"ByteLevel"' in tokenizer.backend_tokenizer.to_str()
    found = []
    for number, name in enumerate(names):
        if name is None or number in special:
            found.append(0)
        elif by_bytes:
            found.append(len(name))
        elif name.startswith("<0x") and name.endswith(">"):
            found.append(1)
        else:
            found.append(len(name.removeprefix("##").replace("▁", " ").encode()))
    return found
