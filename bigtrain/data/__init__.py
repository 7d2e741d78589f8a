"""Data: from raw text to the exact batch. This door imports nothing heavy; each builder's signature is its settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.data.settings import Corpus, Domain, Masking, Preparation, Reading, Stage
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError

if TYPE_CHECKING:
    from bigtrain.data.chats import Conversations, Preferences
    from bigtrain.data.encodings import LabelledTexts, Pairs, TaggedWords
    from bigtrain.data.images import Images

__all__ = ["Conversations", "Images", "LabelledTexts", "Pairs", "Preferences", "TaggedWords", "text"]

_ROWS = {
    "Conversations": "chats",
    "Preferences": "chats",
    "LabelledTexts": "encodings",
    "Pairs": "encodings",
    "TaggedWords": "encodings",
    "Images": "images",
}


def __getattr__(name: str) -> Any:
    """The kinds of rows, imported when they are asked for."""
    if name not in _ROWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROWS[name]}"), name)


def text(
    *,
    sequence_length: int,
    path: str | list[str] | None = None,
    domains: dict[str, Domain] | None = None,
    stages: list[Stage] | None = None,
    when_dry: Literal["repeat", "stop", "rebalance"] = "repeat",
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    text_column: str = "text",
    document_separator: str | None = None,
    clean: list[dict[str, Any]] | None = None,
    exclude: str | None = None,
    held_out: float = 0.01,
    packing: Literal["concat", "best_fit", "none"] = "concat",
    document_masks: bool = False,
    masking: Masking | None = None,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    max_documents: int | None = None,
    seed: int = 0,
    cache: str = "runs/prepared",
    cache_gb: float = 10.0,
    shuffle_shards: int | None = None,
    skip_broken: bool = False,
    workers: int | None = None,
    token_type: Literal["auto", "uint16", "uint32"] = "auto",
    shard_tokens: int = 100_000_000,
) -> TextData:
    """Text documents: read, cleaned, tokenised once into shards, mixed and packed into sequences.

    Args:
        sequence_length: tokens a sample (S): `input_ids` and `labels` are int64 arrays of shape (S,).
        path: what to read: a file, folder, glob, URL of an object store (`s3://bucket/*.jsonl`), `pkg://package/file`,
            or the name of a data set of the Hugging Face hub, or a list of these. Plain text (.txt, .md), JSON lines
            (.jsonl), all also as .gz, .xz and .zst, Parquet, Arrow, and what `datasets` saved to a disk. Or a folder
            that bigtrain prepared, here or in an object store, which is then used as it is.
        domains: instead of `path`: the parts of a mixture by name, each with a `path`, a `weight` (its share of the
            training tokens; they sum to 1; null for all: by their sizes) and, where they differ, `epochs` and the
            settings of reading and cleaning.
        stages: other weights from a number of trained tokens on: a list of `{from_tokens: N, weights: {...}}`.
        when_dry: what happens when a domain has been read `epochs` times (1 where it says none): "repeat": it is read
            again; "stop": the run ends there; "rebalance": the others share its weight.
        tokenizer: a folder or hub name with a Hugging Face tokenizer, or a folder with GPT-2's `vocab.json` and
            `merges.txt`. None: train a byte-level BPE on the training documents.
        vocab_size: entries of the tokenizer to be trained; a given tokenizer brings its own.
        text_column: the field of JSON lines, or the column of tables and hub data, that holds the text.
        document_separator: a regular expression: where a plain text file is cut into documents. What it matches is
            dropped, so use a look-ahead to keep it. None: each file is one document.
        clean: steps that every document goes through, in order: components of `bigtrain.data.clean`, or functions of
            your own; `clean=prose` and `clean=web` are ready-made lists.
        exclude: a file of documents that are left out, as `bigtrain data blame` and `trace` write it. A new run is
            then as if they had never been there; one that goes on, goes on without them.
        held_out: the share of the documents kept for evaluation, in [0, 1). A document's side depends on its text and
            on `seed` only, so that copies of a document never lie on both sides. With two documents or more, each
            side gets at least one.
        packing: "concat": documents are laid end to end and cut every S tokens; "best_fit": whole documents are packed
            together so that none is cut that fits into a sequence; "none": a document a sample, cut at S and padded.
        document_masks: the documents of a sample do not see each other, as if each were alone, and a document's last
            token has no target.
        masking: tokens are taken out, to be guessed (`bigtrain.data.settings.Masking`), for objective=masked_lm; with
            `spans: true` for objective=seq2seq, as T5 is pretrained.
        name: the configuration (subset) of a hub data set.
        split: the split of a hub data set.
        revision: the branch, tag or commit of a hub data set.
        max_documents: only so many documents of each domain, the first ones.
        seed: of the held-out split. The order of training follows the run's own seed.
        cache: the folder under which prepared data is kept.
        cache_gb: of prepared data in an object store, this much is kept on the local disk at once.
        shuffle_shards: samples are mixed within groups of so many shards, which come in random order. None: over the
            whole set; 16 for prepared data in an object store.
        skip_broken: count and leave out broken records (a line that is not JSON, a text that is null) instead of
            ending with an error.
        workers: processes that clean and tokenise. None: one a core, or none beside the main one where there is little
            to do.
        token_type: the integers of the shards. "auto": uint16 where the vocabulary fits, else uint32.
        shard_tokens: tokens a shard file, about.

    Raises:
        UserError: a setting is out of its range.
    """
    masking = Masking(**masking) if isinstance(masking, dict) else masking
    if masking and (packing != "concat" or document_masks):
        raise UserError("data.masking is for data.packing=concat without data.document_masks.")
    preparation = Preparation(
        corpus=Corpus(
            path=tuple([path] if isinstance(path, str) else path or ()),
            reading=Reading(
                text_column=text_column,
                document_separator=document_separator,
                name=name,
                split=split,
                revision=revision,
                max_documents=max_documents,
                skip_broken=skip_broken,
            ),
            clean=tuple(clean or ()),
            exclude=exclude,
        ),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        held_out=held_out,
        seed=seed,
        token_type=token_type,
        shard_tokens=shard_tokens,
        special_tokens=masking.special_tokens if masking else (),
    )
    if (path is None) == (not domains):
        raise UserError("data needs either data.path, or data.domains with a path each.")
    if stages and not domains:
        raise UserError("data.stages are weights of data.domains, and there are none.")
    parts = {name: given if isinstance(given, Domain) else Domain(**given) for name, given in (domains or {}).items()}
    preparations = {name: preparation.of_domain(domain) for name, domain in parts.items()}
    return TextData(
        preparations or {"data": preparation},
        domains=parts,
        stages=[given if isinstance(given, Stage) else Stage(**given) for given in stages or []],
        when_dry=when_dry,
        sequence_length=sequence_length,
        packing=packing,
        document_masks=document_masks,
        masking=masking,
        cache=cache,
        cache_gb=cache_gb,
        shuffle_shards=shuffle_shards,
        workers=workers,
    )
