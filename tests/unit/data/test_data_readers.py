"""Documents out of files of every kind, streamed."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
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


zstd = zstandard.ZstdCompressor().compress


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_kind_gives_the_same_documents(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        for kind, pack in ((".txt", bytes), (".md.gz", gzip.compress), (".txt.xz", lzma.compress), (".md.zst", zstd)):
            folder = tmp_path / kind.replace(".", "")
            folder.mkdir(exist_ok=True)
            (folder / f"{number}{kind}").write_bytes(pack(text.encode()))
    plain = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "id": 1} for text in TEXTS])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": TEXTS}), tmp_path / "c.parquet")
    (tmp_path / "d.json.zst").write_bytes(zstd(plain.read_bytes()[:2000]) + zstd(plain.read_bytes()[2000:]))
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    names = ("txt", "mdgz", "txtxz", "mdzst", "a.jsonl", "b.jsonl.gz", "c.parquet", "d.json.zst", "saved")
    for name in names:
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
    text=st.text(alphabet="abé🐳\n#", max_size=300),
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
        pieces = list(cut(iter(chunks), re.compile(pattern)))
    finally:
        readers.LOOKAHEAD = before
    assert [piece for _, piece in pieces] == whole
    for offset, piece in pieces:
        assert text.encode()[offset : offset + len(piece.encode())].decode() == piece
    assert [offset for offset, _ in pieces] == sorted({offset for offset, _ in pieces})


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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow"])
def test_a_column_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    table = pyarrow.table({"texts": ["x"], "id": [1]})
    if suffix == "jsonl":
        write_jsonl(path, [{"texts": "x", "id": 1}])
    elif suffix == "arrow":
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=rf"a\.{suffix}.*no column 'text'.*Did you mean 'texts'"):
        read(path, skip_broken=True)
    assert read(path, text_column="texts")[0] == ["x"]
    with pytest.raises(UserError, match="'id' is not a text but 1"):
        read(path, text_column="id")


@pytest.mark.parametrize(
    "name",
    [*(f"a{kind}{packed}" for kind in (".txt", ".jsonl") for packed in (".gz", ".xz", ".zst")),
     "a.parquet", "file.arrow", "stream.arrow"],
)  # fmt: skip
def test_a_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(5000))
    table = pyarrow.table({"text": ["x" * 99] * 99})
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, path)
    elif name.endswith("arrow"):
        with (pyarrow.ipc.new_file if "file" in name else pyarrow.ipc.new_stream)(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd}[name.rpartition(".")[2]]
        path.write_bytes(pack(data))
    whole = path.read_bytes()
    for share in (0.5, 0.98):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=rf"{path} is (damaged or cut short|not a whole (Parquet|Arrow) file)"):
            read(path)
    path.write_bytes(b"no such thing at all, and long enough to be read as if it were one")
    with pytest.raises(UserError, match=rf"{path} is (damaged or cut short|not a whole (Parquet|Arrow) file)"):
        read(path)


def test_a_file_that_vanished_between_finding_and_reading(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    sources = find_sources([str(path)])
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} cannot be read: No such file"):
        list(Reader(sources, Reading()))


def test_only_so_many_documents_the_first_ones(tmp_path: Path) -> None:
    texts = ["one", " ", "two", "three", "four"]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    (tmp_path / "b.jsonl").write_text("this would be a broken line")  # and is not read
    paths = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for number in (1, 2, 4):
        documents, reader = read(*paths, max_documents=number)
        assert documents == ["one", "two", "three", "four"][:number]
        assert reader.consumed == reader.total
    with pytest.raises(UserError, match="not JSON"):
        read(*paths, max_documents=5)


def test_json_beside_text_is_settings_and_alone_is_json_lines(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "settings.json", [{"text": "in json"}])
    assert read(tmp_path)[0] == ["in json"]
    (tmp_path / "a.txt").write_text("in text")
    assert read(tmp_path)[0] == ["in text"]
    assert read(tmp_path / "settings.json")[0] == read(tmp_path / "*.json")[0] == ["in json"]
    (tmp_path / "array.json").write_text('[\n{"text": "x"}\n]\n')
    with pytest.raises(UserError, match=r"array.json, line 1: not JSON .* One array is no JSON lines: `jq"):
        read(tmp_path / "array.json")


def test_a_saved_data_set_that_lost_a_file(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    (tmp_path / "saved/data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"not the whole data set that was saved: .*00001-of-00003.arrow is missing"):
        read(tmp_path / "saved")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("here/corpsu.txt", "no such file or folder. Did you mean 'here/corpus.txt'"),
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
