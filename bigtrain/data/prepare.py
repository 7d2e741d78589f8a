"""Raw text to shards: cleaned, a tokenizer, tokens, a manifest; whole or not at all, and no unit of it twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bigtrain.data import cleaning
from bigtrain.data import tokenizer as tokenizers_
from bigtrain.data import workers as workers_
from bigtrain.data.clean.funnel import FILE_NAME as FUNNEL
from bigtrain.data.corpora import Planned, locate, plan
from bigtrain.data.documents import Document
from bigtrain.data.encode import REFERENCE, choose, opened
from bigtrain.data.settings import FORMAT, VERSION, Preparation
from bigtrain.data.shards import EVAL, TRAIN, Manifest, write_manifest
from bigtrain.data.tokenising import Tokenise, crossing, place_of
from bigtrain.data.units import Unit, plan_units
from bigtrain.data.writing import Work, join, locked
from bigtrain.errors import UserError

__all__ = ["check_tokenizer", "divide", "locate", "prepare"]


def prepare(preparations: Mapping[str, Preparation], cache: Path, workers: int | None) -> dict[str, Path]:
    """The prepared folder of each domain, made where it is not there.

    Units that are done stay done: who starts again after a kill goes on. Any number of processes may do this at once,
    on any hosts that share the cache: they divide the units among themselves.

    Raises:
        UserError: the input is wrong, the cache cannot be written or the disk is full; finished units are kept.
    """
    planned = plan(preparations, cache)
    folders = {domain.name: domain.folder for domain in planned}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for domain in planned:
            if domain.cleaned and not domain.done:
                _clean(domain, workers, domain.name if len(planned) > 1 else "")
        if not all(domain.done for domain in planned):
            _tokenizer(planned)
        for domain in planned:
            if not domain.done:
                _shards(domain, workers, domain.name if len(planned) > 1 else "")
    except UserError:  # wrong input; once mended it has another name, and nobody would come back for this
        for artifact in (path for domain in planned for path in (domain.cleaned, domain.folder) if path):
            Work(artifact).abandon()
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk of data.cache={cache} is full ({os.strerror(error.errno)}); what was finished is kept, and "
                f"the next start goes on from it. Make room, or set data.cache to another disk."
            ) from error
        raise UserError(f"data.cache={cache} cannot be written: {error}.") from error
    return folders


def check_tokenizer(given: str, folder: Path) -> None:
    """Refuses prepared shards together with another tokenizer than theirs."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizers_.take(given, Path(temporary) / "tokenizer")
        if not tokenizers_.equal(Path(temporary) / "tokenizer", folder / "tokenizer"):
            raise UserError(
                f"data.tokenizer={given} is not the tokenizer of the shards in {folder}: leave data.tokenizer out to "
                f"use theirs, or give the raw text as data.path."
            )


def divide(documents: Iterator[str], held_out: float, seed: int) -> Iterator[tuple[str, str]]:
    """Names each document's split: held out where the hash of its text, keyed by `seed`, falls below `held_out`.

    As long as one side is empty, the document of the other side nearest to it is kept waiting; it crosses over if that
    side is still empty at the end. So two documents are enough for both sides. One alone is for training.
    """
    seen: set[str] = set()  # splits that have a document for good
    waiting: tuple[float, str] | None = None
    side = TRAIN  # of all documents so far, where they are all on one
    for text in documents:
        place = place_of(text, seed)
        split = EVAL if place < held_out else TRAIN
        if held_out == 0 or len(seen) == 2:
            yield split, text
        elif waiting is None:
            waiting, side = (place, text), split
        elif split != side:
            yield side, waiting[1]
            yield split, text
            waiting, seen = None, {TRAIN, EVAL}
        elif (place < waiting[0]) == (side == TRAIN):  # nearer to the other side than the one that waits
            yield side, waiting[1]
            waiting, seen = (place, text), {side}
        else:
            yield split, text
            seen = {side}
    if waiting is not None:
        yield (EVAL if side == TRAIN else TRAIN) if seen else TRAIN, waiting[1]


