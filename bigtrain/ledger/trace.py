"""`bigtrain data trace RUN --step N`: the documents that a step was trained on, from arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bigtrain.errors import EXIT_DONE, UserError
from bigtrain.ledger.opened import OpenedRun
from bigtrain.ledger.writing import Texts, place, print_table, tell, words_of, write_lines
from bigtrain.terminal import CommandLine

SUMMARY = """\
The documents that a step was trained on: file, offset, tokens and text.

  bigtrain data trace runs/quickstart/20250101-120000 --step 340
  bigtrain data trace RUN --step 340 --json | jq .text       all of it, a JSON object for each part of a document
  bigtrain data trace RUN --step 340 --out step.jsonl        the same into a file, which data.exclude= takes

Nothing was logged for it: the samples of a step follow from the seed, the step and the sizes of the data. Step N is the
one whose loss stands in metrics.jsonl under N. Where the data was moved: data.path=… or data.cache=…"""

MOST_ROWS = 200
"""Of the table; --json and --out give all."""


def trace(run: OpenedRun, step: int) -> Iterator[dict[str, Any]]:
    """The documents of a step, sample by sample in the order of the batch, and in a sample in the order of its tokens.

    Yields:
        `step`, `sample` (its place in the global batch, from 0), `position` (in the training), `domain`, `document`
        (its number in the domain's training split), `file`, `offset` (where it begins there), `start` and `stop` (the
        tokens of the document that the sample holds), `tokens` (their number) and their `text`.

    Raises:
        UserError: the run has no such step.
    """
    texts = Texts(run)
    for number, sample in enumerate(run.samples(step)):
        for part in run.parts(sample):
            yield {
                "step": step,
                "sample": number,
                "position": sample.position,
                "domain": sample.domain,
                "document": part.document,
                "file": part.file,
                "offset": part.offset,
                "start": part.start,
                "stop": part.stop,
                "tokens": part.stop - part.start,
                "text": texts.part(part),
            }


def main(argv: Sequence[str]) -> int:
    """The command."""
    line = CommandLine("data trace", SUMMARY, device=False)
    line.add_argument("--step", type=int, metavar="N", help="which step, from 1 on")
    line.add_argument("--json", action="store_true", help="print a JSON object for each part, with its text")
    line.add_argument("--out", metavar="FILE", help="write these objects into FILE")
    options, path, overrides = line.read(argv)
    if options.step is None:
        raise UserError("which step? Say --step N.")
    run = OpenedRun(path, overrides)
    parts = trace(run, options.step)
    if options.out:
        write_lines(parts, Path(options.out))
        tell(options.out)
    elif options.json:
        write_lines(parts)
    else:
        _show(run, parts)
    return EXIT_DONE


def _show(run: OpenedRun, parts: Iterator[dict[str, Any]]) -> None:
    several = len(run.sets) > 1
    columns = ["sample", *(["domain"] if several else []), "number", "tokens", "document", "first words"]
    rows = [
        [
            str(part["sample"]), *([part["domain"]] if several else []), str(part["document"]), f"{part['tokens']:,}",
            place(part["file"], part["offset"]), words_of(part["text"]),
        ]
        for part in islice(parts, MOST_ROWS)
    ]  # fmt: skip
    print_table(columns, rows)
    if more := sum(1 for _ in parts):
        tell(f"and {more:,} more parts of documents: --json prints them all, --out FILE writes them")
