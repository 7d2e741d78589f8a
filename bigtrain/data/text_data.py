"""The data object of `bigtrain.data.text`: prepares once, then opens in a moment. Nothing heavy is imported here."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bigtrain.data.settings import FORMAT, Preparation
from bigtrain.data.sources import Source, find_sources
from bigtrain.errors import UserError

if TYPE_CHECKING:
    from bigtrain.data.sets import ConcatSet, DocumentSet
    from bigtrain.data.shards import Manifest


class TextData:
    """Text as sequences of tokens. Call `prepare` in one process first; then `train` and `eval` open in any."""

    def __init__(
        self,
        preparation: Preparation,
        *,
        sequence_length: int,
        packing: Literal["concat", "best_fit", "none"],
        document_masks: bool = False,
        cache: str,
        workers: int | None,
    ) -> None:
        if sequence_length < 1:
            raise UserError(f"data.sequence_length={sequence_length}: at least 1 token.")
        if packing not in ("concat", "none"):
            raise UserError(f"data.packing={packing}: there are: concat, none.")
        if document_masks and packing != "concat":
            raise UserError(
                f"data.document_masks=true is for data.packing=concat: with data.packing={packing} a sample is one "
                "document. Leave it false."
            )
        if workers is not None and workers < 1:
            raise UserError(f"data.workers={workers}: at least 1 process.")
        self.preparation, self.sequence_length, self.packing = preparation, sequence_length, packing
        self.document_masks = document_masks
        self.cache, self.workers = Path(cache).expanduser(), workers

    def prepare(self) -> None:
        """Trains or takes the tokenizer and writes the shards, unless that has been done. Safe to call at once in
        several processes: one works, the others wait and say so.

        Raises:
            UserError: the input is wrong, or the cache cannot be written; then nothing is left behind.
        """
        if (self.folder / "manifest.json").is_file():
            print(f"data: prepared already, in {self.folder}", file=sys.stderr)
            self._check_tokenizer()
        else:
            from bigtrain.data.prepare import prepare

            prepare(self.preparation, self._sources, self.folder, self.workers)
        _ = self.train

    @cached_property
    def folder(self) -> Path:
        """Where the prepared data lies, or will lie."""
        if self._is_prepared is not None:
            return self._is_prepared
        first = re.sub(r"[^\w-]+", "-", Path(self._sources[0].name).name.partition(".")[0])
        return self.cache / f"{first}-{self.preparation.fingerprint(self._sources)}"

    @cached_property
    def train(self) -> ConcatSet | DocumentSet:
        """The training samples.

        Raises:
            UserError: nothing is prepared, it is damaged, or it is shorter than one sequence.
        """
        dataset = self._set("train")
        if len(dataset) == 0:
            raise UserError(
                f"The training text has {dataset.shards.tokens:,} tokens, too short for one sequence of "
                f"data.sequence_length={self.sequence_length} and its last target."
            )
        return dataset

    @cached_property
    def eval(self) -> ConcatSet | DocumentSet | None:
        """The held-out samples; every held-out token but the first is a target in exactly one. None: none held out."""
        dataset = self._set("eval")
        return dataset if len(dataset) else None

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer: every token is below it."""
        return self._manifest["vocab_size"]

    @property
    def tokenizer_path(self) -> Path:
        """A folder that `transformers.AutoTokenizer.from_pretrained` reads."""
        return self.folder / "tokenizer"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens, the tokenizer and the packing: what a position in this data means depends on it."""
        manifest = self._manifest
        content = [
            [[shard["sha256"] for shard in manifest["splits"][split]["shards"]] for split in ("train", "eval")],
            manifest["tokenizer_sha256"],
            self.sequence_length,
            self.packing,
            *(["document_masks"] if self.document_masks else []),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def verify(self) -> None:
        """Compares every byte with the checksums of the manifest; `UserError` names what differs."""
        from bigtrain.data.shards import verify

        verify(self.folder)

    @cached_property
    def _sources(self) -> list[Source]:
        return find_sources(self.preparation.corpus.path)

    @cached_property
    def _is_prepared(self) -> Path | None:
        """`data.path`, where that is a folder which bigtrain prepared."""
        path = Path(self.preparation.corpus.path[0]).expanduser() if len(self.preparation.corpus.path) == 1 else None
        manifest = path / "manifest.json" if path else None
        return path if manifest and manifest.is_file() and FORMAT in manifest.read_text(errors="replace") else None

    @cached_property
    def _manifest(self) -> Manifest:
        from bigtrain.data.shards import read_manifest

        return read_manifest(self.folder)

    def _set(self, split: str) -> ConcatSet | DocumentSet:
        from bigtrain.data.sets import ConcatSet, DocumentSet
        from bigtrain.data.shards import Shards

        shards = Shards(self.folder, self._manifest["token_type"], self._manifest["splits"][split])
        if self.packing == "none":
            return DocumentSet(shards, self.sequence_length, self._manifest["pad_id"])
        return ConcatSet(
            shards,
            self.sequence_length,
            self._manifest["pad_id"],
            remainder=split == "eval",
            document_masks=self.document_masks,
        )

    def _check_tokenizer(self) -> None:
        """Where shards and tokenizer were both given, they must belong together."""
        if self._is_prepared is not None and self.preparation.tokenizer is not None:
            from bigtrain.data.prepare import check_tokenizer

            check_tokenizer(self.preparation.tokenizer, self.folder)
