"""A run's data as the run saw it: which samples a step had, and which documents a sample is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtrain.assembly import total_steps
from bigtrain.checkpoint import manifest
from bigtrain.checkpoint.find import listed, step_of
from bigtrain.config.components import build
from bigtrain.config.schema import RunConfig
from bigtrain.data.mixed import MixedSet
from bigtrain.data.resuming import texts
from bigtrain.data.sets import PackedSet
from bigtrain.data.shards import read_manifest
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError
from bigtrain.trained import locate, run_config, trusted_component


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a step."""

    position: int
    """In the training: the run's order counts samples from 0 on."""
    domain: str
    packed: PackedSet
    index: int
    """In that set."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tokens of one document in a sample."""

    sample: Sample
    document: int
    """Its number in the training split of its domain."""
    file: str
    offset: int
    """Where the document begins in its file: see `bigtrain.data.documents.Document`."""
    start: int
    stop: int
    """The part's tokens, counted from the document's first."""
    ends: bool
    """Whether the last of them is the document's end of text."""


def run_data(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, RunConfig, TextData]:
    """(folder, configuration, data) of the run at `path`; the data is not prepared.

    Raises:
        UserError: it is no run, or its data is not text of bigtrain's.
    """
    _, run_dir = locate(Path(path).expanduser())
    if run_dir is None:
        raise UserError(f"{path} is a Hugging Face folder: what it was trained on is not known. Give a run folder.")
    source = run_dir / "config.yaml"
    config = run_config(source, overrides)
    target = config.data.get("_target_")
    if target != "bigtrain.data.text":
        raise UserError(
            f"The data of {run_dir} is {target}, whose samples bigtrain cannot see into; documents are known where "
            "it is bigtrain.data.text."
        )
    data = build(trusted_component(config.data, "data", source, overrides), "data")
    assert isinstance(data, TextData)
    return run_dir, config, data


class OpenedRun:
    """The run at `path`, its data prepared (again, where that is gone) and as the run saw it.

    Args:
        path: a run folder, or one checkpoint of it.
        overrides: laid over the run's own configuration: data that was moved, as `data.path=…` or `data.cache=…`.

    Raises:
        UserError: see `run_data`; or the data has changed since.
    """

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()) -> None:
        self.path, self.config, self.data = run_data(path, overrides)
        self.checkpoints = {step_of(folder): folder for folder in listed(self.path)}
        """By their steps, whole ones or not."""
        newest = max(self.checkpoints, default=None)
        then = None
        if newest is not None:
            then = manifest.read(self.checkpoints[newest]).state.get("data")
            self.data.resume(then, self._position_of(newest))
        self.data.prepare()
        if newest is not None and texts(then) != self.data.texts:
            raise UserError(
                f"The data of {self.path} has changed since it was trained, so its documents cannot be told any more. "
                "Put text and data.* back as they were."
            )
        self.sets: dict[str, PackedSet] = self.data.sets
        """The training split of each domain by its name, with what was left out of the run later on."""
        train = self.data.train_at(0)  # samples stay where they are, whatever is left out of them
        self.data_samples = len(train)
        """Of all domains together."""
        self._end = train.end if isinstance(train, MixedSet) else None
        self._order = train.order(self.config.seed)
        self._files = {
            name: [source["name"] for source in read_manifest(folder)["sources"]]
            for name, folder in self.data.folders.items()
        }

    def last_step(self) -> int:
        """The step after which the run ends."""
        steps = total_steps(self.config, self.data_samples)
        if self._end is None:
            return steps
        return min(steps, self._end // self.config.trainer.global_batch_size)  # a domain runs dry, and that ends it

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step (from 1 on: the one whose metrics are logged under this number), in their order.

        Raises:
            UserError: the run has no such step.
        """
        if not 1 <= step <= self.last_step():
            raise UserError(f"{self.path} has no step {step:,}: its steps are 1 to {self.last_step():,}.")
        first, size = self._positions(step)
        positions = np.arange(first, first + size)
        return [
            self._sample(position, index)
            for position, index in zip(positions.tolist(), self._order(positions).tolist(), strict=True)
        ]

    def parts(self, sample: Sample) -> list[Part]:
        """The documents of a sample, in order: read one after the other, they are its inputs and its last label."""
        shards, found = sample.packed.shards, []
        for piece in sample.packed.pieces(sample.index):
            begin, end = shards.bounds(piece.document)
            number, offset = shards.place(piece.document)
            file = self._files[sample.domain][number]
            found.append(
                Part(
                    sample, piece.document, file, offset,
                    piece.start - begin, piece.stop - begin, piece.stop == end,
                )
            )  # fmt: skip
        return found

    def _sample(self, position: int, index: int) -> Sample:
        train = self.data.train_at(position)
        if not isinstance(train, MixedSet):
            return Sample(position, next(iter(self.sets)), train, index)
        domain, number = train.locate(index)
        return Sample(position, domain, train.sets[domain], number)

    def _positions(self, step: int) -> tuple[int, int]:
        """(position of the step's first sample, number of its samples).

        They are step - 1 times the global batch and the global batch, unless the batch was changed on the way: the
        checkpoints around the step then know better than the configuration, which tells the last size only.
        """
        size = self.config.trainer.global_batch_size
        before = max((known for known in self.checkpoints if known < step), default=0)
        after = min((known for known in self.checkpoints if known >= step), default=None)
        position = self._position_of(before)
        if after is not None:
            size, odd = divmod(self._position_of(after) - position, after - before)
            if odd or size < 1:
                raise UserError(
                    f"trainer.global_batch_size was changed between the steps {before:,} and {after:,} of {self.path}, "
                    "and no checkpoint is left that says when: their samples are not known."
                )
        return position + (step - 1 - before) * size, size

    def _position_of(self, step: int) -> int:
        """After so many steps: the index of the next sample, as the checkpoint holds it."""
        if step == 0:
            return 0
        loop = manifest.read(self.checkpoints[step]).state.get("loop")
        position = loop.get("position") if isinstance(loop, dict) else None
        if not isinstance(position, int):
            raise UserError(f"{self.checkpoints[step]} does not say at which sample it stands.")
        return position
