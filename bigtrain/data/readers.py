"""Streams documents out of sources, one at a time; every fault is named with its file and place."""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import IO, Any

from bigtrain.data.settings import Reading
from bigtrain.data.sources import HUB, JSONL, PARQUET, Source
from bigtrain.errors import UserError, nearest

CHUNK = 1 << 20
LOOKAHEAD = 1024
"""Characters that a document separator may match, or look at on either side; what needs more may be missed."""


class Reader:
    """Iterates over the documents of `sources`, in order. Memory: one document, and one block of its file."""

    def __init__(self, sources: Sequence[Source], reading: Reading) -> None:
        self.sources, self.text_column, self.skip_broken = sources, reading.text_column, reading.skip_broken
        self.separator = re.compile(reading.document_separator) if reading.document_separator is not None else None
        self.hub = (reading.name, reading.split, reading.revision)
        self.total = sum(source.size for source in sources) if all(s.kind != HUB for s in sources) else None
        """Bytes of all sources; None where the hub does not say."""
        self.consumed = 0
        """Bytes of the sources read so far."""
        self.empty = 0
        """Documents without a visible character, left out."""
        self.broken = 0
        """Broken records left out (`skip_broken`)."""
        self.first_broken: str | None = None
        """What was wrong with the first of them, and where."""

    def __iter__(self) -> Iterator[str]:
        done = 0
        for source in self.sources:
            read = {JSONL: self._jsonl, PARQUET: self._parquet, HUB: self._hub}.get(source.kind, self._text)
            for document in read(source, done):
                if document and not document.isspace():
                    yield document
                else:
                    self.empty += 1
            done += source.size
            self.consumed = done

    def _text(self, source: Source, done: int) -> Iterator[str]:
        chunks = self._chunks(source, done)
        if self.separator is None:
            return iter(["".join(chunks)])
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

    def _jsonl(self, source: Source, done: int) -> Iterator[str]:
        offset = 0
        with _opened(source) as (raw, file):
            for number, line in enumerate(file, start=1):
                self.consumed = done + raw.tell()
                try:
                    record = json.loads(line.decode("utf-8")) if line.strip() else None
                except UnicodeDecodeError as error:
                    raise _not_utf8(source, offset + error.start) from error
                except ValueError as error:
                    self._skip(f"{source.name}, line {number}: not JSON ({error}).")
                    record = None
                offset += len(line)
                if record is None and line.strip() != b"null":
                    continue
                if not isinstance(record, dict):
                    self._skip(f"{source.name}, line {number}: not a JSON object.")
                else:
                    yield from self._of(record, f"{source.name}, line {number}")

    def _parquet(self, source: Source, done: int) -> Iterator[str]:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        try:
            with pyarrow.parquet.ParquetFile(source.name) as file:
                names = file.schema_arrow.names
                if self.text_column not in names:
                    raise self._no_column(source.name, names)
                row, rows = 0, max(1, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=256, columns=[self.text_column]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        yield from self._of({self.text_column: text}, f"{source.name}, row {row}")
                    self.consumed = done + source.size * row // rows
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{source.name} is not a whole Parquet file: {error}") from error
        except OSError as error:
            raise UserError(f"{source.name} cannot be read: {error}.") from error

    def _hub(self, source: Source, done: int) -> Iterator[str]:
        from bigtrain.data.hub import rows

        for number, record in enumerate(rows(source.name, *self.hub)):
            yield from self._of(record, f"{source.name}, row {number}")

    def _of(self, record: dict[str, Any], where: str) -> Iterator[str]:
        """The text of a record, or nothing where it is broken and may be skipped."""
        if self.text_column not in record:
            raise self._no_column(where, record)
        text = record[self.text_column]
        if not isinstance(text, str):
            self._skip(f"{where}: '{self.text_column}' is not a text but {json.dumps(text, default=str)[:80]}.")
            return
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which is no character
            self._skip(f"{where}: '{self.text_column}' holds half a surrogate pair.")
            return
        yield text

    def _no_column(self, where: str, names: Any) -> UserError:
        return UserError(
            f"{where}: no column '{self.text_column}' (data.text_column).{nearest(self.text_column, names)}"
        )

    def _skip(self, fault: str) -> None:
        if not self.skip_broken:
            raise UserError(f"{fault} Mend it, or leave broken records out with data.skip_broken=true.")
        self.broken += 1
        self.first_broken = self.first_broken or fault


def cut(chunks: Iterable[str], separator: re.Pattern[str]) -> Iterator[str]:
    """Cuts a stream of text where `separator` matches, dropping what it matches; pieces of no length are left out."""
    buffer, start, scanned = "", 0, 0  # the document begins at `start`; no match is left before `scanned`
    for chunk, margin in chain(((chunk, LOOKAHEAD) for chunk in chunks), [("", 0)]):
        buffer += chunk
        for match in separator.finditer(buffer, scanned):
            if match.end() > len(buffer) - margin:  # more text may change this match
                break
            if match.start() > start:
                yield buffer[start : match.start()]
            start = scanned = match.end()
        scanned = max(scanned, len(buffer) - 2 * LOOKAHEAD)
        drop = max(0, start - LOOKAHEAD)  # a separator may look behind
        buffer, start, scanned = buffer[drop:], start - drop, scanned - drop
    if start < len(buffer):
        yield buffer[start:]


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """(the file itself, whose position is the progress; the same, decompressed)."""
    path = Path(source.name)
    try:
        with path.open("rb") as raw:
            unpack: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), nullcontext)
            with unpack(raw) as file:
                yield raw, file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{source.name} is damaged or cut short: {error}") from error
    except OSError as error:
        raise UserError(f"{source.name} cannot be read: {error.strerror or error}.") from error


def _not_utf8(source: Source, offset: int) -> UserError:
    return UserError(
        f"{source.name} is not UTF-8: byte {offset:,} cannot be decoded. Convert it first, for example with "
        f"`iconv -f LATIN1 -t UTF-8`."
    )
