"""How far a document's loss lies from that of its peers, under one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def document_losses(trained: Trained, samples: Sequence[Sample], batch_size: int) -> dict[Key, Floats]:
    """Of every document in `samples` the losses of its targets in nats (n,), seen as training saw them.

    A sample counts once, however often it comes.
    """
    found: dict[Key, list[Floats]] = {}
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
                    found.setdefault((sample.domain, piece.document), []).append(own)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def standing_out(losses: Mapping[Key, Floats]) -> dict[Key, float]:
    """How far each document lies from its peers, in units of what is usual: in its mean loss, or in how far its losses
    lie from the middle one, whichever is farther.

    Text may be strange by being hard, or by being easy, as repetitions are. One that the model has half learned has a
    usual mean: its losses being all alike gives it away.
    """
    middle = float(np.median(np.concatenate(list(losses.values()))))
    level = _distances(list(losses.values()))
    spread = _distances([np.abs(of - middle) for of in losses.values()])
    return dict(zip(losses, np.maximum(np.abs(level), np.abs(spread)).tolist(), strict=True))


def _distances(values: Sequence[Floats]) -> Floats:
    """The mean of each document's values from the median mean, in units of what is usual.

    A mean over n values differs from the median by tau^2 + sigma^2 / n: sigma^2 is the variance of values within
    documents, and tau^2 that between documents, taken so that the median deviation is a normal one's (the scale by
    which a few strange documents are not hidden by themselves). So short documents are not strange by chance.
    """
    means = np.array([of.mean() for of in values])
    counts = np.array([len(of) for of in values], dtype=np.float64)
    within = float(sum(((of - of.mean()) ** 2).sum() for of in values) / max(1.0, (counts - 1).sum()))
    away = means - np.median(means)
    scale = np.sqrt(_between(np.abs(away), within / counts) + within / counts)
    distances: Floats = away / np.maximum(scale, 1e-9)
    return distances


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
