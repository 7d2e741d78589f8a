"""Conversations for supervised fine-tuning, and pairs of answers for preference optimisation."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bigtrain.data.examples import PAD, Arrays, Encoded, Examples, Read
from bigtrain.data.sets import IGNORE
from bigtrain.data.tables import column, texts
from bigtrain.errors import UserError

Message = dict[str, str]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""OpenAI's markup, as most open models have it."""

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "bot": "assistant",
         "system": "system", "tool": "tool"}  # fmt: skip


@dataclass(kw_only=True)
class Conversations(Examples):
    """Conversations through the tokenizer's chat template; targets are the assistant's tokens only."""

    sequence_length: int = 512
    """Tokens; longer conversations are cut."""
    conversations_column: str = "messages"
    """OpenAI's messages, ShareGPT's turns, or plain turns; or the two columns below."""
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    system: str | None = None
    """What the system says where a conversation does not begin with that."""
    chat_template: str | None = None
    """null: the tokenizer's own; chatml, or a file with a Jinja template."""
    packing: bool = True
    """Whole conversations share a sample, kept apart by masks."""

    kind: ClassVar[str] = "conversations"
    pads: ClassVar[Mapping[str, float]] = {"input_ids": PAD, "labels": IGNORE, "document_ids": IGNORE}

    @property
    def template(self) -> str | None:
        """The chat template that was given; None: the tokenizer's own."""
        return template_text(self.chat_template)

    def depends(self) -> Any:
        """See `Examples`."""
        return self.template

    def rows(self, table: Any) -> Read:
        """See `Examples`; a row's value is a list of messages. Copies of a conversation are one."""
        talks = self._talks(table)
        seen: dict[str, list[Message]] = {}
        for talk in talks:
            seen.setdefault("\0".join(f"{message['role']} {message['content']}" for message in talk), talk)
        values = list(seen.values())
        copies = len(talks) - len(values)
        notes = [f"{copies:,} of {len(talks):,} conversations are copies: left out"] if copies else None
        keys = [next((m["content"] for m in talk if m["role"] == "user"), "") for talk in values]
        return Read(values, keys, [None] * len(values), [_joined(talk) for talk in values], None, notes)

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """See `Examples`: labels are shifted; packed, samples are full of whole conversations, told apart."""
        give_template(tokenizer, self.chat_template)
        talks = [encode_talk(talk, tokenizer, self.sequence_length + 1) for talk in rows.values]
        bins = pack([len(ids) - 1 for ids, _ in talks], self.sequence_length) if self.packing else None
        encoded: Encoded = {name: [] for name in self.pads}
        for members in bins if bins is not None else [[number] for number in range(len(talks))]:
            ids = [token for number in members for token in talks[number][0][:-1]]
            labels = [label for number in members for label in talks[number][1][1:]]
            documents = [at for at, number in enumerate(members) for _ in talks[number][0][:-1]]
            for name, values in (("input_ids", ids), ("labels", labels), ("document_ids", documents)):
                encoded[name].append(values)
        return encoded

    def finish(self, batch: Arrays) -> Arrays:
        """See `Examples`: padding is a document of its own; without packing there is nothing to tell apart."""
        documents = batch.pop("document_ids")
        if self.packing:
            batch["document_ids"] = np.where(documents == IGNORE, documents.max(1, keepdims=True) + 1, documents)
        return batch

    def _talks(self, table: Any) -> list[list[Message]]:
        usual = (self.conversations_column, "messages", "conversations")
        name = next((name for name in usual if name in table.column_names), None)
        if name is None:
            if self.prompt_column not in table.column_names:
                raise UserError(
                    f"data: no column {self.conversations_column}, messages or conversations, and no "
                    f"{self.prompt_column} and {self.answer_column}; there are {', '.join(table.column_names)}."
                )
            prompts = texts(table, self.prompt_column, "prompt_column")
            answers = texts(table, self.answer_column, "answer_column")
            talks = [list(pair) for pair in zip(prompts, answers, strict=True)]
        else:
            talks = column(table, name, "conversations_column")
        return [messages(talk, row, self.system) for row, talk in enumerate(talks)]


