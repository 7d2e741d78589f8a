"""A mixture from raw text to the loader's batches: every rank's samples, edits, dry domains, bad weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigtrain.data
from bigtrain.data.loader import batches
from bigtrain.data.mixed import MixedSet
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError

Mixture = Callable[..., TextData]


@pytest.fixture(scope="module")
def mixture(chapters: list[str], tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Two domains of different sizes: `mixture(weights, ...)`."""
    home = tmp_path_factory.mktemp("mixture")
    for name, texts in (("early", chapters[:10]), ("late", chapters[10:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (home / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def build(early: float = 0.7, late: float = 0.3, **settings: Any) -> TextData:
        domains = {
            "early": {"path": str(home / "early.jsonl"), "weight": early},
            "late": {"path": str(home / "late.jsonl"), "weight": late},
        }
        given = {"sequence_length": 64, "vocab_size": 512, "held_out": 0.1, "cache": str(home / "cache")}
        return bigtrain.data.text(**{"domains": domains, **given, **settings})

    return build


class Numbers:
    """Samples that say which they are, in the order of a mixture."""

    def __init__(self, data: TextData) -> None:
        assert isinstance(data.train, MixedSet)
        self._len, self.order = len(data.train), data.train.order

    def __len__(self) -> int:
        return self._len

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": np.int64(index)}


def seen(data: TextData, position: int, steps: int, world_size: int, size: int = 64) -> list[list[int]]:
    """The samples of each step over all ranks, in the order of the global batch."""
    found: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        with batches(
            Numbers(data), seed=7, position=position, global_batch_size=size, micro_batch_size=1, rank=rank,
            world_size=world_size,
        ) as mine:  # fmt: skip
            for step, (micro_batches, _) in zip(range(steps), mine, strict=False):
                found[step] += [(m * world_size + rank, int(b["index"][0])) for m, b in enumerate(micro_batches)]  # type: ignore[misc]
    return [[index for _, index in sorted(step)] for step in found]  # type: ignore[misc]


def test_the_order_is_the_same_for_every_number_of_ranks(mixture: Mixture) -> None:
    data = mixture()
    data.prepare()
    expected = seen(data, 128, 2, 1)
    for world_size in (2, 4, 8, 16, 32, 64):
        assert seen(data, 128, 2, world_size) == expected, world_size
    flat = np.array(expected).reshape(-1)
    assert (flat == data.train.order(7)(np.arange(128, 256))).all()


def test_an_epoch_of_a_domain_takes_each_of_its_samples_once_over_edits_and_ranks(mixture: Mixture) -> None:
    first = mixture(0.7, 0.3)
    first.prepare()
    size = 16
    trained = [index for step in seen(first, 0, 4, 1, size) for index in step]
    position = len(trained)
    for early, late, world_size in ((0.2, 0.8, 4), (0.5, 0.5, 2), (0.5, 0.5, 8)):
        again = mixture(early, late)
        kept = json.loads(json.dumps(first.state()))
        assert len(json.dumps(kept)) < 1024
        notes = again.resume(kept, position)
        again.prepare()
        assert bool(notes) == (again.weights != first.weights)
        assert (again.train.order(7)(np.arange(position)) == trained).all()  # the past stays
        trained += [index for step in seen(again, position, 5, world_size, size) for index in step]
        position, first = len(trained), again
    for name, samples in first.sets.items():
        mine = [number for found, number in map(first.train.locate, trained) if found == name]  # type: ignore[union-attr]
        for start in range(0, len(mine), len(samples)):
            epoch = mine[start : start + len(samples)]
            assert len(set(epoch)) == len(epoch), f"{name}: a sample came twice in an epoch"


def test_tokens_come_in_the_shares_that_were_asked_for(mixture: Mixture) -> None:
    for packing in ("concat", "best_fit", "none"):
        data = mixture(0.7, 0.3, packing=packing, sequence_length=512)
        data.prepare()
        order, tokens = data.train.order(0), {"early": 0, "late": 0}
        for index in order(np.arange(1000)).tolist():
            name, number = data.train.locate(index)  # type: ignore[union-attr]
            tokens[name] += int((data.sets[name][number]["labels"] >= 0).sum())
        assert tokens["early"] / sum(tokens.values()) == pytest.approx(0.7, abs=0.02), packing


def test_the_held_out_samples_of_all_domains_come_once_and_spread(mixture: Mixture) -> None:
    data = mixture()
    data.prepare()
    held_out = data.eval
    assert held_out is not None
    theirs = [data._set(name, "eval", remainder=True) for name in data.domains]
    expected = sorted(bytes(samples[i]["input_ids"]) for samples in theirs for i in range(len(samples)))
    assert sorted(bytes(held_out[i]["input_ids"]) for i in range(len(held_out))) == expected


def test_what_runs_dry_is_known_before_the_first_step(mixture: Mixture) -> None:
    told = mixture(when_dry="stop")
    told.prepare()
    assert "is dry at sample" in told.describe() and "ends the run" in told.describe()
    end = told.train.end  # type: ignore[union-attr]
    drawn = told.train.order(0)(np.arange(end))
    assert len(set(drawn.tolist())) == end
    assert {index for index in drawn.tolist() if index < len(told.sets["early"])} == set(range(len(told.sets["early"])))


def test_another_text_is_refused_and_so_is_a_domain_that_is_gone(mixture: Mixture, tmp_path: Path) -> None:
    data = mixture()
    data.prepare()
    then = data.state()
    other = mixture(sequence_length=32)
    other.resume(then, 64)
    with pytest.raises(UserError, match="data.domains.early is not what this run was trained on"):
        other.prepare()
    with pytest.raises(UserError, match="no late any more.*weight=0"):
        mixture(domains={"early": {"path": str(tmp_path)}}).resume(then, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early": 0.7, "late": 0.7}, r"sum to 1.4, not to 1.*early: 0.5, late: 0.5"),
        ({"late": None}, r"data.domains.late has no weight"),
        ({"stages": [{"from_tokens": 100, "weights": {"erly": 1.0}}]}, "no domain erly. Did you mean 'early'"),
        ({"path": "x"}, "either data.path, or data.domains"),
    ],
)
def test_weights_that_mean_nothing(mixture: Mixture, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixture(**settings)


def test_a_run_that_goes_on_reads_past_excluded_documents_and_all_others_keep_their_place(
    mixture: Mixture, tmp_path: Path
) -> None:
    data = mixture()
    data.prepare()
    number, offset = data.sets["late"].shards.place(3)
    file = data._manifests["late"]["sources"][number]["name"]
    (tmp_path / "out.jsonl").write_text(json.dumps({"file": file, "offset": offset}) + "\n")
    again = mixture(exclude=str(tmp_path / "out.jsonl"))
    assert any("goes on without" in note for note in again.resume(data.state(), 64))
    again.prepare()
    assert again.state()["domains"] == data.state()["domains"]
    start, stop = data.sets["late"].shards.bounds(3)
    lost = 0
    assert isinstance(again.train, MixedSet)
    for name, samples in data.sets.items():
        now = again.train.sets[name]
        assert len(now) == len(samples)
        for i in range(len(samples)):
            had = {piece.document for piece in samples.pieces(i)}
            has = {piece.document for piece in now.pieces(i)}
            assert has == (had - {3} if name == "late" else had)
            lost += had != has
    assert lost >= (stop - start) // 64
