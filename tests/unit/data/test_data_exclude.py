"""The file of `data.exclude`: which documents it means, and what is wrong with one that means none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigtrain.data
from bigtrain.data.documents import Document
from bigtrain.data.exclude import Exclude, check_found, merge_nearest, of_domains, read_exclusions
from bigtrain.data.resuming import Changes, changed, held_at, texts
from bigtrain.data.sets import PackedSet
from bigtrain.data.sources import Source
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError

SOURCES = [Source(f"/data/{name}", "jsonl") for name in ("a/part-1.jsonl", "a/part-2.jsonl", "b/part-1.jsonl")]


def write(folder: Path, *lines: Any) -> Path:
    file = folder / "exclude.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def test_names_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = Source(str(tmp_path / "here.txt"), "text")
    hub = Source("owner/set", "hub")
    lines = [
        {"file": "/data/a/part-1.jsonl", "offset": 7, "step": 3, "text": "line\u2028two"},
        {"file": "part-2.jsonl", "offset": 0},
        {"file": "b/part-1.jsonl", "offset": 9},
        {"file": "./here.txt", "offset": 1},
        {"file": "owner/set", "offset": 12},
        "",
        {"file": "/data/a/part-1.jsonl", "offset": 8},
    ]
    found = read_exclusions(write(tmp_path, *lines), [*SOURCES, here, hub])
    assert found == {0: {7, 8}, 1: {0}, 2: {9}, 3: {1}, 4: {12}}
    twice = read_exclusions(write(tmp_path, {"file": "part-2.jsonl", "offset": 5}), [*SOURCES, SOURCES[1]])
    assert twice == {1: {5}, 3: {5}}, "a source of two domains is excluded from in both"


def test_one_file_for_several_domains(tmp_path: Path) -> None:
    file = write(tmp_path, {"file": "/data/a/part-1.jsonl", "offset": 3}, {"file": "/data/b/part-1.jsonl", "offset": 4})
    found = of_domains(file, {"a": SOURCES[:2], "none": [Source("/data/c.txt", "text")], "b": SOURCES[2:]})
    assert found == {"a": {0: {3}}, "none": {}, "b": {0: {4}}}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"file": "/data/a/part-3.jsonl", "offset": 0}, r"line 2: /data/a/part-3\.jsonl is none .* '/data/a/part-"),
        ({"file": "prat-2.jsonl", "offset": 0}, r"Did you mean '/data/a/part-2\.jsonl'"),
        ({"file": "part-1.jsonl", "offset": 0}, r"may be /data/a/part-1\.jsonl or /data/b/part-1\.jsonl"),
        ({"file": "part-2.jsonl", "offset": -1}, "whole number from 0 on, not -1"),
        ({"file": "part-2.jsonl", "offset": True}, "not True"),
        ({"file": "part-2.jsonl", "offset": 1.0}, "not 1.0"),
        ({"file": "part-2.jsonl", "offset": 1 << 64}, "not 18446744073709551616"),
        ({"offset": 1}, "no 'file'"),
        ("[1]", "no 'file'"),
        ("part-2.jsonl 0", 'not JSON .* A line is {"file"'),
    ],
)
def test_bad_lines(line: Any, says: str, tmp_path: Path) -> None:
    file = write(tmp_path, {"file": "part-2.jsonl", "offset": 0}, line)
    with pytest.raises(UserError, match=says):
        read_exclusions(file, SOURCES)


def test_no_such_file(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=r"no such file\. Did you mean 'exclude.jsonl'"):
        read_exclusions(tmp_path / "exlude.jsonl", SOURCES)


def documents(source: int, offsets: list[int]) -> list[Document]:
    return [Document(f"{source}:{offset}", source, offset) for offset in offsets]


def test_excluded_documents_are_left_out() -> None:
    exclusions = {0: {0, 30}, 2: {5}}
    stream = [*documents(0, [0, 10, 30, 40]), *documents(1, [0, 5]), *documents(2, [5])]
    exclude = Exclude(exclusions)
    assert [document.text for document in exclude(stream)] == ["0:10", "0:40", "1:0", "1:5"]
    check_found("x", exclusions, exclude.nearest, SOURCES)


def test_an_offset_inside_a_document_is_named_with_the_nearest() -> None:
    exclusions = {0: {10, 28, 29}, 1: {99}}
    halves = [documents(0, [0, 10]), [*documents(0, [20, 30]), *documents(1, [0, 50])]]  # as two processes meet them
    near = []
    for half in halves:
        exclude = Exclude(exclusions)
        list(exclude(half))
        near.append(exclude.nearest)
    for parts in (near, near[::-1]):
        merged = merge_nearest(parts)
        assert merged == {(0, 10): 10, (0, 28): 30, (0, 29): 30, (1, 99): 50}
        with pytest.raises(UserError, match=r"at offset 28 of /data/a/part-1.jsonl; the nearest begins at 30"):
            check_found("x", exclusions, merged, SOURCES)
    with pytest.raises(UserError, match=r"offset 1 of /data/b/part-1.jsonl: it has no document"):
        check_found("x", {2: {1}}, {}, SOURCES)


def test_a_source_of_two_domains_has_the_document_in_one() -> None:
    twice = [*SOURCES, SOURCES[0]]
    exclusions = {0: {10}, 3: {10}}
    exclude = Exclude(exclusions)
    list(exclude([*documents(0, [0, 20]), *documents(3, [0, 10])]))
    check_found("x", exclusions, exclude.nearest, twice)


def test_places_are_found_as_by_looking_at_each(prepared: TextData) -> None:
    shards = prepared.sets["data"].shards
    places = [shards.place(document) for document in range(shards.documents)]
    asked = [*places[::3], (0, 1), (10**6, 0), *places[1::3]]
    expected = [places.index(place) if place in places else -1 for place in asked]
    assert -1 in expected and shards.find(np.array(asked, np.uint64)).tolist() == expected
    assert shards.find(np.empty((0, 2), np.uint64)).tolist() == []
    assert shards.nearest(places[4][0], 17) == 0 and shards.nearest(10**6, 17) is None


def test_what_is_left_out_changes_from_positions_on() -> None:
    of: Changes = []
    for position, digest in ((10, "a"), (20, "a"), (30, "b"), (30, "a"), (40, None), (50, None), (60, "a")):
        of = changed(of, position, digest)
    assert of == [(10, "a"), (40, None), (60, "a")]
    assert [held_at(of, at) for at in (0, 9, 10, 39, 40, 59, 60, 10**9)] == [*[None] * 2, *"aa", None, None, *"aa"]
    assert changed([], 10, None) == []


@pytest.fixture
def excluded(prepared: TextData, tmp_path: Path) -> Callable[..., TextData]:
    """The prepared data with a file that names documents (numbers), in a run that goes on from position 8."""

    def build(documents: list[int] | None, then: Any, position: int = 8, more: Any = ()) -> TextData:
        shards = prepared.sets["data"].shards
        sources = prepared._manifests["data"]["sources"]
        places = [shards.place(document) for document in documents or []]
        lines = [{"file": sources[number]["name"], "offset": offset} for number, offset in places]
        file = write(tmp_path, *lines, *more)
        data = bigtrain.data.text(
            path=str(prepared.folder), sequence_length=64, cache=str(tmp_path / "cache"),
            exclude=None if documents is None else str(file),
        )  # fmt: skip
        data.resume(then, position)
        data.prepare()
        return data

    return build


def documents_of(data: TextData, position: int) -> set[int]:
    samples = data.train_at(position)
    assert isinstance(samples, PackedSet)
    return {piece.document for i in range(len(samples)) for piece in samples.pieces(i)}


def test_the_state_tells_what_was_left_out_when(prepared: TextData, excluded: Callable[..., TextData]) -> None:
    then = prepared.state()
    whole, state = documents_of(prepared, 0), then
    assert excluded(None, then).state() == then == prepared.fingerprint, "without exclusions it is what it was"
    history = [(8, [3]), (16, [3]), (24, [5, 3]), (32, None), (40, [1]), (48, [3])]
    for position, out in history:
        data = excluded(out, state, position)
        state = json.loads(json.dumps(data.state()))
    (first, a), (second, b), (third, none), (fourth, c), (fifth, again) = state["exclusions"]
    assert (first, second, third, fourth, fifth) == (8, 24, 32, 40, 48)
    assert a == again and none is None and len({a, b, c}) == 3
    for position, out in [(0, None), *history]:
        for at in (position, position + 7):
            assert documents_of(data, at) == whole - set(out or ()), at
    assert all(len(data.train_at(at)) == len(prepared.train) for at in (0, 8, 24))
    assert texts(state) == texts(then) == data.texts


def test_the_state_stays_small(prepared: TextData, excluded: Callable[..., TextData]) -> None:
    state = prepared.state()
    for change in range(24):
        state = excluded([change % 9], state, 10**12 + change).state()
    assert len(state["exclusions"]) == 24 and len(json.dumps(state)) < 1024


def test_what_was_left_out_outlives_the_file_and_is_checked(
    prepared: TextData, excluded: Callable[..., TextData], tmp_path: Path
) -> None:
    state = excluded([3, 4], prepared.state()).state()
    (kept,) = (tmp_path / "cache").glob("excluded-*.jsonl")
    (tmp_path / "exclude.jsonl").unlink()
    later = excluded([5], state, 16)
    assert documents_of(later, 8).isdisjoint({3, 4})
    assert read_exclusions(kept, [Source(**entry) for entry in later._manifests["data"]["sources"]])
    as_kept = bigtrain.data.text(
        path=str(prepared.folder), sequence_length=64, cache=str(tmp_path / "cache"), exclude=str(kept)
    )
    as_kept.resume(state, 16)
    assert as_kept.state() == state, "it may itself be data.exclude"
    kept.write_text(kept.read_text().replace('"document": 3', '"document": 2'))
    for damaged in ("is damaged", "is gone"):
        with pytest.raises(UserError, match=rf"{kept.name} {damaged}"):
            excluded([5], state, 16).train_at(8)
        kept.unlink(missing_ok=True)


def test_what_no_document_begins_at_is_named_and_nothing_is_kept(
    prepared: TextData, excluded: Callable[..., TextData], tmp_path: Path
) -> None:
    number, offset = prepared.sets["data"].shards.place(2)
    name = prepared._manifests["data"]["sources"][number]["name"]
    data = excluded([1], prepared.state(), more=[{"file": name, "offset": offset + 1}])
    with pytest.raises(UserError, match=rf"offset {offset + 1} of {re.escape(name)}; the nearest begins at {offset}\."):
        _ = data.train
    assert not list((tmp_path / "cache").glob("*excluded*"))
    held_out = prepared._set("data", "eval", remainder=True).shards.place(0)
    name = prepared._manifests["data"]["sources"][held_out[0]]["name"]
    out = excluded([1], prepared.state(), more=[{"file": name, "offset": held_out[1]}])  # not trained on anyway
    assert out.state() == excluded([1], prepared.state()).state()
