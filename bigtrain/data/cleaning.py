"""From sources to cleaned documents: read, without those that are excluded, through the steps of `data.clean`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.clean.funnel import FILE_NAME as FUNNEL
from bigtrain.data.clean.funnel import Funnel, nothing_left
from bigtrain.data.clean.pipeline import Pipeline, apply
from bigtrain.data.documents import Document
from bigtrain.data.exclude import Exclude, check_found, merge_nearest, read_exclusions
from bigtrain.data.readers import Reader
from bigtrain.data.settings import Corpus
from bigtrain.data.sources import Source
from bigtrain.data.units import Unit
from bigtrain.data.writing import Work

ROWS = 256
"""Documents that are written at once, or sketched."""
SKETCHED, CORPUS = "-sketched", "corpus"


class Documents:
    """The documents of one unit as read, without those that are excluded. What was met is counted."""

    def __init__(self, corpus: Corpus, sources: Sequence[Source], unit: Unit | None = None) -> None:
        self.reader = Reader(sources, corpus.reading, unit)
        self.exclude = Exclude(read_exclusions(corpus.exclude, sources)) if corpus.exclude else None
        self.read = 0

    def __iter__(self) -> Iterator[Document]:
        return self.exclude(self._all()) if self.exclude else self._all()

    def _all(self) -> Iterator[Document]:
        for document in self.reader:
            self.read += 1
            yield document

    @property
    def excluded(self) -> int:
        """How many of the excluded documents were met."""
        return sum(o == begun for (_, o), begun in self.exclude.nearest.items()) if self.exclude else 0

    def told(self) -> dict[str, Any]:
        """What a marker says of the reading."""
        nearest = [[*key, begun] for key, begun in self.exclude.nearest.items()] if self.exclude else []
        return {"empty": self.reader.empty, "broken": self.reader.broken, "first_broken": self.reader.first_broken,
                "nearest": nearest}  # fmt: skip


def gather(markers: Sequence[dict[str, Any]], corpus: Corpus, sources: Sequence[Source]) -> dict[str, Any]:
    """What all units' readings told, together.

    Raises:
        UserError: a document that is to be excluded was not met.
    """
    if corpus.exclude:
        near = merge_nearest({(s, o): begun for s, o, begun in marker["nearest"]} for marker in markers)
        check_found(corpus.exclude, read_exclusions(corpus.exclude, sources), near, sources)
    return {
        "empty": sum(marker["empty"] for marker in markers),
        "broken": sum(marker["broken"] for marker in markers),
        "first_broken": next((m["first_broken"] for m in markers if m["first_broken"]), None),
    }


@dataclass(frozen=True)
class Clean:
    """Cleans one unit: all of it, or up to the steps that compare documents, whose sketches are kept."""

    corpus: Corpus
    sources: tuple[Source, ...]
    artifact: Path

    def __call__(self, unit: Unit) -> None:
        """Leaves the unit's marker."""
        work, pipeline = Work(self.artifact), _pipeline(self.corpus)
        funnel, documents = pipeline.funnel(), Documents(self.corpus, self.sources, unit)
        kept = apply(funnel.before.count(documents), pipeline.before, funnel, self.sources)
        with work.unit(unit.number, SKETCHED if pipeline.corpus else "") as (temporary, marker):
            if pipeline.corpus:
                sketches: list[list[NDArray[Any]]] = [[] for _ in pipeline.corpus]

                def seen(texts: list[str]) -> None:
                    for step, parts in zip(pipeline.corpus, sketches, strict=True):
                        parts.append(np.asarray(step.run.sketch(texts)))

                marker["documents"] = write_table(temporary / "units" / table_name(unit.number), kept, seen)
                for number, parts in enumerate(sketches):
                    if parts:
                        np.save(temporary / "units" / f"{unit.number:05d}-sketch-{number}.npy", np.concatenate(parts))
            else:
                marker["documents"] = write_table(
                    temporary / "data" / table_name(unit.number), funnel.after.count(kept), lambda texts: None
                )
            funnel.excluded = documents.excluded
            marker.update(documents.told(), funnel=asdict(funnel))


@dataclass(frozen=True)
class CleanOn:
    """Cleans on one unit after the documents were compared."""

    corpus: Corpus
    sources: tuple[Source, ...]
    artifact: Path

    def __call__(self, unit: Unit) -> None:
        """Leaves the unit's marker."""
        work, pipeline = Work(self.artifact), _pipeline(self.corpus)
        before = int(np.load(work.units / "starts.npy", mmap_mode="r")[unit.number])
        alive = np.load(work.units / "alive.npy", mmap_mode="r")
        funnel = pipeline.funnel()
        stays = (d for n, d in enumerate(read_table(work.units / table_name(unit.number))) if alive[before + n])
        with work.unit(unit.number) as (temporary, marker):
            kept = funnel.after.count(apply(stays, pipeline.after, funnel, self.sources))
            marker["documents"] = write_table(temporary / "data" / table_name(unit.number), kept, lambda texts: None)
            marker["funnel"] = asdict(funnel)


