"""The table of systems that work on real data: every row trains, measures, and says what was to be reached.

    python benchmarks/rows --data DIR [--work runs/rows] [--only cnn,chatbot] [overrides for every training]

DIR has the data sets of the table in folders of their names. Each row is a few `bigtrain` commands of under an hour on
2 cores; a row that was stopped goes on in its run folders, and one that is done is read, not trained again. All goes to
benchmarks/results/rows.json and, as Markdown, into the README between its two marks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _images
import _text
from _common import ROOT, environment, parser
from _row import Row

BEGIN, END = "<!-- rows: written by `make rows` from the runs' own files -->", "<!-- rows end -->"

ROWS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "from_scratch": _text.from_scratch,
    "masked": _text.masked,
    "classification": _text.classification,
    "translation": _text.translation,
    "chatbot": _text.chatbot,
    "chat_tuning": _text.chat_tuning,
    "cnn": _images.cnn,
    "tuning": _images.tuning,
}


def markdown(results: dict[str, Any]) -> str:
    """The rows that there are, with what each reached of what was to be reached; what is read, not counted, below."""
    lines = ["| system | data | found | to reach | training |", "| --- | --- | --- | --- | ---: |"]
    for found in results.values():
        told = found["figures"]
        bars = "; ".join(f"{bar} {'✔' if reached else '✘'}" for bar, reached in told["bars"].items())
        lines.append(
            f"| {told['system']} | {told['data']} | {told['found']} | {bars} | {found['trained_s'] / 60:.0f} min |"
        )
    text = "\n".join(lines).replace("|rating|", "\\|rating\\|")
    if "from_scratch" in results:
        perplexities = results["from_scratch"]["figures"]["perplexity_by_epoch"].items()
        text += "\n\nThe Transformer's held-out perplexity after epoch " + ", ".join(
            f"{epoch}: {perplexity:.1f}" for epoch, perplexity in perplexities
        )
    if "chatbot" in results:
        turns = [
            f"| {turn['asked']} | {' '.join(turn['answered'].split())} | {'✔' if turn['right'] else '✘'} |"
            for turn in results["chatbot"]["figures"]["transcript"]
        ]
        text += "\n\nThe chatbot, asked in words that it was not trained on; ✔: it says what it was trained to say.\n\n"
        text += "\n".join(["| asked | answered | |", "| --- | --- | --- |", *turns])
    return text


def into_readme(text: str) -> None:
    """Between the marks, where the README has them."""
    file = ROOT / "README.md"
    content = file.read_text(encoding="utf-8")
    if BEGIN in content:
        before, _, rest = content.partition(BEGIN)
        file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--data", type=Path, required=True, help="the folder with the data sets")
    arguments.add_argument("--work", type=Path, default=Path("runs/rows"), help="where the runs are kept")
    arguments.add_argument("--only", help=f"some rows: {','.join(ROWS)}")
    given, extra = arguments.parse_known_args()
    out = given.out or ROOT / "benchmarks" / "results" / "rows.json"
    kept = json.loads(out.read_text())["results"] if out.is_file() else {}
    for name in given.only.split(",") if given.only else ROWS:
        row = Row(name, given.data.resolve(), given.work.resolve(), extra)
        figures = ROWS[name](row)
        kept[name] = {"figures": figures, "commands": row.commands, "trained_s": row.trained_s, **environment()}
        content = {"benchmark": "rows", **environment(), "results": {key: kept[key] for key in ROWS if key in kept}}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2, default=str) + "\n")
    print(markdown(content["results"]))
    if out == ROOT / "benchmarks" / "results" / "rows.json":
        into_readme(markdown(content["results"]))


if __name__ == "__main__":
    main()
