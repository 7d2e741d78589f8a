"""`bigtrain data verify PATH…`: every byte of prepared data, or of the data of a run, against its checksum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigtrain.data.settings import FORMAT
from bigtrain.data.shards import read_manifest, verify
from bigtrain.data.streaming import verify_shards
from bigtrain.errors import EXIT_DONE, EXIT_FAILED, UserError
from bigtrain.ledger.opened import run_data
from bigtrain.ledger.writing import tell

SUMMARY = """\
usage: bigtrain data verify PATH…

Reads every byte of prepared data and compares it with the checksums that were taken when it was written.
PATH is a folder of prepared data (the last line of `bigtrain prepare`), a folder of such folders (data.cache), or a
run folder, for the data that it was trained on.

Exit: 0 all is right, 1 something is damaged or missing, 2 wrong input."""


def _folders(path: str) -> list[Path]:
    """The folders of prepared data that `path` means."""
    folder = Path(path).expanduser()
    if is_prepared(folder):
        return [folder]
    inside = sorted(file.parent for file in folder.glob("*/manifest.json") if is_prepared(file.parent))
    return inside or list(run_data(folder)[2].folders.values())


def is_prepared(folder: Path) -> bool:
    """Whether bigtrain prepared this folder; also where it is damaged."""
    try:
        return f'"{FORMAT}"' in (folder / "manifest.json").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def main(argv: Sequence[str]) -> int:
    """The command."""
    if any(word in ("-h", "--help") for word in argv):
        print(SUMMARY)
        return EXIT_DONE
    if not argv:
        raise UserError("'data verify' needs a PATH: a folder of prepared data, or a run folder.")
    worst = EXIT_DONE
    for folder in [folder for word in argv for folder in _folders(word)]:
        try:
            verify(folder)
            verify_shards(folder)
        except UserError as error:
            tell(f"damaged  {folder}: {error}")
            worst = EXIT_FAILED
        else:
            splits = read_manifest(folder)["splits"].values()
            tell(f"intact   {folder}: {sum(split['tokens'] for split in splits):,} tokens")
    return worst
