"""Streams documents out of sources, one at a time; every fault is named with its file and place."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bigtrain.data.documents import Document
from bigtrain.data.settings import Reading
from bigtrain.data.sources import ARROW, HUB, JSONL, PARQUET, Source, is_remote, plain
from bigtrain.data.units import Slice, Unit, whole
from bigtrain.errors import UserError, nearest

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

CHUNK = 1 << 20
LOOKAHEAD = 1024
"""Characters that a document separator may match, or look at on either side; what needs more may be missed."""
FILE_BITS = 40
"""The offset of a document in a hub set: the number of its file in the bits above these, in them its row."""


class Reader:
    """Iterates over the documents of `sources`, in order, or over those of one unit of them.

    Memory: one document, and one block of its file.
    """

    def __init__(self, sources: Sequence[Source], reading: Reading, unit: Unit | None = None) -> None:
        self.sources, self.reading = sources, reading
        self.slices = whole(sources) if unit is None else unit.slices
        self.column, self.skip_broken = reading.text_column, reading.skip_broken
        self.separator = re.compile(reading.document_separator) if reading.document_separator is not None else None
        known = all(sources[piece.source].kind != HUB for piece in self.slices)
        self.total = sum(piece.size for piece in self.slices) if known else None
        """Bytes as stored that are to be read; None where the hub does not say."""
        self.consumed = 0
        """Bytes of these read so far."""
        self.empty = 0
        """Documents without a visible character, left out."""
        self.broken = 0
        """Broken records left out (`skip_broken`)."""
        self.first_broken: str | None = None
        """What was wrong with the first of them, and where."""

    def __iter__(self) -> Iterator[Document]:
        done = found = 0
        for piece in self.slices:
            source = self.sources[piece.source]
            read = {JSONL: self._jsonl, PARQUET: self._parquet, ARROW: self._arrow, HUB: self._hub}
            for offset, text in read.get(source.kind, self._text)(source, piece, done):
                if not text or text.isspace():
                    self.empty += 1
                    continue
                yield Document(text, piece.source, offset)
                found += 1
                if found == self.reading.max_documents:
                    self.consumed = self.total or 0
                    return
            done += piece.size
            self.consumed = done

    def _text(self, source: Source, piece: Slice, done: int) -> Iterator[tuple[int, str]]:
        chunks = self._chunks(source, done)
        if self.separator is None:
            return iter([(0, "".join(chunks))])
        return cut(chunks, self.separator)

    def _chunks(self, source: Source, done: int) -> Iterator[str]:
        """The file's text in blocks, decoded strictly."""
        start, rest = 0, b""  # the offset of the first undecoded byte, and the undecoded bytes
        with _opened(source) as (raw, file):
            while True:
                block = file.read(CHUNK)
                data = rest + block
                try:
                    text, used = codecs.utf_8_decode(data, "strict", not block)
                except UnicodeDecodeError as error:
                    raise _not_utf8(source, start + error.start) from error
                yield text
                start, rest = start + used, data[used:]
                self.consumed = done + raw.tell()
                if not block:
                    return

    def _jsonl(self, source: Source, piece: Slice, done: int) -> Iterator[tuple[int, str]]:
        """The lines that begin in the slice."""
        offset, number = piece.start, 0
        with _opened(source) as (raw, file):
            if piece.start:  # a line that began before belongs to the slice before
                file.seek(piece.start - 1)
                offset += len(file.readline()) - 1
            for line in file:
                if piece.stop is not None and offset >= piece.stop:
                    return
                begin, offset, number = offset, offset + len(line), number + 1
                self.consumed = done + (offset - piece.start if raw is file else raw.tell())
                try:
                    record = json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise _not_utf8(source, begin + error.start) from error
                except ValueError as error:
                    if line.strip():
                        hint = " One array is no JSON lines: `jq -c '.[]'` makes them." if line[:1] == b"[" else ""
                        self._skip(f"{_line(source, piece, begin, number)}: not JSON ({error}).{hint}")
                    continue
                if not isinstance(record, dict):
                    self._skip(f"{_line(source, piece, begin, number)}: not a JSON object.")
                elif self.column not in record:
                    raise self._no_column(_line(source, piece, begin, number), record)
                elif fault := self._fault(record[self.column]):
                    self._skip(f"{_line(source, piece, begin, number)}: {fault}")
                else:
                    yield begin, record[self.column]

    def _parquet(self, source: Source, piece: Slice, done: int) -> Iterator[tuple[int, str]]:
        with opened_parquet(source) as file:
            self._check_column(source.name, file.schema_arrow.names)
            stop = file.num_row_groups if piece.stop is None else piece.stop
            rows = [file.metadata.row_group(group).num_rows for group in range(stop)]
            first, wanted = sum(rows[: piece.start]), sum(rows[piece.start :])
            read = 0
            groups = list(range(piece.start, stop))
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[self.column]):
                yield from self._rows(batch.column(0), source.name, first + read)
                read += len(batch)
                self.consumed = done + piece.size * read // max(1, wanted)

    def _arrow(self, source: Source, piece: Slice, done: int) -> Iterator[tuple[int, str]]:
        import pyarrow

        row = 0
        with _tables(source, "Arrow"), _opened(source) as (raw, _):
            magic = raw.read(6)
            raw.seek(0)
            if magic == b"ARROW1":
                file = pyarrow.ipc.open_file(raw)
                schema, batches = file.schema, map(file.get_batch, range(file.num_record_batches))
            else:
                batches = pyarrow.ipc.open_stream(raw)
                schema = batches.schema
            self._check_column(source.name, schema.names)
            for batch in batches:
                yield from self._rows(batch.column(self.column), source.name, row)
                row += len(batch)
                self.consumed = done + min(raw.tell(), piece.size)

    def _hub(self, source: Source, piece: Slice, done: int) -> Iterator[tuple[int, str]]:
        from bigtrain.data import hub

        reading = self.reading
        commit = piece.commit or hub.commit_of(source.name, reading.revision)
        place = (source.name, reading.name, reading.split, commit)
        for file in range(piece.start, hub.count_files(*place) if piece.stop is None else piece.stop):
            row = file << FILE_BITS
            for table in hub.tables(*place, file):
                self._check_column(source.name, table.column_names)
                yield from self._rows(table.column(self.column), source.name, row)
                row += len(table)

    def _rows(self, column: Any, name: str, first: int) -> Iterator[tuple[int, str]]:
        """The texts of a column whose first row is number `first`."""
        for row, text in enumerate(column.to_pylist(), start=first):
            if fault := self._fault(text):
                self._skip(f"{name}, row {row}: {fault}")
            else:
                yield row, text

    def _fault(self, text: Any) -> str | None:
        """Why this is no text."""
        if not isinstance(text, str):
            return f"'{self.column}' is not a text but {json.dumps(text, default=str)[:80]}."
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which is no character
            return f"'{self.column}' holds half a surrogate pair."
        return None

    def _check_column(self, where: str, names: Iterable[str]) -> None:
        if self.column not in names:
            raise self._no_column(where, names)

    def _no_column(self, where: str, names: Iterable[str]) -> UserError:
        return UserError(f"{where}: no column '{self.column}' (data.text_column).{nearest(self.column, names)}")

    def _skip(self, fault: str) -> None:
        if not self.skip_broken:
            raise UserError(f"{fault} Mend it, or leave broken records out with data.skip_broken=true.")
        self.broken += 1
        self.first_broken = self.first_broken or fault


