"""Units: read in their order they are the documents of one straight read; each document is where its place says."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data import units
from bigtrain.data.readers import Reader
from bigtrain.data.settings import Reading
from bigtrain.data.sources import Source, find_sources
from bigtrain.data.units import plan_units

MARK = "\n=====\n"
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
KINDS = [
    *(suffix + packed for suffix in (".txt", ".md", ".jsonl", ".json") for packed in PACK),
    ".parquet",
    ".arrow",
    ".stream.arrow",
    "saved",
]
TEXTS = st.lists(st.text(alphabet='aé\n日🐳 "\\{}=', max_size=30), min_size=1, max_size=30)


def write(kind: str, path: Path, texts: list[str], rows: int) -> Path:
    """`texts` as a file, or saved folder, of this kind; tables in groups of so many rows."""
    table = pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})
    if kind == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=rows)
    elif kind.endswith(".arrow"):
        make = pyarrow.ipc.new_stream if "stream" in kind else pyarrow.ipc.new_file
        with make(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    elif kind == "saved":
        datasets.Dataset(table).save_to_disk(str(path))
    else:
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        content = lines if ".json" in kind else MARK.join(texts)
        path.write_bytes(PACK["." + kind.rpartition(".")[2] if kind.count(".") == 2 else ""](content.encode()))
    return path


def text_at(source: Source, offset: int, length: int) -> str:
    """What other code than ours finds at a place."""
    path = Path(source.name)
    if source.kind == "parquet":
        return str(pyarrow.parquet.read_table(path).column("text")[offset])
    if source.kind == "arrow":
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
        make = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        with make(path.read_bytes()) as reader:
            return str(reader.read_all().column("text")[offset])
    data = path.read_bytes()
    unpack: Any = {".gz": gzip.decompress, ".xz": lzma.decompress, ".zst": _unzstd}.get(path.suffix, bytes)
    data = unpack(data)[offset:]
    return str(json.loads(data.split(b"\n")[0])["text"]) if source.kind == "jsonl" else data[:length].decode()


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(files=st.lists(TEXTS, min_size=1, max_size=4), rows=st.integers(1, 9), target=st.integers(1, 400))
def test_units_in_order_are_one_straight_read_and_every_place_is_right(
    tmp_path_factory: pytest.TempPathFactory, kind: str, files: list[list[str]], rows: int, target: int
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    separator = MARK if kind.startswith((".txt", ".md")) else None
    paths = [str(write(kind, folder / f"{number}{kind}", texts, rows)) for number, texts in enumerate(files)]
    before, units.SMALLEST = units.SMALLEST, target
    try:
        sources = find_sources(paths) if kind == "saved" else [s for path in paths for s in _one(path)]
        reading = Reading(document_separator=separator)
        plan = plan_units(sources, reading)
    finally:
        units.SMALLEST = before
    straight = list(Reader(sources, reading))
    if separator is None:
        assert [document.text for document in straight] == [
            t for texts in files for t in texts if t and not t.isspace()
        ]
    by_units = []
    for unit in plan:
        reader = Reader(sources, reading, unit)
        by_units += list(reader)
        assert reader.consumed == reader.total == unit.size
    assert by_units == straight
    assert [unit.number for unit in plan] == list(range(len(plan)))
    assert sum(unit.size for unit in plan) == sum(source.size for source in sources)
    for document in straight:
        length = len(document.text.encode())
        assert text_at(sources[document.source], document.offset, length) == document.text
    if reading.document_separator is None:
        few = Reading(max_documents=max(1, len(straight) // 2))
        assert len(plan_units(sources, few)) == 1
        assert list(Reader(sources, few, plan_units(sources, few)[0])) == straight[: few.max_documents]


def _one(path: str) -> list[Source]:
    """The source of one file, be it empty."""
    file = Path(path)
    kind = "text" if re.search(r"\.(txt|md)", file.name) else ""
    return find_sources([path]) if file.stat().st_size else [Source(path, kind or "jsonl")]


def test_units_are_even_and_depend_on_the_sources_alone(tmp_path: Path) -> None:
    """Lines and row groups of a large file come in pieces of about the size that is wanted; small files together."""
    mb = 1 << 20
    line = json.dumps({"text": "x" * 1000}) + "\n"
    (tmp_path / "large.jsonl").write_text(line * 5000)
    for number in range(30):
        (tmp_path / f"small-{number:02d}.txt").write_text("y" * 100_000)
    table = pyarrow.table({"text": [f"{number:06d}" * 300 for number in range(4000)]})
    pyarrow.parquet.write_table(
        table, tmp_path / "table.parquet", row_group_size=100, compression="none", use_dictionary=False
    )
    sources = find_sources([str(tmp_path)])
    plan = plan_units(sources, Reading())
    assert plan == plan_units(sources, Reading())
    assert all(unit.size <= mb for unit in plan)
    assert len(plan) < 1.3 * sum(source.size for source in sources) / mb + 2
    large = [piece for unit in plan for piece in unit.slices if piece.source == 0]
    assert len(large) == 5
    assert all(before.stop == after.start for before, after in pairwise(large))
    documents = [list(Reader(sources, Reading(), unit)) for unit in plan]
    assert sum(map(len, documents)) == 5000 + 30 + 4000
    assert documents[3][0].offset % len(line) == 0


def test_a_fault_in_a_later_slice_names_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "x" * 100}) + "\n"
    path.write_text(good * 30_000 + '{"text": \n' + good)
    sources = find_sources([str(path)])
    plan = plan_units(sources, Reading(skip_broken=True))
    assert len(plan) > 2
    reader = Reader(sources, Reading(skip_broken=True), plan[-1])
    assert list(reader)[-1].text == "x" * 100
    assert reader.first_broken is not None
    assert f"{path}, the line at byte {len(good) * 30_000:,}: not JSON" in reader.first_broken
