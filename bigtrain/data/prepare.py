"""Raw text to shards: tokenizer, tokens, manifest; whole or not at all, and never twice."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from bigtrain.data import tokenizer as tokenizers_
from bigtrain.data.readers import Reader
from bigtrain.data.settings import FORMAT, VERSION, Preparation
from bigtrain.data.shards import EVAL, TRAIN, Manifest, ShardWriter, sync, write_manifest
from bigtrain.data.sources import Source
from bigtrain.errors import UserError

BATCH_CHARACTERS = 1 << 20
"""Text that one process tokenises at once (one document at least)."""

FEW_BYTES = 8 << 20
"""Below this, starting processes takes longer than they save."""

MOST_WORKERS = 32
"""One process reads and writes for all of them."""

Document = tuple[str, str]
"""(split, text)"""
Encoded = dict[str, tuple[NDArray[np.uint32], NDArray[np.int64]]]
"""split -> (ids, lengths of the documents)"""


def prepare(settings: Preparation, sources: Sequence[Source], folder: Path, workers: int | None) -> None:
    """Writes `folder`: tokenizer/, shards, document indices, and last manifest.json.

    Everything is written beside it and renamed when complete. A second process that wants the same waits.

    Raises:
        UserError: the input is wrong, the cache cannot be written or the disk is full; nothing is left behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as alone:
            if (folder / "manifest.json").is_file():
                return
            if alone:  # what is there was left by a process that was killed
                for left in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
                    shutil.rmtree(left, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
            try:
                temporary.chmod(0o755)
                _write(settings, sources, temporary, workers)
                temporary.rename(folder)
                sync(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"The disk of data.cache={folder.parent} is full ({os.strerror(error.errno)}); what was written is "
                f"removed. Make room, or set data.cache to another disk."
            ) from error
        raise UserError(f"data.cache={folder.parent} cannot be written: {error}.") from error


def train_tokenizer(corpora: Sequence[tuple[Preparation, Sequence[Source]]], folder: Path) -> None:
    """Trains the tokenizer that several domains share, on the training documents of all of them, unless it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if folder.is_dir():
            return

        def texts() -> Iterator[str]:
            for settings, sources in corpora:
                documents = (document.text for document in Reader(sources, settings.corpus.reading))
                yield from (
                    text for split, text in divide(documents, settings.held_out, settings.seed) if split == TRAIN
                )

        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp") as temporary:
            made = Path(temporary) / "tokenizer"
            tokenizers_.save(tokenizers_.train(texts(), corpora[0][0].vocab_size), made)
            made.rename(folder)


def check_tokenizer(given: str, folder: Path) -> None:
    """Refuses prepared shards together with another tokenizer than theirs."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizers_.take(given, Path(temporary) / "tokenizer")
        if not tokenizers_.equal(Path(temporary) / "tokenizer", folder / "tokenizer"):
            raise UserError(
                f"data.tokenizer={given} is not the tokenizer of the shards in {folder}: leave data.tokenizer out to "
                f"use theirs, or give the raw text as data.path."
            )


def divide(documents: Iterator[str], held_out: float, seed: int) -> Iterator[Document]:
    """Names each document's split: held out where the hash of its text, keyed by `seed`, falls below `held_out`.

    As long as one side is empty, the document of the other side nearest to it is kept waiting; it crosses over if that
    side is still empty at the end. So two documents are enough for both sides. One alone is for training.
    """
    key = seed.to_bytes(8, "little", signed=True)
    seen: set[str] = set()  # splits that have a document for good
    waiting: tuple[float, str] | None = None
    side = TRAIN  # of all documents so far, where they are all on one
    for text in documents:
        place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "big") / 2**64
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


