"""One reader of tokens, in a process and on a core of its own, for `data_read.py`. litdata's and mosaicml-streaming's
run in the peers' environment, where there is no bigtrain.

    python _read_peer.py PEER write FOLDER TOKENS LENGTH     FOLDER in the peer's format
    python _read_peer.py PEER read FOLDER BATCH LENGTH CORE  answers "time" and "check" on stdin: a line of JSON each
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""An epoch: (inputs, labels), int64 of shape (B, S) each."""

UNCOUNTED = 64
"""Batches before the clock starts: by then each reader's threads are at work."""

CHUNK = 8012
"""Samples a chunk, as in litdata's documentation of pretraining."""


def samples(file: str, length: int, begin: int, end: int) -> Iterator[np.ndarray[Any, Any]]:
    """The samples [begin, end): S+1 tokens each, of which two neighbours share one."""
    tokens = np.load(file, mmap_mode="r")
    for number in range(begin, min(end, (len(tokens) - 1) // length)):
        yield np.array(tokens[number * length : (number + 1) * length + 1])


def _chunk(begin: int, file: str, length: int) -> Iterator[np.ndarray[Any, Any]]:
    yield from samples(file, length, begin, begin + CHUNK)


def write_litdata(folder: str, file: str, length: int) -> None:
    from litdata import TokensLoader, optimize

    count = (len(np.load(file, mmap_mode="r")) - 1) // length
    optimize(
        fn=partial(_chunk, file=file, length=length),
        inputs=list(range(0, count, CHUNK)),
        output_dir=folder,
        chunk_size=(length + 1) * CHUNK,
        item_loader=TokensLoader(block_size=length + 1),
        num_workers=1,
        verbose=False,
    )


def read_litdata(folder: str, batch: int, length: int) -> Callable[[], Batches]:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(folder, item_loader=TokensLoader(block_size=length + 1), shuffle=True, drop_last=True)
    loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=0, drop_last=True)
    return lambda: map(_targets, loader)


def torchvision_without_kernels() -> None:
    """mosaicml-streaming imports torchvision, whose kernels do not load beside a torch for CPUs. No image is read here:
    that the operators which are asked for at import have names is enough."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")


def write_mosaicml(folder: str, file: str, length: int) -> None:
    torchvision_without_kernels()
    from streaming import MDSWriter

    with MDSWriter(out=folder, columns={"tokens": f"ndarray:uint16:{length + 1}"}) as writer:
        for sample in samples(file, length, 0, sys.maxsize):
            writer.write({"tokens": sample})


def read_mosaicml(folder: str, batch: int, length: int) -> Callable[[], Batches]:
    torchvision_without_kernels()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    dataset = StreamingDataset(local=folder, shuffle=True, batch_size=batch)
    loader: Any = DataLoader(dataset, batch_size=batch, num_workers=0, drop_last=True)
    return lambda: (_targets(found["tokens"]) for found in loader)


def _targets(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tokens[:, :-1].long(), tokens[:, 1:].long()


def serve(epoch: Callable[[], Batches], core: int) -> None:
    """Reads an epoch for each line of stdin, on one core; the answers go where stdout was, other output to stderr."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(check(epoch()) if line.strip() == "check" else timed(epoch())), file=answers, flush=True)


def timed(epoch: Batches) -> dict[str, float]:
    """Tokens, and the seconds of the clock and of this core, of an epoch but for its first batches."""
    tokens, began, used = 0, 0.0, 0.0
    for number, (inputs, labels) in enumerate(epoch):
        if number >= UNCOUNTED:
            assert inputs.dtype == labels.dtype == torch.int64 and inputs.shape == labels.shape
            tokens += inputs.numel()
        elif number == UNCOUNTED - 1:
            began, used = time.perf_counter(), time.process_time()
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}


def check(epoch: Batches) -> dict[str, str]:
    """A digest of which samples came how often, in whatever order, and one of the order."""
    found = [
        digest(np.append(row.numpy(), last))
        for inputs, labels in epoch
        for row, last in zip(inputs, labels[:, -1].tolist(), strict=True)
        if torch.equal(inputs[:, 1:], labels[:, :-1])
    ]
    return {"samples": fold(sorted(found)), "order": fold(found)}


def digest(tokens: np.ndarray[Any, Any]) -> bytes:
    return hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=16).digest()


def fold(digests: list[bytes]) -> str:
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


PEERS = {"litdata": (write_litdata, read_litdata), "mosaicml-streaming": (write_mosaicml, read_mosaicml)}


if __name__ == "__main__":
    write, read = PEERS[sys.argv[1]]
    if sys.argv[2] == "write":
        write(sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        serve(read(sys.argv[3], int(sys.argv[4]), int(sys.argv[5])), int(sys.argv[6]))
