"""Packing: how full sequences are, how many documents are cut that would fit, and how long it takes, beside peers.

The documents are Moby Dick's paragraphs in the tokens of a vocabulary of 8,192, and 100,000 drawn from them. TRL is
measured where it is installed (`pip install trl`).

    python benchmarks/data_packing.py --out benchmarks/results/data_packing.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import parser, table, write
from numpy.typing import NDArray

from bigtrain.data import text
from bigtrain.data.packing import best_fit_decreasing

Integers = NDArray[np.int64]

LENGTHS = (512, 2048)
DRAWN = 100_000


class Packed(NamedTuple):
    """What became of the documents in sequences of S+1 tokens."""

    sequences: int
    held: int
    """Tokens in them: one that two sequences share counts in both."""
    lost: int
    """Tokens that are in none."""
    cut: int
    """Documents that would fit into one sequence, and lie in several."""
    seconds: float


def paragraphs(cache: Path) -> Integers:
    """Tokens of each paragraph, with its end of text."""
    data = text(
        path="pkg://bigtrain/data/corpus/moby-dick.txt.xz",
        document_separator=r"\n\s*\n",
        sequence_length=512,
        vocab_size=8192,
        held_out=0.0,
        cache=str(cache),
    )
    data.prepare()
    shards: Any = data.train.shards
    return np.diff(shards.ends(0, shards.documents), prepend=0)


def parts(lengths: Integers, room: int) -> tuple[Integers, Integers]:
    """Documents cut every `room - 1` tokens, with one of overlap: (document, tokens) of each part."""
    step = room - 1
    count = -(-(lengths - 1) // step)
    document = np.repeat(np.arange(len(lengths)), count)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return document, np.minimum(room, lengths[document] - number * step)


def bigtrain(lengths: Integers, room: int) -> Packed:
    began = time.perf_counter()
    _, tokens = parts(lengths, room)
    sequence = best_fit_decreasing(tokens, room)
    return Packed(int(sequence.max()) + 1, int(tokens.sum()), 0, 0, time.perf_counter() - began)


def first_fit(lengths: Integers, room: int) -> Packed:
    """Each into the first sequence with room, in the order in which they come."""
    began = time.perf_counter()
    _, tokens = parts(lengths, room)
    left = np.full(len(tokens), room)
    opened = 1
    for length in tokens.tolist():
        at = int(np.argmax(left[:opened] >= length))
        if left[at] < length:
            at, opened = opened, opened + 1
        left[at] -= length
    return Packed(opened, int(tokens.sum()), 0, 0, time.perf_counter() - began)


def concatenate(lengths: Integers, room: int) -> Packed:
    """End to end, cut every `room - 1` tokens, without what is left over."""
    began = time.perf_counter()
    ends = np.cumsum(lengths)
    first, last = (ends - lengths) // (room - 1), (ends - 2) // (room - 1)  # sequences of its inputs
    cut = int(((first != last) & (lengths <= room)).sum())
    sequences = int(ends[-1] - 1) // (room - 1)
    lost = int(ends[-1]) - sequences * (room - 1) - 1
    return Packed(sequences, sequences * room, lost, cut, time.perf_counter() - began)


def padded(lengths: Integers, room: int) -> Packed:
    """A document a sequence."""
    began = time.perf_counter()
    held = int(np.minimum(lengths, room).sum())
    return Packed(len(lengths), held, int(lengths.sum()) - held, 0, time.perf_counter() - began)


def trl(strategy: str) -> Callable[[Integers, int], Packed]:
    """TRL's `pack_dataset`. A token is the number of its document; making them is not measured."""

    def pack(lengths: Integers, room: int) -> Packed:
        import pyarrow as pa
        from datasets import Dataset
        from trl.data_utils import pack_dataset

        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        tokens = pa.array(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))
        dataset = Dataset(pa.table({"input_ids": pa.ListArray.from_arrays(offsets, tokens)}))
        began = time.perf_counter()
        rows = pack_dataset(dataset, room, strategy)
        seconds = time.perf_counter() - began
        column = rows.with_format("arrow")[:]["input_ids"].combine_chunks()
        sizes, document = column.value_lengths().to_numpy(), column.flatten().to_numpy()
        pairs = np.unique(np.stack([document, np.repeat(np.arange(len(sizes)), sizes)]), axis=1)
        cut = (np.bincount(pairs[0], minlength=len(lengths)) > 1) & (lengths <= room)
        return Packed(len(sizes), len(document), int(lengths.sum()) - len(document), int(cut.sum()), seconds)

    return pack


WAYS = {
    "bigtrain, best_fit": bigtrain,
    "concatenate and split": concatenate,
    "first fit, as they come": first_fit,
    "a document a sequence": padded,
}
PEER = {"TRL, bfd": trl("bfd"), "TRL, bfd_split": trl("bfd_split"), "TRL, wrapped": trl("wrapped")}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    found = WAYS | (PEER if find_spec("trl") else {})
    if not find_spec("trl"):
        print("TRL is not installed (pip install trl): it is left out.", file=sys.stderr)
    with tempfile.TemporaryDirectory() as cache:
        real = paragraphs(Path(cache))
    sets = {"paragraphs": real, "drawn from them": np.random.default_rng(0).choice(real, DRAWN)}
    rows, results = [], []
    for name, lengths in sets.items():
        for length in LENGTHS:
            for way, pack in found.items():
                packed = pack(lengths, length + 1)
                full = packed.held / (packed.sequences * (length + 1))
                rows.append((f"{len(lengths):,} {name}, S = {length}: {way}", f"{100 * full:.2f}", f"{packed.cut:,}",
                             f"{packed.lost:,}", f"{packed.seconds:.3f}"))  # fmt: skip
                results.append({"documents": name, "S": length, "way": way, "full": full}
                               | packed._asdict())  # fmt: skip
    print(table(("", "full (%)", "cut though they fit", "tokens lost", "seconds"), rows))
    config = {"documents": {name: len(lengths) for name, lengths in sets.items()}, "tokens": int(real.sum())}
    write(arguments.out, "data_packing", config, results)


if __name__ == "__main__":
    main()
