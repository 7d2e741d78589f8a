"""The report: what stands in the page is what stands in the run folder, and nothing else can get in."""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bigtrain.errors import UserError
from bigtrain.report import main, write_report
from bigtrain.report.read import thin
from bigtrain.telemetry.environment import write_environment
from bigtrain.telemetry.metrics import JsonlLog

CONFIG = """\
run: {{dir: {dir}, name: quickstart}}
seed: 1
model: {{_target_: bigtrain.models.llama, layers: 4}}
optimizer: {{_target_: bigtrain.optim.adamw, lr: {lr}}}
engine: {{name: {engine}}}
precision: {{name: fp32}}
trainer: {{max_steps: {planned}, global_batch_size: 64}}
launcher: {{name: local, nodes: 1, processes: 2}}
"""


def _loss(step: int, floor: float = 3.0) -> float:
    return floor + 4.6 * math.exp(-step / 60)


def make_run(
    folder: Path,
    *,
    steps: int = 200,
    every: int = 2,
    eval_every: int | None = 50,
    lr: float = 1e-3,
    engine: str = "zero2",
    planned: int | None = None,
    floor: float = 3.0,
) -> Path:
    """A run folder as training leaves it."""
    noise = random.Random(steps)
    folder.mkdir(parents=True)
    log = JsonlLog(folder)
    for step in range(steps + 1):
        tokens = step * 64 * 256
        if eval_every is not None and step % eval_every == 0:
            loss = _loss(step, floor) + 0.05
            log.log(step, "eval", {"loss": loss, "tokens": tokens, "perplexity": math.exp(loss)})
        if step and step % every == 0:
            metrics = {
                "loss": _loss(step, floor) + noise.gauss(0, 0.05),
                "tokens": tokens,
                "lr": lr * min(1, step / 20),
                "grad_norm": 0.5 + abs(noise.gauss(0, 0.1)),
                "step_time_s": 0.25,
                "tokens_per_s": 65536.0 + step,
                "data_wait_s": 0.0005,
                "memory_peak_bytes": 3 * 2**29,
                "mfu": None,
            }
            log.log(step, "train", metrics)
    log.close()
    (folder / "config.yaml").write_text(CONFIG.format(dir=folder, lr=lr, engine=engine, planned=planned or steps))
    write_environment(folder, ["bigtrain", "train", "recipe=quickstart"])
    return folder


class Page(HTMLParser):
    """Title, texts, tables, elements, and the data that the charts are drawn from."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.script: list[str] = []
        self._inside = ""
        self._cell = False
        self.feed(self.source)
        self.close()
        self.data: dict[str, Any] = json.loads(self.script[0])
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.script.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.script[-1] += data
        elif not self._inside:
            self.words.append(data)
            if self._cell:
                self.tables[-1][-1][-1] += data

    def chart(self, metric: str) -> dict[str, Any]:
        (chart,) = [chart for chart in self.data["charts"] if chart["metric"] == metric]
        return dict(chart)


def _lines(run: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_the_plots_hold_what_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "quickstart" / "one")
    path = write_report(run)
    assert path == run / "report.html" and not list(run.glob(".*"))
    page = Page(path)
    for metric in ("loss", "lr", "grad_norm", "tokens_per_s", "data_wait_s", "memory_peak_bytes", "step_time_s"):
        series = {one["split"]: one for one in page.chart(metric)["series"]}
        for split in series:
            lines = _lines(run, split)
            assert series[split]["step"] == [line["step"] for line in lines]
            assert series[split]["tokens"] == [line["tokens"] for line in lines]
            assert series[split]["value"] == pytest.approx([line[metric] for line in lines], rel=1e-5)
    assert {one["split"] for one in page.chart("loss")["series"]} == {"train", "eval"}
    assert [chart["metric"] for chart in page.data["charts"]][:2] == ["loss", "perplexity"]
    assert "mfu" not in [chart["metric"] for chart in page.data["charts"]]  # never known: no empty plot
    figures = [attributes for tag, attributes in page.elements if tag == "figure"]
    assert [attributes["data-chart"] for attributes in figures] == [str(i) for i in range(len(page.data["charts"]))]


def test_verdict_cards_and_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "quickstart" / "one")
    page = Page(write_report(run))
    first, last = (math.exp(_loss(step) + 0.05) for step in (0, 200))
    assert f"Held-out perplexity fell from {first:,.0f} to {last:.3g}, {first / last:.3g} times lower." in page.text
    assert "quickstart/one" in page.text and "engine zero2" in page.text and "ranks 2" in page.text
    for card in ("tokens 3.28M 200 steps", "training time 0:50", "peak memory 1.5 GiB", "tokens / s 65.6k"):
        assert card in page.text
    table = page.tables[0]
    assert table[0] == ["step", "tokens", "loss", "perplexity"]
    assert [row[0].removesuffix(" best") for row in table[1:]] == ["0", "50", "100", "150", "200"]
    assert table[-1] == ["200 best", "3,276,800", f"{_loss(200) + 0.05:.4f}", f"{last:.2f}"]
    assert "bigtrain.optim.adamw" in page.text and "bigtrain train recipe=quickstart" in page.text


def test_it_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "onload", "onerror"} & set(attributes)
    policy = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policy and "default-src 'none'" in str(policy[0])
    assert "http://" not in page.source.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.source


def test_texts_of_a_run_are_only_text(tmp_path: Path) -> None:
    """A run folder may come from anyone: its names, texts, keys and numbers reach the page escaped."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    clean, run = make_run(tmp_path / "clean"), make_run(tmp_path / "x<img src=y>" / "a'\"><script>z")
    (run / "sample.txt").write_text(evil)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 210, "split": "eval", "loss": 3.0, evil: 1.0, "note": evil, "x": [1]}) + "\n")
        file.write(json.dumps({"step": 220, "split": "train", "loss": {"a": evil}, "tokens": evil}) + "\n")
    config = {"model": {"_target_": evil}, "engine": {"name": evil}, evil: evil, "trainer": evil, "launcher": [evil]}
    (run / "config.yaml").write_text(json.dumps(config))
    environment = {
        "host": evil,
        "devices": [{"name": evil}],
        "git": {"commit": evil},
        evil: {evil: [evil]},
        "earlier": 3,
    }
    (run / "environment.json").write_text(json.dumps(environment))
    for page in (Page(write_report(run)), Page(_two(run, clean, tmp_path / "two.html"))):
        tags = [tag for tag, _ in page.elements]
        assert tags.count("script") == 2 and "img" not in tags
        assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert "alert(1)" in page.text
        assert evil in [chart["metric"] for chart in page.data["charts"]]


