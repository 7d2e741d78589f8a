"""Benchmark decontamination: documents that share a run of words with evaluation data are dropped.

GPT-3 (Brown et al. 2020, arXiv:2005.14165, Appendix C) compares runs of N words, in lower case and without punctuation;
N is at most 13, and 8 for the shortest examples. There, 200 characters around a shared run were cut out and the rest of
the document was kept in pieces; here the whole document is dropped, as pieces would be documents that nobody wrote.

Runs are compared by 64-bit hashes: with 1e7 runs of evaluation data, one document in about 1e12 / its words is dropped
by a mere collision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtrain.data.clean import Drop
from bigtrain.data.clean.ngrams import WORD, ngrams, word_hashes
from bigtrain.data.readers import Reader
from bigtrain.data.settings import Reading
from bigtrain.data.sources import Source, find_sources
from bigtrain.errors import UserError


def evaluation_sources(components: Iterable[Mapping[str, Any]]) -> list[Source]:
    """What the `decontaminate` steps among these compare with: cleaned documents depend on it, not only on settings.

    Raises:
        UserError: it is not there.
    """
    found = []
    for component in components:
        if component.get("_target_") == "bigtrain.data.clean.decontaminate":
            against = component.get("against", ())
            with _named():
                found += find_sources([against] if isinstance(against, str) else against)
    return found


class Decontaminate:
    """A step; what the settings mean is told in `bigtrain.data.clean.decontaminate`."""

    def __init__(
        self,
        *,
        against: str | Sequence[str],
        text_column: str | Sequence[str],
        name: str | None,
        split: str,
        ngram: int,
        shortest: int,
    ) -> None:
        """Reads the evaluation data.

        Raises:
            UserError: it is not there, cannot be read, or has no text that is long enough.
        """
        if not 1 <= shortest <= ngram:
            raise UserError(f"decontaminate: shortest={shortest} lies between 1 and ngram={ngram}.")
        columns = [text_column] if isinstance(text_column, str) else text_column
        readings = [Reading(text_column=column, name=name, split=split) for column in columns]
        self.names: list[str] = []
        runs: dict[int, list[tuple[int, NDArray[np.uint64]]]] = defaultdict(list)
        short = 0
        for owner, text in self._texts([against] if isinstance(against, str) else against, readings):
            hashes = word_hashes(text)
            length = min(ngram, len(hashes))
            if length < shortest:
                short += 1
            else:
                runs[length].append((owner, ngrams(hashes, length)))
        if not runs:
            raise UserError(
                f"decontaminate: against={against} has {short:,} texts, all under shortest={shortest} words, so "
                f"there is nothing to look for: does text_column={text_column} hold the texts?"
            )
        self._runs = {length: _table(found) for length, found in sorted(runs.items(), reverse=True)}

    def __call__(self, text: str) -> str | Drop:
        """The text, or the `Drop` with the first shared run of words."""
        hashes = word_hashes(text)
        for length, (known, owners) in self._runs.items():
            if len(hashes) < length:
                continue
            runs = ngrams(hashes, length)
            at = np.minimum(np.searchsorted(known, runs), len(known) - 1)
            shared = np.flatnonzero(known[at] == runs)
            if len(shared):
                words = WORD.findall(text.lower())[shared[0] : shared[0] + length]
                return Drop(f"shares words with {self.names[owners[at[shared[0]]]]}", f"“{' '.join(words)}”")
        return text

    def _texts(self, paths: Sequence[str], readings: Sequence[Reading]) -> Iterator[tuple[int, str]]:
        """(number of the name of the file or hub set, text)."""
        with _named():
            for owner, source in enumerate(find_sources(paths)):
                self.names.append(PurePath(source.name).name)
                for reading in readings:
                    yield from ((owner, document.text) for document in Reader([source], reading))


@contextmanager
def _named() -> Iterator[None]:
    """Faults of reading name this step's settings, not those of `data`."""
    try:
        yield
    except UserError as error:
        message = str(error).replace("data.path", "against").replace("data.text_column", "text_column")
        raise UserError(f"decontaminate: {message}") from error


def _table(found: Sequence[tuple[int, NDArray[np.uint64]]]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The runs of one length, sorted and each once, and whose they are."""
    runs = np.concatenate([some for _, some in found])
    owners = np.repeat(np.array([owner for owner, _ in found], np.uint32), [len(some) for _, some in found])
    runs, first = np.unique(runs, return_index=True)
    return runs, owners[first]