@dataclass(kw_only=True)
class Preferences(Examples):
    """A prompt with a better and a worse answer."""

    sequence_length: int = 512
    """Tokens; longer conversations are cut."""
    prompt_column: str = "prompt"
    """Not needed where the answers are whole conversations."""
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    chat_template: str | None = None
    """null: the tokenizer's own; chatml, or a file with a Jinja template."""

    kind: ClassVar[str] = "preferences"
    pads: ClassVar[Mapping[str, float]] = {"chosen_ids": PAD, "chosen_labels": IGNORE, "rejected_ids": PAD,
                                           "rejected_labels": IGNORE}  # fmt: skip

    @property
    def template(self) -> str | None:
        """The chat template that was given; None: the tokenizer's own."""
        return template_text(self.chat_template)

    def depends(self) -> Any:
        """See `Examples`."""
        return self.template

    def rows(self, table: Any) -> Read:
        """See `Examples`; a row's value is (messages with the chosen answer, messages with the rejected one)."""
        chosen = column(table, self.chosen_column, "chosen_column")
        rejected = column(table, self.rejected_column, "rejected_column")
        plain = isinstance(chosen[0], str)
        prompts = column(table, self.prompt_column, "prompt_column") if plain else [""] * len(chosen)
        values = []
        for row, (prompt, *answers) in enumerate(zip(prompts, chosen, rejected, strict=True)):
            talks = [[prompt, answer] if isinstance(answer, str) else answer for answer in answers]
            values.append(tuple(messages(talk, row, None) for talk in talks))
        keys = [_joined(better[:-1]) for better, _ in values]
        return Read(values, keys, [None] * len(values), [_joined(better) for better, _ in values])

    def encode(self, rows: Read, tokenizer: Any) -> Encoded:
        """See `Examples`: only the last answer's tokens are targets."""
        give_template(tokenizer, self.chat_template)
        encoded: Encoded = {name: [] for name in self.pads}
        for both in rows.values:
            for side, talk in zip(("chosen", "rejected"), both, strict=True):
                ids, labels = encode_talk(talk, tokenizer, self.sequence_length + 1, last_only=True)
                encoded[f"{side}_ids"].append(ids[:-1])
                encoded[f"{side}_labels"].append(labels[1:])
        return encoded

    def finish(self, batch: Arrays) -> Arrays:
        """See `Examples`: `input_ids` and `labels` (B, 2, S)."""
        length = max(batch["chosen_ids"].shape[1], batch["rejected_ids"].shape[1])
        stacked = {}
        for name, of in (("input_ids", "ids"), ("labels", "labels")):
            sides = [batch[f"{side}_{of}"] for side in ("chosen", "rejected")]
            fill = IGNORE if of == "labels" else 0  # behind the last target, what a causal model reads is all one
            wide = [np.pad(side, ((0, 0), (0, length - side.shape[1])), constant_values=fill) for side in sides]
            stacked[name] = np.stack(wide, axis=1)
        return stacked


def messages(talk: Any, row: int, system: str | None) -> list[Message]:
    """A conversation as OpenAI's messages, from those, from ShareGPT's (`from`, `value`) or from plain turns.

    Raises:
        UserError: it is none of the three, nobody answers, or two of a kind speak in a row.
    """
    where = f"data: conversation {row + 1}"
    if not isinstance(talk, list) or not talk:
        raise UserError(f"{where} is no list of turns: {talk!r}.")
    found: list[Message] = []
    for turn, said in enumerate(talk):
        if isinstance(said, str):
            found.append({"role": "assistant" if turn % 2 else "user", "content": said})
            continue
        role, content = (said.get("role", said.get("from")), said.get("content", said.get("value")))
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"{where}, turn {turn + 1}: no known role and content (or from and value): {said!r}.")
        found.append({"role": ROLES[role], "content": content})
    speakers = [message["role"] for message in found if message["role"] != "tool"]
    if "assistant" not in speakers:
        raise UserError(f"{where} has no assistant's turn: there is nothing to learn from it.")
    for turn, (one, other) in enumerate(pairwise(speakers)):
        if one == other:
            raise UserError(f"{where}: turns {turn + 1} and {turn + 2} are both the {one}'s. Join them, or drop one.")
    has_system = found[0]["role"] == "system"
    return found if system is None or has_system else [{"role": "system", "content": system}, *found]


def give_template(tokenizer: Any, given: str | None) -> None:
    """Put the chat template in; a `UserError` where there is none."""
    if given is not None:
        tokenizer.chat_template = template_text(given)
    if not tokenizer.chat_template:
        raise UserError(
            "The tokenizer has no chat template: name one, as data.chat_template=chatml or data.chat_template=FILE."
        )


def template_text(given: str | None) -> str | None:
    """A named template's or a file's text."""
    if given is None:
        return None
    if given == "chatml":
        return CHATML
    file = Path(given).expanduser()
    if not file.is_file():
        raise UserError(f"data.chat_template={given}: there is no such file; chatml is the one that has a name.")
    return file.read_text(encoding="utf-8")


def encode_talk(
    talk: Sequence[Message], tokenizer: Any, longest: int, last_only: bool = False
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation, labels at their tokens' own places: the assistant's, and what ends their turn.

    Raises:
        UserError: the template does not take this conversation, or is none that only adds to what was said before.
    """

    def text(upto: int, prompt: bool) -> str:
        try:
            made: str = tokenizer.apply_chat_template(list(talk[:upto]), tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # whatever a template raises
            raise UserError(f"The chat template does not take the conversation {talk[0]!r} …: {error}") from error
        return made

    whole = text(len(talk), prompt=False)
    spans: list[tuple[int, int]] = []
    for turn, message in enumerate(talk):
        if message["role"] != "assistant" or (last_only and turn < len(talk) - 1):
            continue
        before, after = text(turn, prompt=True), text(turn + 1, prompt=False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise UserError(
                "The chat template changes earlier turns when later ones are added, so the assistant's tokens cannot "
                "be told: take another, as data.chat_template=chatml."
            )
        spans.append((len(before), len(after)))
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = found["input_ids"][:longest], []
    for token, (start, stop) in zip(ids, found["offset_mapping"], strict=False):
        labels.append(token if any(low <= start and stop <= high for low, high in spans) else IGNORE)
    return ids, labels


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which go together: best-fit decreasing, none cut. The numbers of a list are in order; a longer one is alone."""
    room: list[tuple[int, int]] = []  # (what is left, bin), sorted
    bins: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        need = lengths[number]
        at = bisect_left(room, (need, -1))
        if at == len(room):
            bins.append([number])
            left, where = size - need, len(bins) - 1
        else:
            left, where = room.pop(at)
            bins[where].append(number)
            left -= need
        if left > 0:
            insort(room, (left, where))
    return [sorted(members) for members in bins]


def _joined(talk: Sequence[Message]) -> str:
    return "\n".join(message["content"] for message in talk)