@pytest.mark.parametrize(
    "config", ["a: &a {b: *a}", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "[" * 100_000, "\x00", "- just a list"]
)
def test_hostile_structures_only_lose_themselves(tmp_path: Path, config: str) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", lr=1.0)
    (run / "config.yaml").write_text(config)
    (run / "environment.json").write_text('{"a":' * 100_000)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "split": "train", "loss": 1' + "0" * 400 + "}\n")
        file.write(
            '{"step": 1e3, "split": "train", "loss": 1}\n{"step": 300, "split": "train", "x": ' + "[" * 99_999 + "\n"
        )
    page = Page(_two(run, other, tmp_path / "two.html"))
    assert page.chart("loss")["series"][0]["value"] == pytest.approx(
        [x["loss"] for x in _lines(other, "train")], rel=1e-5
    )
    assert "Held-out" in Page(write_report(run)).text


def _two(one: Path, other: Path, out: Path) -> Path:
    assert main([str(one), str(other), "--out", str(out)]) == 0
    return out


def test_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make_run(tmp_path / "quickstart" / "a", lr=1e-3)
    b = make_run(tmp_path / "quickstart" / "b", lr=3e-3, engine="ddp", floor=2.5)
    c = make_run(tmp_path / "quickstart" / "c", lr=3e-3, steps=100, eval_every=None)
    out = tmp_path / "new" / "compare.html"
    assert main([str(a), str(b), str(c), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = Page(out)
    assert page.data["runs"] == ["a", "b", "c"] and "3 runs of quickstart" in page.text
    loss = page.chart("loss")["series"]
    assert [(one["run"], one["split"]) for one in loss] == [
        (0, "train"), (0, "eval"), (1, "train"), (1, "eval"), (2, "train"),
    ]  # fmt: skip
    best = _loss(200, 2.5) + 0.05
    assert f"Lowest final held-out loss: b with {best:.4f} (perplexity {math.exp(best):.3g}), 0.5000 below" in page.text
    overview, differences = page.tables[:2]
    assert [row[0] for row in overview[1:]] == ["a", "b", "c"] and overview[3][1:3] == ["–", "–"]
    assert differences == [
        ["setting", "a", "b", "c"],
        ["optimizer.lr", "0.001", "0.003", "0.003"],
        ["engine.name", "zero2", "ddp", "zero2"],
        ["trainer.max_steps", "200", "200", "100"],
    ]


def test_without_evaluation_nothing_is_claimed(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run", eval_every=None, planned=500)))
    assert "The training loss fell from" in page.text and "nothing was held out to check it" in page.text
    assert "It stands at step 200 of 500." in page.text
    assert "perplexity –" in page.text and "perplexity" not in [chart["metric"] for chart in page.data["charts"]]


def test_overfitting_and_divergence_are_said(tmp_path: Path) -> None:
    over = tmp_path / "over"
    over.mkdir()
    log = JsonlLog(over)
    for step, loss in ((0, 7.0), (10, 4.0), (20, 4.5)):
        log.log(step, "eval", {"loss": loss, "perplexity": math.exp(loss)})
    log.close()
    assert "It was lowest at step 10 (54.6) and has risen since." in Page(write_report(over)).text
    gone = make_run(tmp_path / "gone", steps=10, every=1, eval_every=None)
    log = JsonlLog(gone, resume_step=10)
    for step in (11, 12):
        log.log(step, "train", {"loss": math.nan, "grad_norm": math.inf, "tokens": step})
    log.close()
    page = Page(write_report(gone))
    assert "not finite from step 11 on: the run diverged" in page.text
    (loss,) = page.chart("loss")["series"]
    assert loss["step"] == list(range(1, 11)) and loss["bad"] == [[11, 11, "nan"], [12, 12, "nan"]]
    assert page.chart("grad_norm")["series"][0]["bad"][0] == [11, 11, "inf"]


def test_one_line_a_broken_line_and_no_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("a: [")  # broken too
    assert "Nothing was logged yet." in Page(write_report(run)).text
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": 5, "split": "train", "loss": 4.25}\n')
    page = Page(write_report(run))
    assert "One log point, with a training loss of 4.25." in page.text
    assert page.chart("loss")["series"][0] == {
        "run": 0, "split": "train", "step": [5], "tokens": None, "value": [4.25], "bad": [],
    }  # fmt: skip
    metrics.write_bytes(metrics.read_bytes() + b'garbage\n[1]\n\xff\xfe\n{"step": 6, "split": "train", "lo')
    assert Page(write_report(run)).chart("loss")["series"][0]["step"] == [5]


def test_a_hundred_thousand_lines_keep_their_extremes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    noise = random.Random(0)
    values = [3 + noise.random() for _ in range(100_000)]
    values[61_234], values[7_777] = 99.0, 0.5
    with (run / "metrics.jsonl").open("w") as file:
        for step, value in enumerate(values):
            file.write(json.dumps({"step": step, "split": "train", "loss": value, "tokens": step * 10}) + "\n")
    page = Page(write_report(run))
    (loss,) = page.chart("loss")["series"]
    points = dict(zip(loss["step"], loss["value"], strict=True))
    assert len(points) <= 2000 and loss["step"] == sorted(loss["step"])
    assert points[61_234] == 99.0 and points[7_777] == 0.5 and {0, 99_999} <= set(points)
    assert all(points[step] == pytest.approx(values[step], rel=1e-5) for step in points)
    assert len(page.source) < 200_000


def test_thin_leaves_short_curves_alone() -> None:
    points = [(step, None, float(step)) for step in range(50)]
    assert thin(points, 50) == points
    assert thin(points, 20)[0] == points[0] and thin(points, 20)[-1] == points[-1] and len(thin(points, 20)) <= 20


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "quickstart" / "one", steps=2)
    with pytest.raises(UserError, match=r"there is no .*absent"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"quickstart is no run folder.*There are run folders in it: .*one"):
        main([str(run.parent)])
    with pytest.raises(UserError, match=r"There are run folders in it: .*one"):
        main([str(tmp_path / "runs")])
    with pytest.raises(UserError, match=r"config\.yaml is a file"):
        main([str(run / "config.yaml")])
    with pytest.raises(UserError, match="cannot write"):
        main([str(run), "--out", str(run / "config.yaml" / "x.html")])


def test_it_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2000)
    code = (
        "import sys; from bigtrain.report import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'numpy', 'transformers', 'rich', 'hydra'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.5  # other tests share the cores


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to draw with")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = ["chromium", *options, write_report(run).as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    charts = dom.split("<figure")[1:]
    assert len(charts) == len(Page(run / "report.html").data["charts"])
    assert charts[0].count('class="line c0"') == 1 and charts[0].count('class="line c1"') == 1
    assert "Loss. run train:" in charts[0].replace(tmp_path.name + "/", "")
    assert all('class="line' in chart for chart in charts) and "NaN" not in "".join(charts).split("<script")[0]