def _clean(domain: Planned, workers: int | None, name: str) -> None:
    assert domain.cleaned is not None
    corpus, work, done = domain.preparation.corpus, Work(domain.cleaned), domain.cleaned / "cleaned.json"
    with _alone(domain.cleaned):
        if done.is_file():
            return
        work.begin()
    units = plan_units(domain.sources, corpus.reading)
    first = cleaning.Clean(corpus, domain.sources, domain.cleaned)
    if cleaning.compares(corpus):
        _do(f"cleaning {name}", first, units, work, workers, cleaning.SKETCHED)
        with _alone(domain.cleaned):
            if not done.is_file() and not work.marker(0, cleaning.CORPUS).is_file():
                cleaning.compare(first, units)
        _do(f"cleaning on {name}", cleaning.CleanOn(corpus, domain.sources, domain.cleaned), units, work, workers)
    else:
        _do(f"cleaning {name}", first, units, work, workers)
    with _alone(domain.cleaned):
        if not done.is_file():
            cleaning.finish(first, units)


def _tokenizer(planned: Sequence[Planned]) -> None:
    """The tokenizer of all domains: taken, or trained on their training documents."""
    settings, folder = planned[0].preparation, planned[0].tokenizer
    with _alone(folder):
        if (folder / "tokenizer.json").is_file():
            return
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
        try:
            temporary.chmod(0o755)
            if settings.tokenizer is not None:
                tokenizers_.take(settings.tokenizer, temporary / "tokenizer")
            else:
                with Console(stderr=True).status("training the tokenizer"):
                    trained = tokenizers_.train(_training_texts(planned), settings.vocab_size, settings.special_tokens)
                tokenizers_.save(trained, temporary / "tokenizer")
            shutil.rmtree(folder, ignore_errors=True)
            (temporary / "tokenizer").rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _training_texts(planned: Sequence[Planned]) -> Iterator[str]:
    for domain in planned:
        of = domain.preparation
        texts = (document.text for document in _documents(domain))
        yield from (text for split, text in divide(texts, of.held_out, of.seed) if split == TRAIN)


def _documents(domain: Planned) -> Iterator[Document]:
    if domain.cleaned is None:
        yield from cleaning.Documents(domain.preparation.corpus, domain.sources)
    else:
        for path in sorted(domain.cleaned.glob("*.parquet")):
            yield from cleaning.read_table(path)


def _shards(domain: Planned, workers: int | None, name: str) -> None:
    settings, work = domain.preparation, Work(domain.folder)
    with _alone(domain.folder):
        if domain.done:
            return
        work.begin()
    encoder = opened(domain.tokenizer, REFERENCE).encoder
    token_type = _token_type(settings.token_type, encoder.vocab_size)
    units = plan_units(domain.sources, settings.corpus.reading)
    library, why = choose(domain.tokenizer)
    console = Console(stderr=True)
    console.print(f"data: tokenising with {library}{f' ({why})' if why else ', its ids proved equal to tokenizers'}",
                  highlight=False, markup=False)  # fmt: skip
    job = Tokenise(settings, domain.sources, domain.cleaned, domain.tokenizer, domain.folder, library, token_type)
    _do(f"tokenising {name}", job, units, work, workers)
    with _alone(domain.folder):
        if not domain.done:
            _join(domain, job, units)


def _join(domain: Planned, job: Tokenise, units: Sequence[Unit]) -> None:
    """All units are tokenised: the prepared folder."""
    settings, work, encoder = domain.preparation, Work(domain.folder), opened(domain.tokenizer, REFERENCE).encoder
    console = Console(stderr=True)
    markers = [work.read(unit.number) for unit in units]
    over = crossing(markers, settings.held_out)
    if over is not None:
        number, place = over
        with work.claim(number, "", wait=True):  # from any process that has not seen its marker yet
            work.marker(number).unlink()
            replace(job, crossing=place)(units[number])
        markers[number] = work.read(number)
    told = (
        json.loads((domain.cleaned / "cleaned.json").read_text())
        if domain.cleaned
        else cleaning.gather(markers, settings.corpus, domain.sources)
    )
    splits = join(work, markers)
    if not splits[TRAIN]["documents"]:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise UserError(
            f"data.path={', '.join(settings.corpus.path)} holds no text: {told['empty']:,} empty documents, "
            f"{told['broken']:,} broken records."
        )
    shutil.copytree(domain.tokenizer, work.data / "tokenizer", dirs_exist_ok=True)
    if domain.cleaned:
        shutil.copy(domain.cleaned / FUNNEL, work.data / FUNNEL)
    other = sum(marker["library"] != job.library for marker in markers)
    if other:
        console.print(
            f"data: {other} units were tokenised with {REFERENCE}: {job.library} failed there, or gave other ids.",
            highlight=False,
        )
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        token_type=job.token_type,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        pad_id=encoder.pad_id,
        tokenizer_sha256=tokenizers_.file_hash(domain.tokenizer),
        splits=splits,
        empty_documents=told["empty"],
        broken_records=told["broken"],
        first_broken=told["first_broken"],
        settings=asdict(settings),
        sources=[asdict(source) for source in domain.sources],
    )
    write_manifest(work.data, manifest)
    work.finish()
    _tell(console, manifest, domain)


