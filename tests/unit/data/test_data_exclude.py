"""The file of `data.exclude`: which documents it means, and what is wrong with one that means none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtrain.data.documents import Document
from bigtrain.data.exclude import Exclude, check_found, merge_nearest, of_domains, read_exclusions
from bigtrain.data.sources import Source
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
