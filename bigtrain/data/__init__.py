"""Data: from raw text to the exact batch. This door imports nothing heavy; each builder's signature is its settings."""

from __future__ import annotations

from typing import Literal

from bigtrain.data.settings import Preparation
from bigtrain.data.text_data import TextData

__all__ = ["text"]


def text(
    *,
    path: str | list[str],
    sequence_length: int,
    tokenizer: str | None = None,
    vocab_size: int = 8192,
    text_column: str = "text",
    document_separator: str | None = None,
    held_out: float = 0.01,
    packing: Literal["concat", "none"] = "concat",
    document_masks: bool = False,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    seed: int = 0,
    cache: str = "runs/prepared",
    skip_broken: bool = False,
    workers: int | None = None,
    token_type: Literal["auto", "uint16", "uint32"] = "auto",
    shard_tokens: int = 100_000_000,
) -> TextData:
    """Text documents, tokenised once into memory-mapped shards, read as sequences of `sequence_length` tokens.

    Args:
        path: what to read: a file, folder, glob, `pkg://package/file`, or the name of a data set of the Hugging Face
            hub, or a list of these. Plain text (.txt, .md), JSON lines (.jsonl), both also as .gz and .xz, and
            .parquet. Or a folder that bigtrain prepared, which is then used as it is.
        sequence_length: tokens a sample (S): `input_ids` and `labels` are int64 arrays of shape (S,).
        tokenizer: a folder or hub name with a Hugging Face tokenizer, or a folder with GPT-2's `vocab.json` and
            `merges.txt`. None: train a byte-level BPE on the training documents.
        vocab_size: entries of the tokenizer to be trained; a given tokenizer brings its own.
        text_column: the field of JSON lines, or the column of Parquet and hub data, that holds the text.
        document_separator: a regular expression: where a plain text file is cut into documents. What it matches is
            dropped, so use a look-ahead to keep it. None: each file is one document.
        held_out: the share of the documents kept for evaluation, in [0, 1). A document's side depends on its text and
            on `seed` only, so that copies of a document never lie on both sides. With two documents or more, each
            side gets at least one.
        packing: "concat": documents are laid end to end and cut every S tokens; "none": a document a sample, cut at S
            and padded.
        document_masks: with "concat": the documents of a sample do not see each other, as if each were alone, and a
            document's last token has no target. The model must take `document_ids`, as bigtrain's decoder does.
        name: the configuration (subset) of a hub data set.
        split: the split of a hub data set.
        revision: the branch, tag or commit of a hub data set.
        seed: of the held-out split. The order of training follows the run's own seed.
        cache: the folder under which prepared data is kept.
        skip_broken: count and leave out broken records (a line that is not JSON, a text that is null) instead of
            ending with an error.
        workers: processes that tokenise. None: one a core, or none beside the main one where there is little to do.
        token_type: the integers of the shards. "auto": uint16 where the vocabulary fits, else uint32.
        shard_tokens: tokens a shard file.

    Raises:
        UserError: a setting is out of its range.
    """
    preparation = Preparation(
        path=tuple([path] if isinstance(path, str) else path),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_column=text_column,
        document_separator=document_separator,
        held_out=held_out,
        name=name,
        split=split,
        revision=revision,
        seed=seed,
        skip_broken=skip_broken,
        token_type=token_type,
        shard_tokens=shard_tokens,
    )
    return TextData(
        preparation,
        sequence_length=sequence_length,
        packing=packing,
        document_masks=document_masks,
        cache=cache,
        workers=workers,
    )
