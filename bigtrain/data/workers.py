"""Units of work, done in this process or in several; what is done already is left alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

from bigtrain.data.units import Unit

FEW_BYTES = 8 << 20
"""Below this, starting processes takes longer than they save."""

Job = Callable[[Unit], None]
"""Does one unit, and leaves its marker."""


def do(job: Job, units: Sequence[Unit], workers: int | None, advance: Callable[[Unit], None]) -> None:
    """Does all `units`; says each one that is done to `advance`. The first fault ends it.

    Args:
        job: picklable.
        units: in any order.
        workers: processes; 1: this one; None: by the cores and by what there is to do.
        advance: called in this process.
    """
    few = sum(unit.size for unit in units) < FEW_BYTES and all(piece.size for unit in units for piece in unit.slices)
    workers = min(workers or (1 if few else len(os.sched_getaffinity(0))), len(units))
    if workers <= 1:
        for unit in units:
            job(unit)
            advance(unit)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(job,))
    rest = iter(units)
    running: dict[Future[None], Unit] = {}
    try:
        while True:
            while len(running) < 2 * workers and (one := next(rest, None)) is not None:
                running[pool.submit(_do, one)] = one
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                advance(running.pop(future))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process that prepares data died: out of memory, or started from a script that is not guarded by "
            "`if __name__ == '__main__':`. data.workers=1 works without processes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_job: Job


def _start(job: Job) -> None:
    """Each process does units one after the other, on one thread."""
    global _job
    parent = parent_process()
    if parent is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _job = job


def _do(unit: Unit) -> None:
    _job(unit)


def _end_with(parent: BaseProcess) -> None:
    """A pool's processes outlive a parent that was killed, and wait for ever; these do not."""
    parent.join()
    os._exit(1)
