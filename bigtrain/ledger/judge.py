"""How far a document's loss lies from that of its peers, under one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from bigtrain.data.sets import IGNORE
from bigtrain.ledger.opened import Sample
from bigtrain.trained import Trained

Floats = NDArray[np.float64]
Key = tuple[str, int]
"""(domain, number of the document in its training split)"""


@dataclass(slots=True)
class Losses:
    """The targets of one document among the samples that were looked at."""

    targets: int = 0
    total: float = 0.0
    """Sum of their losses, in nats."""
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Nats a target."""
        return self.total / self.targets


def document_losses(trained: Trained, samples: Sequence[Sample], batch_size: int) -> dict[Key, Losses]:
    """The loss of every document in `samples`, each of its tokens seen as training saw it; each sample counts once."""
    found: dict[Key, Losses] = {}
    for batch in _batches(samples, batch_size):
        packed = batch[0].packed
        arrays = packed.batch([sample.index for sample in batch])
        inputs = {name: torch.from_numpy(values).to(trained.device) for name, values in arrays.items()}
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits = trained.model(**inputs)
            losses = cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none"
            )
        for sample, row, targets in zip(batch, losses.view_as(labels).cpu().numpy(), arrays["labels"], strict=True):
            at = -1  # of the label that is the piece's first token: a sample's first token is no label
            for piece in packed.pieces(sample.index):
                part = slice(max(at, 0), at + piece.stop - piece.start)
                at += piece.stop - piece.start
                own = row[part][targets[part] != IGNORE].astype(np.float64)
                if len(own):
                    document = found.setdefault((sample.domain, piece.document), Losses())
                    document.targets += len(own)
                    document.total += float(own.sum())
                    document.squares += float((own**2).sum())
    return found


def standing_out(losses: dict[Key, Losses]) -> dict[Key, float]:
    """Of each document: how far its mean loss lies from its peers' median, in units of what is usual.

    A mean over n targets differs from the median by tau^2 + sigma^2 / n: sigma^2 is the variance of tokens within
    documents, and tau^2 that between documents, taken so that the median deviation is a normal one's (the scale by
    which a few strange documents are not hidden by themselves). So short documents are not strange by chance. Above 0:
    the text is harder than its peers; below: easier, as repetitions are.
    """
    means = np.array([document.mean for document in losses.values()])
    counts = np.array([document.targets for document in losses.values()], dtype=np.float64)
    squares = np.array([document.squares for document in losses.values()])
    within = float((squares - counts * means**2).sum() / max(1.0, (counts - 1).sum()))
    away = means - np.median(means)
    scale = np.sqrt(_between(np.abs(away), within / counts) + within / counts)
    return dict(zip(losses, (away / np.maximum(scale, 1e-9)).tolist(), strict=True))


def _between(away: Floats, within: Floats) -> float:
    """tau^2 such that 1.4826 times the median of |away| / sqrt(tau^2 + within) is 1; 0 where it is below 1 already."""
    low, high = 0.0, (2 * float(away.max(initial=0.0))) ** 2
    for _ in range(60):
        middle = (low + high) / 2
        if 1.4826 * np.median(away / np.sqrt(middle + within + 1e-18)) > 1:
            low = middle
        else:
            high = middle
    return high


def _batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Each sample once, in batches of one domain."""
    once = {(sample.domain, sample.index): sample for sample in samples}
    for _, of in groupby(sorted(once, key=lambda key: key), key=lambda key: key[0]):
        while batch := list(islice(of, size)):
            yield [once[key] for key in batch]
