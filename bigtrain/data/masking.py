"""Tokens to be guessed: single ones for BERT, spans for T5; chosen by (seed, epoch, sample) alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.order import EpochOrder, Integers, Order
from bigtrain.data.sets import IGNORE
from bigtrain.data.settings import Masking
from bigtrain.data.tokenizer import SENTINEL, load
from bigtrain.errors import UserError

Arrays = dict[str, NDArray[np.int64]]


class Masked:
    """The samples of a text set with tokens taken out.

    Of single tokens: `input_ids` (B, S) with masks in them and `labels` (B, S), -100 where nothing was chosen. Of
    spans: `input_ids` with a sentinel in the place of each, and `labels`, every sentinel with its span behind it. What
    is padding is not chosen, and has 0 in an `attention_mask`, which is there where padding is.
    """

    def __init__(self, inner: Any, masking: Masking, tokenizer: Path, seed: int) -> None:
        self.inner, self.masking, self._seed = inner, masking, seed
        self.end = getattr(inner, "end", None)
        read = load(tokenizer)
        self._special = np.array(read.all_special_ids, np.int64)
        self._tokens = max(read.get_vocab().values()) + 1
        self._end_id = int(read.eos_token_id)
        if masking.spans:
            self._sentinels = _sentinels(read)
        elif read.mask_token_id is None:
            raise UserError("data.masking: the tokenizer has no mask token; leave data.tokenizer out, or take BERT's.")
        else:
            self._mask = int(read.mask_token_id)
        self._starts = _word_starts(read, self._tokens) if masking.whole_words else None

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Arrays:
        """One sample."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | Integers) -> Arrays:
        """The samples of epoch · n + number, see `EpochOrder`."""
        epochs, numbers = np.divmod(np.asarray(indices, np.int64), len(self))
        plain = _take(self.inner, numbers)
        ids, padded = plain["input_ids"], plain["labels"] == IGNORE
        chances = [
            np.random.default_rng([self._seed, *of]) for of in zip(epochs.tolist(), numbers.tolist(), strict=True)
        ]
        if self.masking.spans:
            return self._spans(ids, padded, chances)
        inputs, labels = ids.copy(), np.full_like(ids, IGNORE)
        free = ~(padded | np.isin(ids, self._special))
        for row, chance in enumerate(chances):
            chosen = self._chosen(ids[row], free[row], chance)
            labels[row, chosen] = ids[row, chosen]
            fate = chance.random(len(chosen))
            inputs[row, chosen[fate < self.masking.masked]] = self._mask
            other = chosen[(fate >= self.masking.masked) & (fate < self.masking.masked + self.masking.random)]
            inputs[row, other] = chance.integers(0, self._tokens, len(other))
        batch = {"input_ids": inputs, "labels": labels}
        return batch | {"attention_mask": (~padded).astype(np.int64)} if padded.any() else batch

    def order(self, seed: int) -> EpochOrder:
        """The order of training."""
        own = getattr(self.inner, "order", None)
        return EpochOrder(own(seed) if own else Order(len(self), seed), len(self))

    def prefetch(self, order: EpochOrder, position: int) -> None:
        """See `bigtrain.data.sets.PackedSet.prefetch`."""
        if hasattr(self.inner, "prefetch"):
            self.inner.prefetch(order.order, position)

    def _chosen(self, ids: NDArray[np.int64], free: NDArray[np.bool_], chance: np.random.Generator) -> Integers:
        """Places of the tokens to be guessed: a share of those that are free, at least one where there are any."""
        places = np.flatnonzero(free)
        wanted = max(1, round(self.masking.share * len(places)))
        if self._starts is None:
            found: Integers = np.sort(chance.permutation(places)[:wanted])
            return found
        begins = self._starts[ids[places]]
        if len(begins):
            begins[0] = True
        words = np.cumsum(begins) - 1
        order = chance.permutation(words[-1] + 1) if len(words) else words
        sizes = np.bincount(words)[order] if len(words) else words
        picked = order[: int(np.searchsorted(np.cumsum(sizes), wanted)) + 1]
        return places[np.isin(words, picked)]

    def _spans(
        self, ids: NDArray[np.int64], padded: NDArray[np.bool_], chances: Sequence[np.random.Generator]
    ) -> Arrays:
        """Raffel et al. 2020 (arXiv:1910.10683), 3.1.4: spans of a mean length, each replaced by a sentinel."""
        length = ids.shape[1]
        noise = min(max(1, round(self.masking.share * length)), length - 1)
        spans = min(max(1, round(noise / self.masking.mean_span)), noise, length - noise, len(self._sentinels))
        inputs = np.full((len(ids), length - noise + spans), self._end_id)
        labels = np.full((len(ids), noise + spans + 1), self._end_id)
        for row, chance in enumerate(chances):
            kept, lost = _parts(length - noise, spans, chance), _parts(noise, spans, chance)
            at = to = behind = 0
            for sentinel, keep, lose in zip(self._sentinels, kept, lost, strict=False):
                inputs[row, to : to + keep] = ids[row, at : at + keep]
                inputs[row, to + keep] = labels[row, behind] = sentinel
                labels[row, behind + 1 : behind + 1 + lose] = ids[row, at + keep : at + keep + lose]
                at, to, behind = at + keep + lose, to + keep + 1, behind + lose + 1
            if padded[row].any():  # the end of an evaluation: no span lies where there is no text
                labels[row] = (
                    IGNORE if padded[row].all() else np.where(labels[row] == self._end_id, IGNORE, labels[row])
                )
        return {"input_ids": inputs, "attention_mask": np.ones_like(inputs), "labels": labels}


def _take(inner: Any, numbers: Integers) -> Arrays:
    own = getattr(inner, "batch", None)
    if own is not None:
        found: Arrays = own(numbers)
        return found
    samples = [inner[int(number)] for number in numbers]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def _parts(total: int, count: int, chance: np.random.Generator) -> list[int]:
    """`total` cut at random into `count` parts of 1 at least."""
    cuts = np.sort(chance.permutation(total - 1)[: count - 1]) + 1
    parts: list[int] = np.diff([0, *cuts, total]).tolist()
    return parts


def _sentinels(tokenizer: Any) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, …"""
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := SENTINEL.format(len(found))) in vocabulary:
        found.append(int(vocabulary[name]))
    if not found:
        raise UserError(
            "data.masking.spans: the tokenizer has no <extra_id_0>; leave data.tokenizer out, or take T5's."
        )
    return found


def _word_starts(tokenizer: Any, tokens: int) -> NDArray[np.bool_]:
    """Which tokens begin a word, by the habits of WordPiece (## inside), byte-level BPE and SentencePiece (Ġ, ▁)."""
    names = tokenizer.convert_ids_to_tokens(list(range(tokens)))
    inside = any((name or "").startswith("##") for name in names)
    if inside:
        return np.array([not (name or "").startswith("##") for name in names])
    return np.array([(name or " ")[0] in "ĠĊ▁" or not (name or " ")[0].isalnum() for name in names])
