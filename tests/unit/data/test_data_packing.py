"""Best-fit packing, batches, pieces, and documents that are taken out, over real shards."""

from __future__ import annotations

import lzma
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bigtrain.data.packing
from bigtrain.data.packing import best_fit_decreasing
from bigtrain.data.sets import IGNORE, PackedSet
from bigtrain.errors import UserError
from bigtrain.models import decoder
from bigtrain.objectives import causal_lm
from tests.unit.data.test_data_sets import LENGTHS, packed, shards

WAYS = [("concat", False), ("concat", True), ("best_fit", False), ("best_fit", True), ("none", False)]


def textbook(lengths: list[int], room: int) -> list[int]:
    """Best-fit decreasing as it is told: one item after the other; what each bin holds."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [number for number, held in enumerate(bins) if held + length <= room]
        if fits:
            bins[max(fits, key=lambda number: bins[number])] += length
        else:
            bins.append(length)
    return sorted(bins)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=80))))
def test_all_items_of_a_length_at_once_are_packed_as_one_by_one(case: tuple[int, list[int]]) -> None:
    room, lengths = case
    bins = best_fit_decreasing(np.array(lengths, np.int64), room)
    assert sorted(np.bincount(bins, weights=lengths).tolist()) == textbook(lengths, room)
    assert list(dict.fromkeys(bins.tolist())) == list(range(bins.max() + 1 if lengths else 0))  # by their first items


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, length=st.integers(1, 15), block=st.integers(1, 40))
def test_best_fit_cuts_no_document_that_fits(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], length: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bigtrain.data.packing, "BLOCK_DOCUMENTS", block)
        samples = packed(shards(folder, lengths, 7), length, "best_fit", folder)
    parts: dict[int, list[tuple[int, int]]] = {}
    firsts = []
    for index in range(len(samples)):
        pieces = samples.pieces(index)
        assert sum(piece.stop - piece.start for piece in pieces) <= length + 1
        assert [piece.start for piece in pieces] == sorted(piece.start for piece in pieces)
        firsts.append(pieces[0].start)
        for document, start, stop in pieces:
            parts.setdefault(document, []).append((start, stop))
    end = 0
    for document, n in enumerate(lengths):
        start, end = end, end + n
        found = sorted(parts.get(document, []))
        if n == 1:
            assert not found  # no target
        elif n <= length + 1:
            assert found == [(start, end)]
        else:  # full, with one token of overlap, but for the rest
            want = [(at, min(at + length + 1, end)) for at in range(start, end - 1, length)]
            assert found == want
    targets = np.concatenate([[0], *[sample["labels"] for sample in samples]])
    ends = np.cumsum([0, *lengths])
    assert sorted(targets[targets > 0].tolist()) == sorted(set(range(1, ends[-1] + 1)) - {int(e) + 1 for e in ends})
    if block >= len(lengths):
        assert firsts == sorted(firsts)  # samples follow the text


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    length=st.integers(1, 15),
    way=st.sampled_from(WAYS),
    remainder=st.booleans(),
    data=st.data(),
)
def test_batches_are_samples_and_pieces_rebuild_them(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    length: int,
    way: tuple[str, bool],
    remainder: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    t = shards(folder, lengths, 7)
    out = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=4))
    asked = {"document_masks": way[1], "remainder": remainder, "pad_id": 99}
    whole = packed(t, length, way[0], folder, **asked)
    some = packed(t, length, way[0], folder, **asked, without=np.array(out, np.int64))
    assert len(some) == len(whole)
    if not len(some):
        return
    indices = data.draw(st.lists(st.integers(0, len(some) - 1), min_size=1, max_size=5))
    for samples in (whole, some):
        batch = samples.batch(indices)
        for name, values in batch.items():
            assert values.dtype == np.int64
            assert values.flags.c_contiguous
            assert values.base is None
            assert values.tolist() == [samples[index][name].tolist() for index in indices]
    for index in range(len(some)):
        kept = [piece for piece in whole.pieces(index) if piece.document not in out]
        assert some.pieces(index) == kept  # every other token stays, in order
        rebuilt(some, index, length)
        if len(kept) == len(whole.pieces(index)):
            for name, values in whole[index].items():
                assert some[index][name].tolist() == values.tolist()


def rebuilt(samples: PackedSet, index: int, length: int) -> None:
    """A sample is what its pieces say, shifted, and padded at its end."""
    pieces, sample = samples.pieces(index), samples[index]
    tokens = [token for piece in pieces for token in samples.shards.read(piece.start, piece.stop).tolist()]
    owner = [piece.document for piece in pieces for _ in range(piece.start, piece.stop)]
    real = max(0, len(tokens) - 1)
    assert sample["input_ids"].tolist() == [*tokens[:-1], *[99] * (length - real)]
    apart = samples.document_masks or not samples._mixed
    labels = [
        token if a == b or not apart else IGNORE for token, a, b in zip(tokens[1:], owner, owner[1:], strict=False)
    ]
    assert sample["labels"].tolist() == [*labels, *[IGNORE] * (length - real)]
    if samples.document_masks:
        ids = sample["document_ids"].tolist()
        same = [a == b for a, b in pairwise(ids[:real])]
        assert same == [a == b for a, b in pairwise(owner[:real])]
        assert not set(ids[:real]) & set(ids[real:])
        assert ids == sorted(ids)


def paragraphs() -> list[int]:
    """Of Moby Dick's paragraphs: the number of bytes, the tokens of the smallest byte-level vocabulary, and an end."""
    text = lzma.decompress(resources.files("bigtrain").joinpath("data/corpus/moby-dick.txt.xz").read_bytes()).decode()
    return [len(paragraph.encode()) + 1 for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


@pytest.mark.parametrize("length", [512, 1024, 2048, 8192])
def test_real_documents_fill_sequences(tmp_path: Path, length: int) -> None:
    lengths = paragraphs()
    assert len(lengths) > 2000
    samples = packed(shards(tmp_path, lengths, 1 << 20, "uint32"), length, "best_fit", tmp_path)
    kept = sum(piece.stop - piece.start for index in range(len(samples)) for piece in samples.pieces(index))
    assert kept / (len(samples) * (length + 1)) >= 0.995


def test_the_index_is_made_once(tmp_path: Path) -> None:
    t = shards(tmp_path, [5, 9, 3, 30, 2], 7)
    cache = tmp_path / "cache"
    (cache / ".best_fit-left.tmp").mkdir(parents=True)  # by a process that was killed
    with ThreadPoolExecutor(4) as pool:  # as ranks do that open it at the same time
        first, *_ = pool.map(lambda _: packed(t, 10, "best_fit", cache), range(4))
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}
    again = packed(t, 10, "best_fit", cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")} == made
    assert [first.pieces(i) for i in range(len(first))] == [again.pieces(i) for i in range(len(again))]
    packed(t, 11, "best_fit", cache)
    (tmp_path / "other").mkdir()
    packed(shards(tmp_path / "other", [5, 9, 3, 31, 2], 7), 10, "best_fit", cache)
    assert len([path for path in cache.iterdir() if path.name != ".best_fit-left.tmp"]) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="index of data.packing=best_fit cannot be written"):
        packed(t, 10, "best_fit", tmp_path / "file" / "cache")


