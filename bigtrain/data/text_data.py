"""The data object of `bigtrain.data.text`: prepares once, then opens in a moment. Nothing heavy is imported here."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.data.settings import Domain, Masking, Preparation, Stage, check_settings, checked_weights
from bigtrain.data.sources import Source
from bigtrain.errors import UserError, nearest

if TYPE_CHECKING:
    from bigtrain.data.mixed import MixedSet
    from bigtrain.data.mixing import Mix, Mixing
    from bigtrain.data.resuming import Changes
    from bigtrain.data.sets import PackedSet
    from bigtrain.data.shards import Manifest

ONE = "data"
"""The name of the only domain, where `data.path` is given."""

REMOTE_WINDOW = 16
"""Shards among which samples of an object store are mixed, where `data.shuffle_shards` does not say."""


class TextData:
    """Text as sequences of tokens. Call `prepare` in one process first; then `train` and `eval` open in any.

    A run that goes on calls `resume` before that, and keeps `state()` in its checkpoints.
    """

    def __init__(
        self,
        preparations: Mapping[str, Preparation],
        *,
        domains: Mapping[str, Domain] | None = None,
        stages: list[Stage] | None = None,
        when_dry: Literal["repeat", "stop", "rebalance"] = "repeat",
        sequence_length: int,
        packing: Literal["concat", "best_fit", "none"],
        document_masks: bool = False,
        masking: Masking | None = None,
        cache: str,
        cache_gb: float,
        shuffle_shards: int | None,
        workers: int | None,
    ) -> None:
        check_settings(sequence_length, packing, document_masks, when_dry, workers, shuffle_shards)
        self._cache_bytes, self._shuffle_shards = int(cache_gb * 1e9), shuffle_shards
        self.preparations, self.domains = dict(preparations), dict(domains or {})
        self.stages, self.when_dry = sorted(stages or [], key=lambda stage: stage.from_tokens), when_dry
        self.sequence_length, self.packing, self.document_masks = sequence_length, packing, document_masks
        self.masking = masking
        self.cache, self.workers = Path(cache).expanduser(), workers
        self.weights = checked_weights(self.domains, self.stages)
        """Of the tokens, by domain; None: by the domains' sizes."""
        self._then: dict[str, Any] | None = None
        self._position = 0
        self._exclude: str | None = None  # what a run that goes on reads past, in shards that have it
        self._changes: Changes = []  # of what was left out, as the checkpoint tells
        self._opened: dict[str | None, PackedSet | MixedSet] = {}  # by the digest of what is left out

    @property
    def preparation(self) -> Preparation:
        """Of the first domain."""
        return next(iter(self.preparations.values()))

    @property
    def mixed(self) -> bool:
        """Whether there are domains."""
        return bool(self.domains)

    def resume(self, then: Any, position: int) -> list[str]:
        """Goes on from a checkpoint that kept `then` (see `state`) at this position. Call it before `prepare`.

        Returns:
            What is other now than it was, to be said.

        Raises:
            UserError: what was trained on cannot be told from what is given now.
        """
        self._position = position
        notes = self._go_on_without(then)
        if not self.mixed or not isinstance(then, dict):
            return notes  # compared by the fingerprint
        gone = [name for name in then["domains"] if name not in self.domains]
        if gone:
            raise UserError(
                f"data.domains has no {gone[0]} any more, which this run was trained on: keep it, with "
                f"data.domains.{gone[0]}.weight=0.{nearest(gone[0], self.domains)}"
            )
        self._then = then
        notes += [f"data: domain {name} joins at sample {position:,}" for name in self.domains
                 if name not in then["domains"]]  # fmt: skip
        if self._settings() != then["settings"]:
            notes.append(f"data: the mixture is another from sample {position:,} on; what was trained on is kept apart")
        return notes

    def state(self) -> Any:
        """What a checkpoint keeps: the fingerprint, or of a mixture the domains and the pieces of the mix so far; and
        where documents were left out of a run that goes on, from when on which (see `bigtrain.data.resuming`)."""
        left_out = {"exclusions": [list(change) for change in self._changes_now]} if self._changes_now else {}
        if not self.mixed:
            return {"fingerprint": self.texts, **left_out} if left_out else self.texts
        pieces = [[piece.start, *piece.parts] for piece in self._mix.pieces]
        return {"domains": self.texts, "pieces": pieces, "settings": self._settings(), **left_out}

    @property
    def texts(self) -> Any:
        """The fingerprint, of a mixture by domain: a run can go on, and be looked into, where it is what it was."""
        return {name: self._fingerprint(name) for name in self.domains} if self.mixed else self.fingerprint

    def prepare(self) -> None:
        """Trains or takes the tokenizer and writes the shards, unless that has been done. Safe to call at once in
        several processes, on any hosts that share the cache: they divide the work among themselves.

        Raises:
            UserError: the input is wrong, or the cache cannot be written; then nothing is left behind.
        """
        ready = all((folder / "manifest.json").is_file() for folder in self.folders.values())
        from bigtrain.data.shards import verify

        if not ready:
            from bigtrain.data.prepare import prepare

            prepare(self.preparations, self.cache, self.workers)
        for name, folder in self.folders.items():
            if ready:
                print(f"data: prepared already, in {folder}", file=sys.stderr)
                verify(folder, changed_only=True)
            self._check_tokenizer(name)
        if len({manifest["tokenizer_sha256"] for manifest in self._manifests.values()}) > 1:
            raise UserError("The prepared domains have different tokenizers: prepare them anew with one.")
        self._check_sizes()
        if self.mixed:
            print(self.describe(), file=sys.stderr)

    @property
    def folder(self) -> Path:
        """Where the prepared data of the first domain lies, or will lie."""
        return next(iter(self.folders.values()))

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Where the prepared data of each domain lies, or will lie."""
        from bigtrain.data.corpora import plan

        return {domain.name: domain.folder for domain in plan(self.preparations, self.cache)}

    @cached_property
    def train(self) -> Any:
        """The training samples; of a mixture the domains' laid end to end, with their `order`. Of a run that goes on:
        as they are from its position on.

        Raises:
            UserError: nothing is prepared, it is damaged, or it is shorter than one sequence; or data.exclude is wrong.
        """
        self._check_sizes()
        return self._masked(self.train_at(self._position))

    def train_at(self, position: int) -> PackedSet | MixedSet:
        """The training samples as they are read at a position of the run: without what is left out there.

        Raises:
            UserError: what was left out cannot be told any more; or see `train`.
        """
        from bigtrain.data.mixed import MixedSet
        from bigtrain.data.resuming import held_at, kept

        digest = held_at(self._changes if position < self._position else self._changes_now, position)
        if digest not in self._opened:
            sets = self.sets
            if digest is not None:
                out = kept(digest, {name: self._fingerprint(name) for name in self.preparations}, self.cache)
                sets = {name: self._set(name, "train", remainder=False, without=out[name]) if name in out else samples
                        for name, samples in self.sets.items()}  # fmt: skip
            self._opened[digest] = MixedSet(sets, self._mix) if self.mixed else sets[ONE]
        return self._opened[digest]

    @cached_property
    def sets(self) -> dict[str, PackedSet]:
        """The training samples of each domain, with all documents of its shards."""
        return {name: self._set(name, "train", remainder=False) for name in self.preparations}

    @cached_property
    def eval(self) -> Any:
        """The held-out samples of all domains; of one, every held-out token but the first is a target in exactly one.
        None: none held out."""
        sets = {name: self._set(name, "eval", remainder=True) for name in self.preparations}
        if not any(map(len, sets.values())):
            return None
        from bigtrain.data.mixed import HeldOut

        return self._masked(HeldOut(sets) if self.mixed else sets[ONE])

    @cached_property
    def whole(self) -> Any:
        """All training tokens, also those left after the last whole sample: for an evaluation."""
        from bigtrain.data.mixed import HeldOut

        sets = {name: self._set(name, "train", remainder=True) for name in self.preparations}
        return self._masked(HeldOut(sets) if self.mixed else sets[ONE])

    def _masked(self, samples: Any) -> Any:
        from bigtrain.data.masking import Masked

        return (
            samples
            if self.masking is None
            else Masked(samples, self.masking, self.tokenizer_path, self.preparation.seed)
        )

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer: every token is below it."""
        return next(iter(self._manifests.values()))["vocab_size"]

    @property
    def tokenizer_path(self) -> Path:
        """A folder that `transformers.AutoTokenizer.from_pretrained` reads."""
        return self.folder / "tokenizer"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens, the tokenizer and the packing: what a position in this data means depends on it."""
        if not self.mixed:
            return self._fingerprint(ONE)
        return _hash([[name, self._fingerprint(name)] for name in self.domains])

    def describe(self) -> str:
        """Samples, documents and share of each domain, and what runs dry when."""
        from bigtrain.data.mixed import describe

        return describe(self._mix, self._mixing, self.sets, self._position)

    def verify(self) -> None:
        """Compares every byte with the checksums of the manifest; `UserError` names what differs."""
        from bigtrain.data.shards import verify
        from bigtrain.data.streaming import verify_shards

        for folder in self.folders.values():
            verify(folder)
            verify_shards(folder)

    @cached_property
    def _mixing(self) -> Mixing:
        from bigtrain.data.mixed import part_of
        from bigtrain.data.mixing import Mixing

        parts = tuple(part_of(self.sets[name], self.packing, domain.epochs) for name, domain in self.domains.items())
        sizes = sum(part.tokens for part in parts)
        weights = self.weights or {name: part.tokens / sizes for name, part in zip(self.domains, parts, strict=True)}
        stages = [(0, weights), *((stage.from_tokens, stage.weights) for stage in self.stages)]
        by_domain = tuple((start, tuple(of.get(name, 0.0) for name in self.domains)) for start, of in stages)
        return Mixing(parts, by_domain, self.when_dry)

    @cached_property
    def _mix(self) -> Mix:
        from bigtrain.data.resuming import pieces_so_far

        if self._then is None:
            return self._mixing.plan()
        for name, then in self._then["domains"].items():
            if then != self._fingerprint(name):
                raise UserError(
                    f"data.domains.{name} is not what this run was trained on ({then} then, {self._fingerprint(name)} "
                    "now): the position in it would mean nothing. Put its text and settings back, or start in another "
                    "run.dir."
                )
        return self._mixing.plan(pieces_so_far(self._then, list(self.domains), self._position), self._position)

    def _settings(self) -> str:
        """A hash of what the mixture is made of, to see an edit."""
        epochs = [domain.epochs for domain in self.domains.values()]
        stages = [[stage.from_tokens, stage.weights] for stage in self.stages]
        return _hash([self.weights, epochs, stages, self.when_dry])

    def _fingerprint(self, name: str) -> str:
        manifest = self._manifests[name]
        return _hash(
            [
                [[shard["sha256"] for shard in manifest["splits"][split]["shards"]] for split in ("train", "eval")],
                manifest["tokenizer_sha256"],
                self.sequence_length,
                self.packing,
                *(["document_masks"] if self.document_masks else []),
                *([["shuffle_shards", window]] if (window := self._window(name)) else []),
            ]
        )

    @cached_property
    def _manifests(self) -> dict[str, Manifest]:
        from bigtrain.data.shards import read_manifest

        return {name: read_manifest(folder) for name, folder in self.folders.items()}

    def _check_sizes(self) -> None:
        for name, samples in self.sets.items():
            if len(samples) == 0:
                of = f" of {name}" if self.mixed else ""
                raise UserError(
                    f"The training text{of} has {samples.shards.tokens:,} tokens, too short for one sequence of "
                    f"data.sequence_length={self.sequence_length} and its last target."
                )

    def _go_on_without(self, then: Any) -> list[str]:
        """Documents that are excluded since the run began: it keeps the shards it has, and reads past them."""
        from bigtrain.data.corpora import locate, prepared_folder
        from bigtrain.data.resuming import changes, held_at, texts

        exclude, self._changes = self.preparation.corpus.exclude, changes(then)
        if exclude is None:
            back = held_at(self._changes, self._position) is not None
            return [f"data: the documents left out so far come back from sample {self._position:,} on"] if back else []
        domains = then if isinstance(then := texts(then), dict) else {ONE: then}
        raw = not any(prepared_folder(of, self.cache) for of in self.preparations.values())
        if raw and not self._changes and locate(self.preparations, self.cache) is not None:
            if all(self._fingerprint(name) == print_ for name, print_ in domains.items() if name in self.preparations):
                return []  # it began without them
            del self._manifests
        self.__dict__.pop("folders", None)
        self._exclude = exclude
        self.preparations = {
            name: replace(of, corpus=replace(of.corpus, exclude=None)) for name, of in self.preparations.items()
        }
        return [f"data: goes on without the documents of data.exclude={exclude}; all others keep their place"]

    @cached_property
    def _changes_now(self) -> Changes:
        """What was left out from when on, with what is from the run's position on."""
        from bigtrain.data.resuming import DomainText, changed, keep, resolve

        digest = None
        if self._exclude is not None:
            domains = {
                name: DomainText(
                    self._fingerprint(name),
                    [Source(**entry) for entry in of["sources"]],
                    self.sets[name].shards,
                    self._set(name, "eval", remainder=True).shards,
                )
                for name, of in self._manifests.items()
            }
            digest = keep(resolve(self._exclude, domains), domains, self.cache)
        return changed(self._changes, self._position, digest)

    def _set(self, name: str, split: str, *, remainder: bool, without: list[int] | None = None) -> PackedSet:
        import numpy as np

        from bigtrain.data.sets import open_set
        from bigtrain.data.shards import Shards
        from bigtrain.data.streaming import shard_cache

        manifest = self._manifests[name]
        far = shard_cache(self.folders[name], self.cache, self._cache_bytes)
        shards = Shards(
            self.folders[name], manifest["token_type"], manifest["splits"][split], far.open if far else None
        )
        return open_set(
            shards,
            sequence_length=self.sequence_length,
            packing=self.packing,
            document_masks=self.document_masks,
            pad_id=manifest["pad_id"],
            remainder=remainder,
            cache=self.cache,
            without=np.array(without, np.int64) if without else None,
            shuffle_shards=self._window(name),
            fetch=far.prefetch if far else None,
        )

    def _window(self, name: str) -> int | None:
        """Shards within which samples are mixed."""
        from bigtrain.data.streaming import origin

        return REMOTE_WINDOW if self._shuffle_shards is None and origin(self.folders[name]) else self._shuffle_shards

    def _check_tokenizer(self, name: str) -> None:
        """Where shards and tokenizer were both given, they must belong together."""
        preparation = self.preparations[name]
        from bigtrain.data.corpora import prepared_folder

        if prepared_folder(preparation, self.cache) is not None and preparation.tokenizer is not None:
            from bigtrain.data.prepare import check_tokenizer

            check_tokenizer(preparation.tokenizer, self.folders[name])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