@dataclass(frozen=True)
class _Claimed:
    """A job on the units that no other process does or has done."""

    job: Callable[[Unit], None]
    work: Work
    phase: str
    wait: bool

    def __call__(self, unit: Unit) -> None:
        with self.work.claim(unit.number, self.phase, self.wait) as mine:
            if mine:
                self.job(unit)


def _do(
    title: str, job: Callable[[Unit], None], units: Sequence[Unit], work: Work, workers: int | None, phase: str = ""
) -> None:
    """Does what is not done of a phase, and waits for what other processes do of it."""

    def due() -> list[Unit]:
        return [unit for unit in units if not work.marker(unit.number, phase).is_file()]

    mine, console, title = due(), Console(stderr=True), title.strip()
    if len(mine) < len(units):
        console.print(
            f"data: {title}: {len(units) - len(mine):,} of {len(units):,} units are done already", highlight=False
        )
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(title, total=len(units), completed=len(units) - len(mine))
        told = time.monotonic()

        def advance(unit: Unit) -> None:
            nonlocal told
            if time.monotonic() - told > 1:  # others may be at work too
                progress.update(task, completed=len(units) - len(due()))
                told = time.monotonic()

        workers_.do(_Claimed(job, work, phase, wait=False), mine, workers, advance)
        theirs = due() if work.folder.is_dir() else []
        if theirs:
            console.print(
                f"data: {title}: {len(theirs):,} units are another process's; waiting for it", highlight=False
            )
        for unit in theirs:
            _Claimed(job, work, phase, wait=True)(unit)
        progress.update(task, completed=len(units))


def _tell(console: Console, manifest: Manifest, domain: Planned) -> None:
    settings = domain.preparation
    train, held = manifest["splits"][TRAIN], manifest["splits"][EVAL]
    console.print(
        f"data: {train['documents']:,} documents with {train['tokens']:,} tokens to train on, {held['documents']:,} "
        f"with {held['tokens']:,} held out; vocabulary {manifest['vocab_size']:,}",
        highlight=False,
    )
    if settings.tokenizer is None and manifest["vocab_size"] < settings.vocab_size:
        console.print(f"data: the text has no more to merge than {manifest['vocab_size']:,} entries.", highlight=False)
    if manifest["broken_records"]:
        console.print(
            f"data: {manifest['broken_records']:,} broken records left out, the first: {manifest['first_broken']}",
            markup=False,
            highlight=False,
        )
    if settings.held_out and not held["documents"]:
        console.print("data: one document only, nothing is held out (data.document_separator could cut it).")


def _token_type(wanted: str, vocab_size: int) -> str:
    """The shards' integers: the smallest that hold the vocabulary, or the wanted ones if they do."""
    chosen = wanted if wanted != "auto" else "uint16" if vocab_size <= 1 << 16 else "uint32"
    if vocab_size > np.iinfo(chosen).max + 1:
        raise UserError(
            f"The tokenizer's vocabulary of {vocab_size:,} does not fit into data.token_type={chosen}, which counts to "
            f"{np.iinfo(chosen).max:,}. Use data.token_type=auto."
        )
    return chosen


@contextmanager
def _alone(artifact: Path) -> Iterator[None]:
    """One process at a time takes the steps of an artifact that are for one; others wait here, and say so."""
    with artifact.with_name(f".{artifact.name}.lock").open("w") as lock:
        with locked(lock, wait=False) as mine:
            if mine:
                yield
                return
        print(f"data: another process is preparing {artifact}; waiting for it.", file=sys.stderr, flush=True)
        with locked(lock):
            yield
