"""The table of systems that work on real data: every row trains, measures, and says what was to be reached.

    python benchmarks/rows --data DIR [--work runs/rows] [--only cnn,chatbot] [overrides for every training]

DIR has the data sets of the table in folders of their names. Each row is a few `bigtrain` commands of under an hour on
2 cores; a row that was stopped goes on in its run folders, and one that is done is read, not trained again. All goes to
benchmarks/results/rows.json and, as Markdown, into the README between its two marks.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _common import ROOT, environment, parser, table

BEGIN, END = "<!-- rows: written by `make rows` from the runs' own files -->", "<!-- rows end -->"
BASELINES = ROOT / "benchmarks" / "baselines"


@dataclass
class Row:
    """One row at work: where its data and runs are, and what it found."""

    name: str
    data: Path
    work: Path
    extra: list[str]
    commands: list[str] = field(default_factory=list)

    def run(self, *words: str) -> str:
        """`bigtrain WORDS`; its standard output. What it says goes to the terminal."""
        self.commands.append("bigtrain " + " ".join(map(shlex.quote, words)))
        print(f"\n[{self.name}] {self.commands[-1]}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "bigtrain", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def train(self, folder: str, *words: str) -> Path:
        """Train in this folder of the row, or take what was trained there."""
        run = self.work / self.name / folder
        words = (*words, "evaluation.export=false", "evaluation.report=false", f"data.cache={self.work}/prepared")
        self.run("train", *words, f"run.dir={run}", *self.extra)
        return run

    def script(self, name: str, *words: str) -> dict[str, Any]:
        """A baseline's JSON."""
        command = [sys.executable, str(BASELINES / name), *words]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "eval"]


def cnn(row: Row) -> dict[str, Any]:
    """The 10,000 test images of MNIST."""
    run = row.train("run", "recipe=vision/mnist_cnn", f"data.path={row.data}/mnist")
    accuracy = [line["accuracy"] for line in evaluations(run)]
    return {"accuracy": accuracy[-1], "by_epoch": accuracy[1:], "bars": {"accuracy >= 0.992": accuracy[-1] >= 0.992}}


def chatbot(row: Row) -> dict[str, Any]:
    """Questions that it was trained on, the same in other words, and ones that it never saw."""
    from bigtrain.generate import answer
    from bigtrain.trained import load_trained

    run = row.train("run", "recipe=chatbot/lstm", f"data.path={row.data}/chat")
    trained = load_trained(run)
    known = trained_pairs(trained)
    asked = random.Random(0).sample(sorted(known), 100)
    right = sum(answer(trained, question, 96) in known[question] for question in asked)
    last = evaluations(run)[-1]
    return {
        "answers_of_100_training_questions": right,
        "held_out_perplexity": last["perplexity"],
        "bars": {"answers >= 90 of 100": right >= 90},
    }


def trained_pairs(trained: Any) -> dict[str, set[str]]:
    """Every question of the training split with its answers."""
    from bigtrain.config.components import build
    from bigtrain.data.sets import IGNORE

    data = build(trained.config.data, "data")
    found: dict[str, set[str]] = {}
    for number in range(len(data.train)):
        sample = data.train[number]
        question, reply = (
            trained.tokenizer.decode([int(token) for token in ids if token != IGNORE], skip_special_tokens=True).strip()
            for ids in (sample["input_ids"], sample["labels"])
        )
        found.setdefault(question, set()).add(reply)
    return found


def classification(row: Row) -> dict[str, Any]:
    """Film reviews whose rating is far enough from 0, a fifth of them held out, and five folds."""
    found: dict[str, Any] = {"bars": {}}
    words = [
        "recipe=finetune/bert_classification", f"data.path={row.data}/movie-reviews/movie-reviews.tsv",
        "data.columns=[id,rating,text]", "data.label_column=rating", f"model.path={row.data}/minilm",
    ]  # fmt: skip
    for least, bar in ((1.5, 0.93), (1.0, 0.89)):
        ranges = f"data.label_ranges={{negative: [null, -{least}], positive: [{least}, null]}}"
        run = row.train(f"from_{least}", *words, ranges)
        accuracy = evaluations(run)[-1]["accuracy"]
        folder = row.train(f"folds_{least}", *words, ranges, "evaluation.folds=5", "trainer.eval_every=null")
        folds = json.loads((folder / "folds.json").read_text())["accuracy"]
        found[f"rating_{least}"] = {"accuracy": accuracy, "folds": folds}
        found["bars"][f"accuracy >= {bar} from {least} on"] = accuracy >= bar
    return found


def translation(row: Row) -> dict[str, Any]:
    """Held-out pairs of sentences, beside a dictionary's word-by-word translation of the same."""
    pairs = row.work / row.name / "pairs.tsv"
    pairs.parent.mkdir(parents=True, exist_ok=True)
    source = f"{row.data}/de-en/de-en.txt"
    row.script("dictionary.py", "prepare", source, str(pairs))
    apart = pairs.with_suffix(".held_out.tsv")
    baseline = row.script("dictionary.py", "score", source, str(apart))
    run = row.train(
        "run", "recipe=chatbot/lstm", f"data.path={pairs.with_suffix('.train.tsv')}", f"data.eval_path={apart}",
        "data.columns=[source,target]", "data.vocab_size=6000", "trainer.epochs=12", "trainer.global_batch_size=64",
        "trainer.micro_batch_size=32", "trainer.eval_every=500", "launcher.cpu_processes=2",
    )  # fmt: skip
    found = json.loads(row.run("evaluate", str(run), "task=translation", "--json"))
    return {
        "bleu": found["bleu"], "chrf": found["chrf"], "dictionary": baseline,
        "bars": {"BLEU >= 2 x the dictionary's": found["bleu"] >= 2 * baseline["bleu"]},
    }  # fmt: skip


ROWS: dict[str, Callable[[Row], dict[str, Any]]] = {
    "cnn": cnn,
    "classification": classification,
    "chatbot": chatbot,
    "translation": translation,
}


def markdown(results: dict[str, Any]) -> str:
    """The rows that there are, with what each reached of what was to be reached."""
    rows = []
    for name, found in results.items():
        figures = {key: value for key, value in found["figures"].items() if isinstance(value, int | float)}
        said = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        bars = ", ".join(f"{bar}: {'yes' if reached else 'no'}" for bar, reached in found["figures"]["bars"].items())
        rows.append([name, said, bars, f"{found['wall_s'] / 60:.0f} min"])
    return table(["row", "found", "to reach", "took"], rows)


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
        began = time.monotonic()
        figures = ROWS[name](row)
        kept[name] = {"figures": figures, "commands": row.commands, "wall_s": time.monotonic() - began, **environment()}
        content = {"benchmark": "rows", **environment(), "results": {key: kept[key] for key in ROWS if key in kept}}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=2, default=str) + "\n")
    print(markdown(content["results"]))
    if out == ROOT / "benchmarks" / "results" / "rows.json":
        into_readme(markdown(content["results"]))


if __name__ == "__main__":
    main()
