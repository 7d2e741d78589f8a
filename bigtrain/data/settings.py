"""What decides the content of prepared data, and the fingerprint that finds it again. Standard library only."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from bigtrain.data.sources import Source
from bigtrain.errors import UserError, nearest

FORMAT, VERSION = "bigtrain shards", 2
SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end of text."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "config.json",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How sources become documents; what the settings mean is told in `bigtrain.data.text`."""

    text_column: str = "text"
    document_separator: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    max_documents: int | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"data.max_documents={self.max_documents}: at least 1.")
        try:
            re.compile(self.document_separator or "")
        except re.error as error:
            raise UserError(
                f"data.document_separator={self.document_separator!r} is not a regular expression: {error}."
            ) from error


@dataclass(slots=True)
class Domain:
    """One part of a mixture. What is null is as `data` itself says."""

    path: str | list[str]
    weight: float | None = None
    """Its share of the training tokens; the shares sum to 1. Null for all: by their sizes."""
    epochs: float | None = None
    """Passes after which it has run dry (`when_dry=stop` and `rebalance`); null: 1."""
    text_column: str | None = None
    document_separator: str | None = None
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    max_documents: int | None = None
    clean: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Masking:
    """Tokens to be guessed, chosen anew in each epoch (Devlin et al. 2019; anew: Liu et al. 2019, arXiv:1907.11692)."""

    share: float = 0.15
    """Of the tokens."""
    whole_words: bool = False
    """All tokens of a word together."""
    masked: float = 0.8
    """Of the chosen ones so many become the mask, and as many as `random` says another token; the rest stay."""
    random: float = 0.1
    spans: bool = False
    """Spans that a decoder writes (T5, Raffel et al. 2020), in place of single tokens."""
    mean_span: float = 3.0
    """Tokens of a span, about."""

    def __post_init__(self) -> None:
        if self.mean_span < 1:
            raise UserError(f"data.masking.mean_span={self.mean_span}: at least 1 token.")
        if not 0 < self.share < 1 or min(self.masked, self.random) < 0 or self.masked + self.random > 1 + 1e-9:
            raise UserError("data.masking: share between 0 and 1; masked and random at least 0, 1 together at most.")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What a tokenizer that is trained for this has beside the end of text."""
        from bigtrain.data.tokenizer import MASK, SENTINEL, SENTINELS

        return tuple(map(SENTINEL.format, range(SENTINELS))) if self.spans else (MASK,)


@dataclass(slots=True)
class Stage:
    """From `from_tokens` trained tokens on, other weights."""

    from_tokens: int
    weights: dict[str, float]
    """Of every domain by name; a domain left out has weight 0. They sum to 1."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Which documents there are: read, without those that are excluded, cleaned."""

    path: tuple[str, ...]
    reading: Reading = field(default_factory=Reading)
    clean: tuple[dict[str, Any], ...] = ()
    """Steps: components of `bigtrain.data.clean`, or anyone's."""
    exclude: str | None = None
    """A file of documents that are left out before anything else."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """The settings of `bigtrain.data.text` that the shards of one corpus depend on; what they mean is told there."""

    corpus: Corpus
    tokenizer: str | None
    vocab_size: int
    held_out: float
    seed: int
    token_type: Literal["auto", "uint16", "uint32"]
    shard_tokens: int
    special_tokens: tuple[str, ...] = ()
    """Of a tokenizer to be trained, beside the end of text."""

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UserError(f"data.held_out={self.held_out}: a share of the documents, at least 0 and below 1.")
        if self.tokenizer is None and self.vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"data.vocab_size={self.vocab_size}: a byte-level tokenizer needs at least {SMALLEST_VOCABULARY} "
                f"(256 bytes and the end of text)."
            )
        if self.shard_tokens < 1:
            raise UserError(f"data.shard_tokens={self.shard_tokens}: at least 1.")

    def of_domain(self, domain: Domain) -> Preparation:
        """The same for one domain, with what it says itself."""
        path = (domain.path,) if isinstance(domain.path, str) else tuple(domain.path)
        own = {name.name: getattr(domain, name.name, None) for name in fields(Reading)}
        reading = replace(self.corpus.reading, **{name: value for name, value in own.items() if value is not None})
        clean = self.corpus.clean if domain.clean is None else tuple(domain.clean)
        return replace(self, corpus=replace(self.corpus, path=path, reading=reading, clean=clean))

    def fingerprint(self, sources: Sequence[Source]) -> str:
        """A hash of the settings, of the tokenizer's files, and of name, size and time of every source and of what
        documents are compared with."""
        from bigtrain.data.clean.contamination import evaluation_sources

        settings: dict[str, Any] = asdict(self)
        del settings["corpus"]["path"]
        if self.tokenizer is not None:
            del settings["vocab_size"]
            settings["tokenizer"] = files_hash(Path(self.tokenizer).expanduser()) or self.tokenizer
        read = [*sources, *evaluation_sources(self.corpus.clean)]
        everything = [FORMAT, VERSION, settings, [asdict(source) for source in read]]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def check_settings(
    sequence_length: int,
    packing: str,
    document_masks: bool,
    when_dry: str,
    workers: int | None,
    shuffle_shards: int | None,
) -> None:
    """A `UserError` for a setting of text as sequences that is out of its range."""
    if sequence_length < 1:
        raise UserError(f"data.sequence_length={sequence_length}: at least 1 token.")
    if packing not in ("concat", "best_fit", "none"):
        raise UserError(f"data.packing={packing}: there are: concat, best_fit, none.")
    if document_masks and packing == "none":
        raise UserError(
            f"data.document_masks=true is for data.packing=concat and best_fit: with data.packing={packing} a "
            "sample is one document. Leave it false."
        )
    if workers is not None and workers < 1:
        raise UserError(f"data.workers={workers}: at least 1 process.")
    if when_dry not in ("repeat", "stop", "rebalance"):
        raise UserError(f"data.when_dry={when_dry}: there are: repeat, stop, rebalance.")
    if shuffle_shards is not None and shuffle_shards < 1:
        raise UserError(f"data.shuffle_shards={shuffle_shards}: at least 1 shard.")


def check_weights(weights: Mapping[str, float], where: str) -> None:
    """Refuses weights that are no shares.

    Raises:
        UserError: one is negative, or they do not sum to 1; the weights that would are shown.
    """
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f"{where}: the weight of {name} is {weight}: a share of the tokens, 0 or more.")
    total = sum(weights.values())
    if total == 0:
        raise UserError(f"{where}: every weight is 0.")
    if abs(total - 1) > 1e-6:
        would = ", ".join(f"{name}: {weight / total:.6g}" for name, weight in weights.items())
        raise UserError(f"{where}: the weights sum to {total:.6g}, not to 1. In the same proportions: {{{would}}}.")


def checked_weights(domains: Mapping[str, Domain], stages: Sequence[Stage]) -> dict[str, float] | None:
    """The weights of the domains; None: none is given, and they go by the domains' sizes.

    Raises:
        UserError: weights or epochs mean nothing, or a stage names a domain that there is not.
    """
    for stage in stages:
        for name in stage.weights:
            if name not in domains:
                raise UserError(f"data.stages: there is no domain {name}.{nearest(name, domains)}")
        if stage.from_tokens < 1:
            raise UserError(f"data.stages: from_tokens={stage.from_tokens}: 1 or more; data.domains has the first.")
        check_weights(stage.weights, f"data.stages, from_tokens={stage.from_tokens}")
    given = {name: domain.weight for name, domain in domains.items() if domain.weight is not None}
    missing = [name for name in domains if name not in given]
    if not given:
        return None
    if missing:
        raise UserError(f"data.domains.{missing[0]} has no weight: give one to every domain, or to none.")
    for name, domain in domains.items():
        if domain.epochs is not None and domain.epochs <= 0:
            raise UserError(f"data.domains.{name}.epochs={domain.epochs}: more than 0.")
    check_weights(given, "data.domains")
    return given


def files_hash(folder: Path) -> dict[str, str]:
    """sha256 of each file of a tokenizer's folder; empty where there is no such folder."""
    files = [folder / name for name in TOKENIZER_FILES]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
