"""Documents out of files of every kind, streamed."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import readers
from bigtrain.data.readers import Reader, cut
from bigtrain.data.settings import Reading
from bigtrain.data.sources import find_sources
from bigtrain.errors import UserError

TEXTS = ["Call me Ishmael.", "naïve – 日本語 🐳\r\nsecond line\n", "a" * 3000]


def read(*paths: Path | str, **settings: Any) -> tuple[list[str], Reader]:
    reader = Reader(find_sources([str(path) for path in paths]), Reading(**settings))
    return [document.text for document in reader], reader


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_kind_gives_the_same_documents(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        for kind, opened in ((".txt", open), (".md.gz", gzip.open), (".txt.xz", lzma.open)):
            folder = tmp_path / kind.replace(".", "")
            folder.mkdir(exist_ok=True)
            with opened(folder / f"{number}{kind}", "wb") as file:
                file.write(text.encode())
    plain = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "id": 1} for text in TEXTS])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": TEXTS}), tmp_path / "c.parquet")
    for name in ("txt", "mdgz", "txtxz", "a.jsonl", "b.jsonl.gz", "c.parquet"):
        documents, reader = read(tmp_path / name)
        assert documents == TEXTS, name
        assert reader.consumed == reader.total > 0


def test_folders_globs_lists_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path)[0] == ["a.txt", "b.txt", "sub/c.txt"]
    assert read(tmp_path / "*.txt")[0] == ["a.txt", "b.txt"]
    assert read(tmp_path / "**/*.txt")[0] == ["a.txt", "b.txt", "sub/c.txt"]
    assert read(tmp_path / "sub", tmp_path / "b.txt", tmp_path / "b.txt")[0] == ["sub/c.txt", "b.txt"]


def test_the_shipped_corpus_is_cut_into_its_chapters() -> None:
    separator = r"(?m)^(?=CHAPTER \d+\.)"
    documents, _ = read("pkg://bigtrain/data/corpus/moby-dick.txt.xz", document_separator=separator)
    assert len(documents) == 135
    assert documents[0].startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert documents[-1].startswith("CHAPTER 135. The Chase.")
    assert sum(len(text.encode()) for text in documents) == 1_204_997


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab\n#", max_size=300),
    sizes=st.lists(st.integers(1, 40), min_size=1),
    pattern=st.sampled_from([r"(?m)^(?=#)", r"\n\n{1,3}", r"#a", r"(?m)^#.{0,2}$", r"(?<=#)#", r"(?=a)"]),
)
def test_cutting_a_stream_equals_cutting_the_whole(text: str, sizes: list[int], pattern: str) -> None:
    chunks, at = [], 0
    while at < len(text):
        chunks.append(text[at : at + sizes[len(chunks) % len(sizes)]])
        at += len(chunks[-1])
    whole = [piece for piece in re.split(pattern, text) if piece]
    before, readers.LOOKAHEAD = readers.LOOKAHEAD, 8
    try:
        assert [piece for _, piece in cut(iter(chunks), re.compile(pattern))] == whole
    finally:
        readers.LOOKAHEAD = before


def test_a_separator_across_blocks_of_a_large_file(tmp_path: Path) -> None:
    """With the real block size: 5 MB, a document mark every 997 characters, some of them across two blocks."""
    body = ("0123456789 é" * 90)[:990]
    text = "".join(f"\n<<<{i % 10}>>>"[:7] + body for i in range(5000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    documents, _ = read(tmp_path / "a.txt", document_separator=r"\n<<<\d>>")
    assert documents == [body] * 5000


def test_empty_and_blank_documents_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": ""}, {"text": " \n"}, {"text": "b"}])
    path.write_text(path.read_text() + "\n\n")
    documents, reader = read(path)
    assert documents == ["a", "b"] and reader.empty == 2 and reader.broken == 0


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_not_utf8_names_file_and_byte(tmp_path: Path, pack: Any) -> None:
    data = "é".encode() * 600_000 + b"abc\xe9 d"  # beyond the first block, which ends within a character
    path = tmp_path / ("bad.txt" if pack(b"") == b"" else "bad.txt.gz")
    path.write_bytes(pack(data))
    with pytest.raises(UserError, match=rf"{path} is not UTF-8: byte 1,200,003"):
        read(path)


def test_not_utf8_at_the_very_end_and_in_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xc3")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8: byte 3 "):
        read(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl is not UTF-8: byte 24 "):
        read(tmp_path / "b.jsonl", skip_broken=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "cut of', "line 2: not JSON"),
        ("[1, 2]", "line 2: not a JSON object"),
        ("null", "line 2: not a JSON object"),
        ('{"text": null}', "line 2: 'text' is not a text but null"),
        ('{"text": 5}', "line 2: 'text' is not a text but 5"),
        ('{"text": "\\ud800"}', "line 2: 'text' holds half a surrogate pair"),
    ],
)
def test_a_broken_line_is_named_and_left_out_only_if_asked(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + line + '\n{"text": "three"}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, {words}.*data.skip_broken=true"):
        read(path)
    documents, reader = read(path, skip_broken=True)
    assert documents == ["one", "three"] and reader.broken == 1
    assert reader.first_broken is not None and words in reader.first_broken


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_column_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [{"texts": "x", "id": 1}])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"texts": ["x"], "id": [1]}), path)
    with pytest.raises(UserError, match=rf"a\.{suffix}.*no column 'text'.*Did you mean 'texts'"):
        read(path, skip_broken=True)
    assert read(path, text_column="texts")[0] == ["x"]
    with pytest.raises(UserError, match="'id' is not a text but 1"):
        read(path, text_column="id")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.xz", "a.parquet"])
def test_a_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(5000))
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 99] * 99}), path)
    else:
        path.write_bytes((gzip.compress if name.endswith("gz") else lzma.compress)(data))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"{path} is (damaged or cut short|not a whole Parquet file)"):
        read(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("here/corpsu.txt", "no such file or folder. Did you mean 'corpus.txt'"),
        ("nowhere/at/all.txt", "no such file or folder"),
        ("/no/such/folder", "no such file or folder"),
        ("here/*.jsonl", "no file matches this glob"),
        ("here/other", "holds no file of a known kind"),
        ("here/other/picture.png", "unknown kind of file"),
        ("here/empty.txt", "is empty"),
        ("pkg://nobody/a.txt", "no package 'nobody'"),
        ("pkg://bigtrain/a.txt", "carries no such text file"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/other").mkdir(parents=True)
    (tmp_path / "here/other/picture.png").write_bytes(b"x")
    (tmp_path / "here/corpus.txt").write_text("text")
    (tmp_path / "here/empty.txt").touch()
    with pytest.raises(UserError, match=re.escape(words)):
        find_sources([path])


def test_no_path_at_all() -> None:
    with pytest.raises(UserError, match="names nothing"):
        find_sources([])