def _write(settings: Preparation, sources: Sequence[Source], folder: Path, workers: int | None) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        if settings.tokenizer is None:
            reader = Reader(sources, settings.corpus.reading)
            task = progress.add_task("training the tokenizer", total=reader.total, note="")

            def training_texts() -> Iterator[str]:
                for split, text in divide((document.text for document in reader), settings.held_out, settings.seed):
                    if split == TRAIN:
                        yield text
                    progress.update(task, completed=reader.consumed)

            tokenizers_.save(tokenizers_.train(training_texts(), settings.vocab_size), folder / "tokenizer")
            progress.update(task, completed=reader.total or 1, total=reader.total or 1)
        else:
            tokenizers_.take(settings.tokenizer, folder / "tokenizer")
        encoder = tokenizers_.Encoder(folder / "tokenizer")
        token_type = _token_type(settings.token_type, encoder.vocab_size)

        reader = Reader(sources, settings.corpus.reading)
        task = progress.add_task("tokenising", total=reader.total, note="")
        writers = {split: ShardWriter(folder, split, token_type, settings.shard_tokens) for split in (TRAIN, EVAL)}
        documents = divide((document.text for document in reader), settings.held_out, settings.seed)
        few = reader.total is not None and reader.total < FEW_BYTES
        workers = workers or (1 if few else min(MOST_WORKERS, len(os.sched_getaffinity(0))))
        for encoded in _encode(_batches(documents), folder / "tokenizer", workers):
            for split, (ids, lengths) in encoded.items():
                writers[split].write(ids, lengths)
            note = f"{sum(w.documents for w in writers.values()):,} documents, {writers[TRAIN].tokens:,} tokens"
            progress.update(task, completed=reader.consumed, note=note)
        progress.update(task, completed=reader.total or 1, total=reader.total or 1)
    splits = {split: writer.close() for split, writer in writers.items()}
    if not splits[TRAIN]["documents"]:
        raise UserError(
            f"data.path={', '.join(settings.corpus.path)} holds no text: {reader.empty:,} empty documents, "
            f"{reader.broken:,} broken records."
        )
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        token_type=token_type,
        vocab_size=encoder.vocab_size,
        eos_id=encoder.eos_id,
        pad_id=encoder.pad_id,
        tokenizer_sha256=tokenizers_.file_hash(folder / "tokenizer"),
        splits=splits,
        empty_documents=reader.empty,
        broken_records=reader.broken,
        first_broken=reader.first_broken,
        settings=asdict(settings),
        sources=[asdict(source) for source in sources],
    )
    write_manifest(folder, manifest)
    _tell(console, manifest, settings)


def _tell(console: Console, manifest: Manifest, settings: Preparation) -> None:
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


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(batches: Iterator[list[Document]], tokenizer: Path, workers: int) -> Iterator[Encoded]:
    """Tokenises batches, in their order whatever the number of processes; few are on the way at once."""
    if workers == 1:
        _start(tokenizer)
        yield from map(_encode_batch, batches)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(tokenizer,))
    on_the_way: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            on_the_way.append(pool.submit(_encode_batch, batch))
            if len(on_the_way) > 2 * workers:
                yield on_the_way.popleft().result()
        while on_the_way:
            yield on_the_way.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A tokenising process died: out of memory, or started from a script that is not guarded by "
            "`if __name__ == '__main__':`. data.workers=1 tokenises without processes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: tokenizers_.Encoder


def _start(tokenizer: Path) -> None:
    """Each process has its own tokenizer; where there are several, each on one thread."""
    global _encoder
    parent = parent_process()
    if parent is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _encoder = tokenizers_.Encoder(tokenizer)


def _end_with(parent: BaseProcess) -> None:
    """A pool's processes outlive a parent that was killed, and wait for ever; these do not."""
    parent.join()
    os._exit(1)


def _encode_batch(batch: list[Document]) -> Encoded:
    texts = {split: [text for at, text in batch if at == split] for split in (TRAIN, EVAL)}
    return {split: _encoder(of) for split, of in texts.items() if of}


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """One process at a time works on `folder`; the others wait here, and say so.

    False where the file system knows no locks (Lustre without `flock`): the rename then lets one of them win.
    """
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"data: another process is preparing {folder}; waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"data: {folder.parent} knows no locks: prepare in one process at a time.", file=sys.stderr)
            yield False
            return
        yield True
