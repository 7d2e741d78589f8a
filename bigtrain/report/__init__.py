"""`bigtrain report RUN…`: one self-contained HTML file about one run, or several side by side. Needs no torch.

`read` (run folders, downsampling), `summary` (the numbers and the sentence on top), `page` (the HTML), `chart.js` and
`style.css` (written into the file).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

FILE_NAME = "report.html"


def write_report(run_dir: Path) -> Path:
    """Write `<run>/report.html` and return its path; at the end of training, or at any time during it.

    Raises:
        UserError: no run folder, or a file that cannot be written.
    """
    return _write([run_dir], run_dir / FILE_NAME)


def _write(run_dirs: Sequence[Path], out: Path) -> Path:
    from bigtrain.errors import UserError
    from bigtrain.report.page import render
    from bigtrain.report.read import read_runs

    page = render(read_runs(run_dirs))
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return out


def main(argv: Sequence[str]) -> int:
    """The command; prints the file's path."""
    import argparse

    from bigtrain.errors import EXIT_DONE

    parser = argparse.ArgumentParser(
        prog="bigtrain report",
        description="One self-contained HTML file with the plots of one run, or of several side by side.",
        epilog="Example: bigtrain report runs/quickstart/* --out compare.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"default: {FILE_NAME} in the run folder; of several runs, here"
    )
    arguments = parser.parse_args(argv)
    runs: list[Path] = arguments.runs
    out = arguments.out or (runs[0] / FILE_NAME if len(runs) == 1 else Path(FILE_NAME))
    print(_write(runs, out))
    return EXIT_DONE
