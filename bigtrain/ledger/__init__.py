"""`bigtrain data trace|blame|verify`: which documents a step was made of, and which of them are behind a spike.

Nothing was written down while the run trained: the documents of a step are computed, and so for any step, at one price.
"""

from __future__ import annotations

from collections.abc import Sequence

from bigtrain.errors import EXIT_DONE, UserError, nearest

USAGE = """\
usage: bigtrain data trace RUN --step N    the documents that step N was trained on: file, offset, tokens, text
       bigtrain data blame RUN [--step N]  the documents behind a loss spike, the likeliest first
       bigtrain data verify PATH…          every byte of prepared data, or of a run's, against its checksum

trace and blame write files that leave documents out: bigtrain train … data.exclude=FILE
bigtrain data trace --help, and so on, tell more."""


def main(argv: Sequence[str]) -> int:
    """The command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return EXIT_DONE
    action, *rest = argv
    if action == "trace":
        from bigtrain.ledger.trace import main as run
    elif action == "blame":
        from bigtrain.ledger.blame import main as run
    elif action == "verify":
        from bigtrain.ledger.verify import main as run
    else:
        raise UserError(f"there is no 'data {action}'.{nearest(action, ('trace', 'blame', 'verify'))}")
    return run(rest)