def compare(job: Clean, units: Sequence[Unit]) -> None:
    """The steps that compare all documents of a corpus with each other."""
    work, pipeline = Work(job.artifact), _pipeline(job.corpus)
    counts = [work.read(unit.number, SKETCHED)["documents"] for unit in units]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    alive, funnel = np.ones(int(starts[-1]), bool), pipeline.funnel()

    document_of = _random_access([work.units / table_name(unit.number) for unit in units], starts)

    characters = np.concatenate(
        [np.zeros(0, np.int64), *(np.load(work.units / f"{u.number:05d}-lengths.npy") for u in units)]
    )
    for number, step in enumerate(pipeline.corpus):
        parts = [work.units / f"{unit.number:05d}-sketch-{number}.npy" for unit in units]
        sketches = [np.load(part, mmap_mode="r") for part in parts if part.exists()]
        if sketches:
            kept = step.run.duplicates(np.concatenate(sketches), alive, lambda index: document_of(index).text)
            counts_of = funnel.steps[step.number]
            counts_of.deduplicated(step.run.reason, characters, alive, kept, document_of)
            alive &= kept < 0
    with work.unit(0, CORPUS) as (temporary, marker):
        np.save(temporary / "units" / "alive.npy", alive)
        np.save(temporary / "units" / "starts.npy", starts)
        marker["funnel"] = asdict(funnel)


def finish(job: Clean, units: Sequence[Unit]) -> None:
    """All units are cleaned: the artifact.

    Raises:
        UserError: no document is left, or one that is to be excluded was not met.
    """
    work, pipeline = Work(job.artifact), _pipeline(job.corpus)
    first = SKETCHED if pipeline.corpus else ""
    funnel = pipeline.funnel()
    markers = [work.read(unit.number, first) for unit in units]
    parts = [*markers]
    if pipeline.corpus:
        parts += [work.read(0, CORPUS), *(work.read(unit.number) for unit in units)]
    for part in parts:
        funnel.merge(Funnel.from_json(part["funnel"]))
    told = gather(markers, job.corpus, job.sources)
    if not funnel.after.documents and funnel.before.documents:
        raise nothing_left(funnel, ", ".join(job.corpus.path))
    funnel.write(work.data / FUNNEL)
    (work.data / "cleaned.json").write_text(json.dumps(told), encoding="utf-8")
    work.finish()


def compares(corpus: Corpus) -> bool:
    """Whether steps compare documents with each other."""
    return bool(_pipeline(corpus).corpus)


def table_name(number: int) -> str:
    """The cleaned documents of a unit."""
    return f"{number:05d}.parquet"


def read_table(path: Path) -> Iterator[Document]:
    """The documents in a Parquet file."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            yield from map(Document, *(batch.column(name).to_pylist() for name in Document._fields))


def _random_access(tables: Sequence[Path], starts: NDArray[np.int64]) -> Callable[[int], Document]:
    """The document of an index over all tables, table n from `starts[n]` on. One row group is read, of ROWS at most."""
    import pyarrow.parquet

    @lru_cache(256)
    def opened(table: int) -> tuple[Any, NDArray[np.int64]]:
        file = pyarrow.parquet.ParquetFile(tables[table])
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        return file, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @lru_cache(32)
    def group_of(table: int, group: int) -> Any:
        return opened(table)[0].read_row_group(group)

    def document_of(index: int) -> Document:
        table = int(np.searchsorted(starts, index, side="right")) - 1
        row = index - int(starts[table])
        begins = opened(table)[1]
        group = int(np.searchsorted(begins, row, side="right")) - 1
        columns = group_of(table, group)
        return Document(*(columns[name][row - int(begins[group])].as_py() for name in Document._fields))

    return document_of


def write_table(path: Path, documents: Iterator[Document], seen: Callable[[list[str]], None]) -> int:
    """Writes documents, shows their texts to `seen`, and counts them. Their lengths are kept beside."""
    import pyarrow
    import pyarrow.parquet

    types = (pyarrow.large_string(), pyarrow.int64(), pyarrow.int64())
    schema = pyarrow.schema(list(zip(Document._fields, types, strict=True)))
    lengths: list[int] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as file:
        rows: list[Document] = []

        def write() -> None:
            columns = list(zip(*rows, strict=True))
            file.write_table(pyarrow.table(dict(zip(Document._fields, map(list, columns), strict=True)), schema=schema))
            seen([document.text for document in rows])
            lengths.extend(len(document.text) for document in rows)
            rows.clear()

        characters = 0
        for document in documents:
            rows.append(document)
            characters += len(document.text)
            if len(rows) == ROWS or characters > 1 << 22:
                write()
                characters = 0
        if rows:
            write()
    if path.parent.name == "units":
        np.save(path.with_name(path.stem + "-lengths.npy"), np.array(lengths, np.int64))
    return len(lengths)


@lru_cache(1)
def _pipeline_of(components: str) -> Pipeline:
    return Pipeline(json.loads(components))


def _pipeline(corpus: Corpus) -> Pipeline:
    """Built once a process: a step may have models or lists to load."""
    return _pipeline_of(json.dumps(corpus.clean))
