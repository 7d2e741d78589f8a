"""From documents to shards: each unit is read, divided into training and held-out documents, and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.cleaning import Documents, read_table, table_name
from bigtrain.data.documents import Document
from bigtrain.data.encode import Checked
from bigtrain.data.settings import Preparation
from bigtrain.data.shards import EVAL, TRAIN
from bigtrain.data.sources import Source
from bigtrain.data.units import Unit
from bigtrain.data.writing import SPLITS, SplitWriter, Work

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised at once (one document at least)."""


@dataclass(frozen=True)
class Tokenise:
    """Writes the shards of one unit."""

    preparation: Preparation
    sources: tuple[Source, ...]
    cleaned: Path | None
    tokenizer: Path
    artifact: Path
    library: str
    token_type: str
    crossing: tuple[int, int] | None = None
    """The document, by its place, that goes to the side which is empty."""

    def __call__(self, unit: Unit) -> None:
        """Leaves the unit's marker."""
        held_out, seed = self.preparation.held_out, self.preparation.seed
        documents = Documents(self.preparation.corpus, self.sources, unit) if self.cleaned is None else None
        stream = read_table(self.cleaned / table_name(unit.number)) if self.cleaned else iter(documents or ())
        encode = Checked(self.tokenizer, self.library)
        nearest: dict[str, list[Any]] = {}  # split -> [how far from the other side, source, offset] of the nearest
        with Work(self.artifact).unit(unit.number) as (temporary, marker):
            writers = {
                split: SplitWriter(temporary, split, unit.number, self.token_type, self.preparation.shard_tokens)
                for split in SPLITS
            }
            for batch in batches(stream):
                ids, lengths = encode([document.text for document in batch])
                held = np.zeros(len(batch), bool)
                for number, document in enumerate(batch):
                    if lengths[number] == 0:
                        continue
                    place = place_of(document.text, seed)
                    held[number] = place < held_out
                    split = EVAL if held[number] else TRAIN
                    far = [abs(place - held_out), document.source, document.offset]
                    nearest[split] = min(nearest.get(split, far), far)
                    if self.crossing == (document.source, document.offset):
                        held[number] = not held[number]
                places = np.array([document[1:] for document in batch], np.uint64).reshape(-1, 2)
                of_token = np.repeat(held, lengths)
                for split, side in ((TRAIN, ~held), (EVAL, held)):
                    some_of = side & (lengths > 0)
                    if some_of.any():
                        mine = of_token if split == EVAL else ~of_token
                        writers[split].write(ids[mine], lengths[some_of], places[some_of])
            marker["splits"] = {split: writer.close() for split, writer in writers.items()}
            marker.update(documents.told() if documents else {}, nearest_side=nearest, library=encode.library)


def place_of(text: str, seed: int) -> float:
    """Where a document stands between 0 and 1: held out are those below the share of the held-out."""
    key = seed.to_bytes(8, "little", signed=True)
    return float(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big") / 2**64)


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about BATCH_CHARACTERS."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def crossing(markers: Sequence[dict[str, Any]], held_out: float) -> tuple[int, tuple[int, int]] | None:
    """(unit, place) of the document that goes over to the empty side; None where none has to."""
    count = {split: sum(marker["splits"][split]["documents"] for marker in markers) for split in SPLITS}
    if (held_out == 0 and not count[EVAL]) or all(count.values()) or sum(count.values()) < 1:
        return None
    if sum(count.values()) == 1 and count[TRAIN]:
        return None
    side = TRAIN if count[TRAIN] else EVAL
    nearest = [(m["nearest_side"][side], unit) for unit, m in enumerate(markers) if side in m["nearest_side"]]
    (_, source, offset), unit = min(nearest)
    return unit, (source, offset)