def cut(chunks: Iterable[str], separator: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Cuts a stream of text where `separator` matches, dropping what it matches; pieces of no length are left out.

    Gives (the byte at which it begins in UTF-8, the text).
    """
    buffer, start, scanned = "", 0, 0  # the document begins at `start`; no match is left before `scanned`
    mark = offset = 0  # the byte at buffer[mark] is number `offset`
    for chunk, margin in chain(((chunk, LOOKAHEAD) for chunk in chunks), [("", 0)]):
        buffer += chunk
        for match in separator.finditer(buffer, scanned):
            if match.end() > len(buffer) - margin:  # more text may change this match
                break
            if match.start() > start:
                mark, offset = start, offset + len(buffer[mark:start].encode())
                yield offset, buffer[start : match.start()]
            start = scanned = match.end()
        scanned = max(scanned, len(buffer) - 2 * LOOKAHEAD)
        mark, offset = start, offset + len(buffer[mark:start].encode())
        drop = max(0, start - LOOKAHEAD)  # a separator may look behind
        buffer, start, scanned, mark = buffer[drop:], start - drop, scanned - drop, mark - drop
    if start < len(buffer):
        yield offset, buffer[start:]


@contextmanager
def opened_parquet(source: Source) -> Iterator[ParquetFile]:
    """A Parquet file, of which no more is read than is asked for.

    Raises, also while it is read:
        UserError: it is damaged, no Parquet file, or cannot be read.
        RunError: an object store or server does not answer, after several tries.
    """
    import pyarrow.parquet

    with (
        _tables(source, "Parquet"),
        _opened(source) as (raw, _),
        pyarrow.parquet.ParquetFile(raw, pre_buffer=False) as file,  # else every row group is read at once
    ):
        yield file


@contextmanager
def _tables(source: Source, what: str) -> Iterator[None]:
    """Arrow's faults in the reader's words."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise UserError(f"{source.name} is not a whole {what} file: {error}") from error
    except OSError as error:
        raise UserError(f"{source.name} is damaged or cannot be read: {error}.") from error


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the file itself, whose position is the progress; the same, decompressed). Remote or local."""
    try:
        with _raw(source) as raw, _unpacked(raw, plain(source.name).lower()) as file:
            yield raw, file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{source.name} is damaged or cut short: {error}") from error
    except OSError as error:
        if error.errno is None:  # a decompressor's own
            raise UserError(f"{source.name} is damaged or cut short: {error}") from error
        raise UserError(f"{source.name} cannot be read: {error.strerror or error}.") from error


def _raw(source: Source) -> IO[bytes]:
    if not is_remote(source.name):
        return Path(source.name).open("rb")
    from bigtrain.data.remote import open_remote

    return open_remote(source.name, source.size)


def _unpacked(raw: IO[bytes], name: str) -> Any:
    if name.endswith(".gz"):
        return gzip.open(raw)
    if name.endswith(".xz"):
        return lzma.open(raw)
    if name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), CHUNK)
    return raw


def _line(source: Source, piece: Slice, begin: int, number: int) -> str:
    """Which line it is: by its number from the file's beginning, in a later slice by its byte."""
    return f"{source.name}, " + (f"the line at byte {begin:,}" if piece.start else f"line {number}")


def _not_utf8(source: Source, offset: int) -> UserError:
    return UserError(
        f"{source.name} is not UTF-8: byte {offset:,} cannot be decoded. Convert it first, for example with "
        f"`iconv -f LATIN1 -t UTF-8`."
    )
