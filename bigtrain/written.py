"""What a model that makes a text from a text writes over a held-out set, against what it should have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.errors import UserError
from bigtrain.terminal import progress_bar

if TYPE_CHECKING:
    from bigtrain.trained import Trained

TASKS = ("translation", "summarisation")


def measure(
    trained: Trained, samples: Any, task: str, *, batch_size: int, beams: int, longest: int, out: Path | None
) -> dict[str, float]:
    """BLEU and chrF of translations, ROUGE of summaries, by beam search; nothing is kept but sums.

    Args:
        trained: its model has `generate`.
        samples: `input_ids`, `attention_mask` and `labels`.
        task: one of `TASKS`.
        batch_size: samples at once.
        beams: of the search; 1: greedy.
        longest: tokens of a text.
        out: a file for the texts, a JSON object a line: `source`, `written`, `reference`.

    Raises:
        UserError: the model writes no text from a text.
    """
    import numpy as np
    import torch

    from bigtrain.data.loader import eval_batches
    from bigtrain.data.sets import IGNORE
    from bigtrain.text_metrics import Bleu, ChrF, Rouge, TextMetric

    if getattr(trained.model, "generate", None) is None:
        raise UserError(f"task={task} is for models that make a text from a text (objective=seq2seq).")
    metrics: list[TextMetric] = [Bleu(), ChrF()] if task == "translation" else [Rouge()]
    totals: list[Any] = [0.0] * len(metrics)
    tokenizer = trained.need_tokenizer()
    lines = out.open("w", encoding="utf-8") if out else None

    def text(ids: Any) -> str:
        kept = [token for token in ids.tolist() if token >= 0]
        said: str = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return said.strip()

    with progress_bar() as bar, torch.no_grad():
        task_bar = bar.add_task("writing", total=-(-len(samples) // batch_size))
        for batch in eval_batches(samples, micro_batch_size=batch_size):
            inputs = {name: batch[name].to(trained.device) for name in ("input_ids", "attention_mask")}
            generate: Any = trained.model.generate
            written = generate(**inputs, max_new_tokens=longest, beams=beams, end_id=tokenizer.eos_token_id)
            for source, ids, labels in zip(batch["input_ids"], written.cpu(), batch["labels"], strict=True):
                if not (labels != IGNORE).any():  # a copy that fills the batch up
                    continue
                hypothesis, reference = text(ids), text(labels)
                for at, metric in enumerate(metrics):
                    totals[at] = totals[at] + metric.statistics(hypothesis, [reference])
                if lines is not None:
                    row = {"source": text(source), "written": hypothesis, "reference": reference}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            bar.advance(task_bar)
    if lines is not None:
        lines.close()
    found: dict[str, float] = {}
    for metric, total in zip(metrics, totals, strict=True):
        found |= metric.score(np.asarray(total, np.float64))
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