@torch.no_grad()
def loss(samples: PackedSet, micro: int) -> tuple[float, int]:
    """Over all samples in micro-batches: the sum of the losses, and of the targets."""
    torch.manual_seed(0)
    model = decoder(vocab_size=1024, sequence_length=32, layers=2, heads=4, width=32)
    objective = causal_lm()
    total, targets = 0.0, 0
    for at in range(0, len(samples), micro):
        arrays = samples.batch(list(range(at, min(at + micro, len(samples)))))
        batch = {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}
        total += float(objective.loss(model, batch))
        targets += objective.count(batch)
    return total, targets


def test_padding_weighs_nothing(tmp_path: Path) -> None:
    """The loss of a step is its sum over the targets, divided by their number: the same however documents are padded or
    packed, and in whatever micro-batches."""
    lengths = np.random.default_rng(0).integers(2, 30, 40).tolist()
    assert sum(lengths) < 1024
    t = shards(tmp_path, lengths, 7)
    sums = {}
    for packing, masks, micro in (("none", False, 1), ("none", False, 7), ("best_fit", True, 3), ("best_fit", True, 8)):
        sums[packing, micro] = loss(packed(t, 32, packing, tmp_path, document_masks=masks), micro)
    assert {targets for _, targets in sums.values()} == {sum(lengths) - len(lengths)}
    means = [total / targets for total, targets in sums.values()]
    assert max(means) - min(means) < 1e-5
