"""`bigtrain generate PATH --prompt TEXT`: text from a trained model, one token after the other."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.config.schema import RunConfig
from bigtrain.errors import EXIT_DONE, RunError, UserError
from bigtrain.terminal import CommandLine, progress_bar
from bigtrain.trained import Trained, end_tokens, load_trained, read_marker

if TYPE_CHECKING:
    from torch import Generator, Tensor

SUMMARY = """\
Text from a trained model.

  bigtrain generate runs/quickstart/20250101-120000 --prompt "The whale"
  bigtrain generate runs/quickstart/20250101-120000/export --prompt "Call me" --temperature 0
  bigtrain generate RUN --chat --prompt "Who are you?"
  cat prompt.txt | bigtrain generate RUN --prompt - --samples 3 --seed 7

Overrides are laid over the run's own configuration; model._target_=my.Model says that a model of yours may be used."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_new_tokens: the end, where no end-of-text token comes first.
        temperature: divides the logits; 0: always the likeliest token.
        top_k: only so many of the likeliest; 0: all.
        top_p: only the likeliest whose probabilities together reach this (arXiv:1904.09751); 1: all.

    Raises:
        UserError: a value out of its range.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {self.max_new_tokens}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 (always the likeliest token) or more, not {self.temperature}.")
        if self.top_k < 0:
            raise UserError(f"top-k must be at least 1, or 0 for all tokens, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p must be above 0 and at most 1 (all tokens), not {self.top_p}.")


def generate(
    path: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    config: RunConfig | None = None,
) -> str:
    """The prompt and what the model at `path` makes of it; see `Sampling` and `load_trained`.

    The same seed gives the same text on one kind of device.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p)
    return complete(load_trained(path, config=config), prompt, sampling, seed)


def complete(trained: Trained, prompt: str, sampling: Sampling, seed: int = 0, chat: bool = False) -> str:
    """Prompt and continuation as one text, without special tokens; the answer alone of a chat, and of a model that
    makes a text from a text.

    Raises:
        UserError: the model has no tokenizer; the seed is out of range.
        RunError: the model's logits are not numbers.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2^63 - 1, not {seed}.")
    task = getattr(trained.model, "task", "causal_lm")
    if task not in ("causal_lm", "seq2seq"):
        raise UserError(
            f"{trained.path} is a model for {task.replace('_', ' ')}, and writes no text; `bigtrain evaluate` "
            "measures it."
        )
    tokenizer = trained.need_tokenizer()
    if task == "seq2seq":
        return answer(trained, prompt, sampling.max_new_tokens)
    # bigtrain trains on text without special tokens but the end of text; other models are asked as they were trained.
    foreign = trained.kind == "hugging_face" and read_marker(trained.path) is None
    told = as_chat(trained, prompt) if chat else prompt
    ids: list[int] = tokenizer(told, add_special_tokens=foreign and not chat)["input_ids"]
    begins = len(ids) if chat else 0
    if not ids:  # a text begins where another has ended
        ids = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
    with progress_bar() as bar:
        task = bar.add_task("tokens", total=sampling.max_new_tokens)
        for token in continuation(trained, ids, sampling, seed):
            ids.append(token)
            bar.advance(task)
    text: str = tokenizer.decode(ids[begins:], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip() if chat else text


def answer(trained: Trained, prompt: str, max_new_tokens: int, beams: int = 4) -> str:
    """What a model that makes a text from a text makes of the prompt: the likeliest that beam search finds."""
    import torch

    tokenizer = trained.need_tokenizer()
    prefix = str(trained.config.data.get("prefix", "")) if trained.config else ""
    ids = [*tokenizer(prefix + prompt, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    given = torch.tensor([ids], device=trained.device)
    generate: Any = trained.model.generate
    found = generate(
        input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=max_new_tokens, beams=beams,
        end_id=tokenizer.eos_token_id,
    )  # fmt: skip
    text: str = tokenizer.decode(found[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


def as_chat(trained: Trained, prompt: str) -> str:
    """The prompt as a user's message in the tokenizer's chat template, up to where the assistant begins.

    Raises:
        UserError: the tokenizer has none.
    """
    tokenizer = trained.need_tokenizer()
    if not tokenizer.chat_template:
        raise UserError("--chat needs a tokenizer with a chat template, and this one has none.")
    made: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return made


def continuation(trained: Trained, ids: Sequence[int], sampling: Sampling, seed: int) -> Iterator[int]:
    """The tokens that follow `ids`, up to and without an end-of-text token.

    Every token is computed from the last `Trained.window` tokens anew: no cache, so any model will do.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)  # on the CPU: one stream for every device
    ends, held = end_tokens(trained), list(ids)
    for _ in range(sampling.max_new_tokens):
        seen = held[-trained.window :] if trained.window else held
        with torch.no_grad():
            logits = trained.model(torch.tensor([seen], device=trained.device))[0, -1]
        token = choose(logits.float().cpu(), sampling, generator)
        if token in ends:
            return
        held.append(token)
        yield token


def choose(logits: Tensor, sampling: Sampling, generator: Generator) -> int:
    """One token from its logits (V,), in fp32 on the CPU."""
    import torch

    if not torch.isfinite(logits.max()):
        raise RunError("the model's logits are not numbers: its weights are not, or they overflowed in training.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        least = scaled.topk(sampling.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if sampling.top_p < 1:
        chances, order = scaled.softmax(0).sort(descending=True, stable=True)
        before = chances.cumsum(0) - chances  # the first stays, whatever its chance
        scaled = scaled.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return int(torch.multinomial(scaled.softmax(0), 1, generator=generator))


def main(argv: Sequence[str]) -> int:
    """The command."""
    line = CommandLine("generate", SUMMARY)
    line.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins; - reads standard input")
    line.add_argument("--chat", action="store_true", help="the prompt is a user's message, and its answer is printed")
    line.add_argument("--max-new-tokens", type=int, default=100, metavar="N", help="default 100")
    line.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0: the likeliest; default 0.8")
    line.add_argument("--top-k", type=int, default=50, metavar="K", help="of the K likeliest; 0: all; default 50")
    line.add_argument("--top-p", type=float, default=1.0, metavar="P", help="the likeliest up to P; default 1: all")
    line.add_argument("--seed", type=int, default=0, metavar="S", help="default 0; sample i has seed S + i")
    line.add_argument("--samples", type=int, default=1, metavar="N", help="so many texts; default 1")
    options, path, overrides = line.read(argv)
    if options.samples < 1:
        raise UserError(f"samples must be at least 1, not {options.samples}.")
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_k, options.top_p)
    prompt = _standard_input() if options.prompt == "-" else options.prompt
    trained = load_trained(path, overrides=overrides, device=options.device)
    for index in range(options.samples):
        if index:
            print("---")
        print(complete(trained, prompt, sampling, options.seed + index, chat=options.chat), flush=True)
    return EXIT_DONE


def _standard_input() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on standard input is not UTF-8: {error}") from error
