"""Object stores and web servers: read like local files, and their faults ended in one clear message."""

from __future__ import annotations

import io
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from bigtrain.data import remote, units
from bigtrain.data.readers import Reader
from bigtrain.data.settings import Reading
from bigtrain.data.sources import find_sources
from bigtrain.data.units import plan_units
from bigtrain.errors import EXIT_USER, RunError, UserError

from .conftest import python
from .s3_server import refusing, serve
from .test_data_units import KINDS, MARK, write

TEXTS = [f"number {number}: naïve 日本語 🐳\nand more" for number in range(500)]


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Any]]:
    with serve() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait between tries."""
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.02, 0.04))


def read(*paths: str, **settings: Any) -> list[tuple[str, int]]:
    reading = Reading(**settings)
    return [(document.text, document.offset) for document in Reader(find_sources(paths, reading.split), reading)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_from_s3_as_from_the_disk(
    s3: tuple[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write(kind, tmp_path / f"a{kind}", TEXTS, 70)
    s3[1].put(str(local), f"whales/kinds/a{kind}", recursive=local.is_dir())
    monkeypatch.setattr(units, "SMALLEST", 4000)
    there, reading = (
        f"s3://whales/kinds/a{kind}",
        Reading(document_separator=MARK if kind[:3] in (".tx", ".md") else None),
    )
    sources = find_sources([there])
    assert [source.size for source in sources] == [source.size for source in find_sources([str(local)])]
    assert all(source.mtime_ns > 1e18 for source in sources)
    plan = plan_units(sources, reading)
    assert kind not in (".jsonl", ".parquet") or len(plan) > 3
    documents = [document for unit in plan for document in Reader(sources, reading, unit)]
    assert documents == list(Reader(find_sources([str(local)]), reading))
    assert [document.text for document in documents] == TEXTS


def test_folders_globs_and_splits_in_s3(s3: tuple[str, Any], tmp_path: Path) -> None:
    import datasets

    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", "notes.pdf", "settings.json"):
        s3[1].pipe(f"whales/folder/{name}", name.encode())
    s3[1].touch("whales/folder/empty-folder/")
    for folder in ("s3://whales/folder", "s3://whales/folder/"):
        assert [text for text, _ in read(folder)] == ["a.txt", "b.txt", "sub/c.txt"]
    assert [text for text, _ in read("s3://whales/folder/*.txt")] == ["a.txt", "b.txt"]
    assert [text for text, _ in read("s3://whales/folder/**/*.txt", "s3://whales/folder/a.txt")][-1] == "sub/c.txt"

    parts = {"train": ["one", "two"], "test": ["three"]}
    saved = datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": texts}) for split, texts in parts.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    s3[1].put(str(tmp_path / "saved"), "whales/saved", recursive=True)
    for place in (str(tmp_path / "saved"), "s3://whales/saved"):
        assert [text for text, _ in read(place)] == ["one", "two"]
        assert [text for text, _ in read(place, split="test")] == ["three"]
        with pytest.raises(UserError, match=r"no split 'tests' \(data.split\). Did you mean 'test'"):
            find_sources([place], "tests")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://whales/folder/b.txx", "no such file or folder. Did you mean 'b.txt'"),
        ("s3://whales/folder/*.parquet", "no file matches this glob"),
        ("s3://whales/folder/**.txt", "Invalid pattern: '**' can only be an entire path component"),
        ("s3://sharks/a.txt", "there is no bucket 'sharks'"),
        ("s3://sharks/*.txt", "there is no bucket 'sharks'"),
        ("s3://whales/other/notes.pdf", "unknown kind of file"),
        ("s4://whales/a.txt", "s4:// is no known kind of address. There are: az, file, gs, hf, http"),
        ("gs://whales/a.txt", "gs:// needs gcsfs: pip install gcsfs"),
        ("memory://nowhere/a.txt", "no such file or folder"),
    ],
)
def test_addresses_that_lead_nowhere(s3: tuple[str, Any], path: str, words: str) -> None:
    for name in ("folder/b.txt", "other/notes.pdf"):
        s3[1].pipe(f"whales/{name}", b"text")
    with pytest.raises(UserError) as caught:
        find_sources([path])
    assert f"data.path={path}: {words}" in str(caught.value)


def test_a_store_that_refuses_the_key_ends_the_command_with_one_message(s3: tuple[str, Any], tmp_path: Path) -> None:
    address, store = s3
    store.pipe("whales/secret/a.txt", b"text")
    sources = find_sources(["s3://whales/secret/a.txt"])
    with refusing(address):
        process = python(
            "import sys; from bigtrain.cli import main; "
            f"sys.exit(main(['prepare', 'data.path=s3://whales/secret', 'data.cache={tmp_path}']))"
        )
        out, err = process.communicate(timeout=100)
        assert process.returncode == EXIT_USER
        assert err.startswith("bigtrain: data.path=s3://whales/secret: the store refuses the key")
        assert err.count("\n") == 1
        assert "AWS_ACCESS_KEY_ID" in err
        assert out == ""
        with pytest.raises(UserError, match="s3://whales/secret/a.txt: the store refuses the key"):
            list(Reader(sources, Reading()))  # between finding it and reading it


def test_without_s3fs_the_extra_is_named() -> None:
    process = python(
        "import sys; sys.modules['s3fs'] = None; from bigtrain.cli import main; "
        "sys.exit(main(['prepare', 'data.path=s3://whales/a.txt']))"
    )
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (EXIT_USER, "")
    assert err == "bigtrain: data.path=s3://whales/a.txt: s3:// needs s3fs: pip install 'bigtrain[s3]'.\n"


@pytest.mark.usefixtures("quick")
def test_an_object_that_vanishes_while_it_is_read_is_tried_again_and_then_named(
    s3: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)
    lines = b'{"text": "%s"}\n' % (b"x" * 1000)
    s3[1].pipe("whales/going.jsonl", lines * 1000)
    stream = iter(Reader(find_sources(["s3://whales/going.jsonl"]), Reading()))
    assert len(next(stream).text) == 1000
    s3[1].rm("whales/going.jsonl")
    with pytest.raises(RunError, match=r"s3://whales/going.jsonl cannot be read \(FileNotFoundError.*tried 4 times"):
        list(stream)
    said = capfd.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in said] == [f"trying again in {s} s" for s in (0.01, 0.02, 0.04)]

    s3[1].pipe("whales/shrinking.jsonl", lines * 1000)
    stream = iter(Reader(find_sources(["s3://whales/shrinking.jsonl"]), Reading()))
    next(stream)
    s3[1].pipe("whales/shrinking.jsonl", lines * 999)  # the last block alone is shorter
    with pytest.raises(RunError, match=r"shrinking.jsonl cannot be read"):
        list(stream)


class Web:
    """A web server of files with faults: every `bad`-th request breaks off, `ranges` False sends files whole."""

    def __init__(self, files: dict[str, bytes], ranges: bool = True) -> None:
        self.files, self.ranges, self.bad, self.count, self.sent = files, ranges, 0, 0, 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                data = web.files.get(self.path.partition("?")[0])
                if data is None:
                    self.send_error(404)
                    return
                status, wanted = 200, self.headers.get("Range")
                if wanted and web.ranges:
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    status, data = 206, data[int(first) : int(last) + 1]
                self.send_response(status)
                if web.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    web.count += 1
                    broken = web.bad and web.count % web.bad == 0
                    self.wfile.write(data[: len(data) // 2] if broken else data)
                    self.close_connection = bool(broken)
                    web.sent += len(data)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Web:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.usefixtures("quick")
def test_connections_that_break_cost_tries_and_no_document(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1 << 14)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4).encode()
    with Web({"/a.jsonl": lines}) as web:
        web.bad = 3
        assert [text for text, _ in read(f"{web.address}/a.jsonl?key=1")] == TEXTS * 4
    said = capfd.readouterr().err
    assert said.count("trying again in 0.01 s") >= 3
    assert f"data: {web.address}/a.jsonl?key=1: ClientPayloadError" in said


@pytest.mark.usefixtures("quick")
def test_web_servers_that_cannot(capfd: pytest.CaptureFixture[str]) -> None:
    with Web({}) as web, pytest.raises(UserError, match="a.txt: no such file or folder"):
        find_sources([f"{web.address}/a.txt"])
    with (
        Web({"/a.txt": b"x" * 20_000_000}, ranges=False) as web,
        pytest.raises(UserError, match="cannot send part of a file; download it"),
    ):
        read(f"{web.address}/a.txt")
    assert capfd.readouterr().err == ""
    with pytest.raises(RunError, match=r"cannot be read \(.*Cannot connect"):
        find_sources(["http://127.0.0.1:9/a.txt"])
    assert capfd.readouterr().err.count("trying again") == 3


def test_a_large_remote_file_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is fetched than is read, and one block."""
    monkeypatch.setattr(remote, "BLOCK", 1 << 20)
    line = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    with Web({"/a.jsonl": line * 3000}) as web:  # 30 MB
        stream = iter(Reader(find_sources([f"{web.address}/a.jsonl"]), Reading()))
        for documents in (1, 1000, 1999):
            for _ in range(documents):
                next(stream)
            read_so_far = 10_000 * documents + (0 if documents < 1999 else 10_000_000)
            assert web.sent < read_so_far + (3 << 20)
        assert next(stream, None) is None


def test_a_large_remote_table_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group at a time, and of it the column alone."""
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)
    column = [random.randbytes(500).hex() for _ in range(8000)]
    for other, all_of_it in (({}, 10), ({"other": column}, 11)):
        content = io.BytesIO()
        table = pyarrow.table({"text": column, **other})
        pyarrow.parquet.write_table(table, content, row_group_size=500, compression="none")
        with Web({"/a.parquet": content.getvalue()}) as web:  # 8 MB, and 16 MB
            stream = iter(Reader(find_sources([f"{web.address}/a.parquet"]), Reading()))
            next(stream)
            assert web.sent < 2 << 20
            assert len([*stream]) == 7999
            assert web.sent < all_of_it << 20


def test_any_file_system_of_fsspec() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/shelf/a.txt", b"one")
    memory.pipe("/shelf/b.jsonl", b'{"text": "two"}\n')
    assert read("memory://shelf") == [("one", 0), ("two", 0)]
    assert read("memory://shelf/*.jsonl") == [("two", 0)]
    assert read("memory://shelf/a.txt") == [("one", 0)]
