"""The HTML page. Every text of a run is escaped: a run folder may come from anyone."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigtrain.confusion import confusion_svg
from bigtrain.report.range_test import range_svg, range_test
from bigtrain.report.read import Curve, Run, curve, metric_names
from bigtrain.report.summary import (
    ABSENT,
    Summary,
    common_word,
    compare,
    differences,
    figure,
    finite,
    summarise,
    verdict,
)
from bigtrain.telemetry.progress import clock, short

TABLE_ROWS = 40

# metric → title, unit for the axis (chart.js formats it), and how its scale begins: where the data is, at zero, or
# logarithmic
CHARTS = {
    "loss": ("Loss", "", "data"),
    "perplexity": ("Held-out perplexity", "", "log"),
    "lr": ("Learning rate", "", "zero"),
    "grad_norm": ("Gradient norm", "", "zero"),
    "tokens_per_s": ("Throughput, {} per second", "", "zero"),
    "mfu": ("Model FLOP utilisation", "percent", "zero"),
    "memory_peak_bytes": ("Peak memory, largest rank", "bytes", "zero"),
    "step_time_s": ("Step time", "seconds", "zero"),
    "data_wait_s": ("Wait for data, a step", "seconds", "zero"),
}
NO_CHART = ("tokens",)
EXACT = ("lr", "memory_peak_bytes")
"""Metrics without noise: smoothing would only falsify them."""


def render(runs: Sequence[Run]) -> str:
    """The whole page, complete in itself: it asks for nothing from anywhere."""
    summaries = [summarise(run) for run in runs]
    differing = differences(runs)
    one = len(runs) == 1
    title = runs[0].label if one else _common_title(runs)
    test = range_test(runs[0]) if one else None
    sentence = verdict(runs[0], summaries[0]) if one else compare(runs, summaries, differing)
    sentence = test.sentence if test else sentence
    charts = _charts(runs, common_word(summaries))
    here = Path(__file__).parent
    body = "".join(
        [
            "<header><p class=brand>bigtrain report</p>",
            f"<h1>{_text(title)}</h1>",
            f"<p class=verdict>{_text(sentence)}</p>",
            _facts(runs[0]) if one else "",
            "</header>",
            _cards(summaries[0]) if one else _comparison(runs, summaries),
            _differences(runs, differing),
            "".join(_range_test(run, one) for run in runs),
            _plots(charts, one, common_word(summaries)),
            "".join(_evaluations(run, summary, one) for run, summary in zip(runs, summaries, strict=True)),
            "".join(_confusion(run, one) for run in runs),
            "".join(_sample(run, one) for run in runs),
            "".join(_settings(run, one) for run in runs),
            f"<footer>{_text(', '.join(str(run.path.name) for run in runs))} · made by bigtrain</footer>",
        ]
    )
    data = {"runs": [run.label for run in runs], "charts": charts}
    # no network and no foreign script, whatever a run's texts say
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{_text(title)} · bigtrain</title>\n<style>\n{(here / 'style.css').read_text()}</style></head>\n<body>"
        f"<main>{body}</main>\n"
        f'<script type="application/json" id="bigtrain-data">{_script_json(data)}</script>\n'
        f"<script>\n{(here / 'chart.js').read_text()}</script></body></html>\n"
    )


def _common_title(runs: Sequence[Run]) -> str:
    parents = {run.path.resolve().parent.name for run in runs}
    return f"{len(runs)} runs{f' of {parents.pop()}' if len(parents) == 1 else ''}"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _script_json(value: Any) -> str:
    """JSON that no text in it can end the script element of."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _charts(runs: Sequence[Run], word: str) -> list[dict[str, Any]]:
    """Each chart as chart.js wants it (`word`: what is counted as tokens); a metric that no run has makes none."""
    names = dict.fromkeys(CHARTS)
    for run in runs:
        names.update(dict.fromkeys([*metric_names(run.train), *metric_names(run.eval)]))
    charts = []
    for name in names:
        if name in NO_CHART:
            continue
        title, unit, scale = CHARTS.get(name, (name.replace("_", " "), "", "data"))
        title = title.replace("{}", word)
        series = []
        for index, run in enumerate(runs):
            for split, lines in (("train", run.train), ("eval", run.eval)):
                points = curve(lines, name)
                if points.values or points.not_finite:
                    series.append(_series(index, split, points))
        if series:
            charts.append(
                {
                    "metric": name,
                    "title": title,
                    "unit": unit,
                    "scale": scale,
                    "smooth": name not in EXACT,
                    "series": series,
                }
            )
    return charts


def _series(run: int, split: str, points: Curve) -> dict[str, Any]:
    return {
        "run": run,
        "split": split,
        "step": points.steps,
        "tokens": points.tokens,
        "value": [float(f"{value:.6g}") for value in points.values],  # half the file's size, and more than a pixel
        "bad": points.not_finite,
    }


def _facts(run: Run) -> str:
    """Chips under the title: what was run on what."""
    config, environment = run.config, run.environment

    def setting(group: str, name: str) -> Any:
        values = config.get(group)
        return values.get(name) if isinstance(values, dict) else None

    model = str(setting("model", "_target_") or "").rpartition(".")[2]
    processes, nodes = setting("launcher", "processes"), setting("launcher", "nodes") or 1
    git = environment.get("git")
    facts = {
        "model": model,
        "engine": setting("engine", "name"),
        "precision": setting("precision", "name"),
        "ranks": processes * nodes if isinstance(processes, int) and isinstance(nodes, int) else None,
        "global batch": setting("trainer", "global_batch_size"),
        "device": _device(environment.get("devices")) if setting("trainer", "device") != "cpu" else "CPU",
        "host": environment.get("host"),
        "commit": f"{str(git['commit'])[:9]}{' + changes' if git.get('dirty') else ''}"
        if isinstance(git, dict) and git.get("commit")
        else None,
        "started": environment.get("time"),
    }
    if not environment:
        del facts["device"]
    chips = "".join(f"<li><b>{_text(name)}</b> {_text(value)}" for name, value in facts.items() if value)
    return f"<ul class=facts>{chips}</ul>" if chips else ""


def _device(devices: Any) -> str:
    """The machine's GPU, or the CPU where it has none."""
    return (
        str(devices[0].get("name")) if isinstance(devices, list) and devices and isinstance(devices[0], dict) else "CPU"
    )


def _gibibytes(count: float | None) -> str:
    if count is None:
        return "–"
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _numbers(summary: Summary, word: str) -> dict[str, tuple[str, str]]:
    """Name → (figure, what is behind it)."""
    first, last = summary.first_eval, summary.last_eval
    loss, perplexity = finite(last, "loss"), finite(last, "perplexity")
    first_loss, first_perplexity = finite(first, "loss"), finite(first, "perplexity")
    moved = first is not last
    ratio = ""
    if moved and perplexity and first_perplexity:
        times = f"{first_perplexity / perplexity:.3g}× lower" if perplexity < first_perplexity else "not lower"
        ratio = f"from {figure(first_perplexity)}, {times}"
    return {
        "perplexity": (figure(perplexity) if perplexity is not None else "–", ratio or "held out"),
        "held-out loss": (
            f"{loss:.4f}" if loss is not None else "–",
            f"from {first_loss:.4f}" if first_loss is not None and moved else "",
        ),
        word: (
            short(summary.tokens) if summary.tokens else "–",
            f"{summary.last_step:,} steps" if summary.last_step is not None else "",
        ),
        "training time": (clock(summary.training_s) if summary.training_s is not None else "–", "evaluations aside"),
        f"{word} / s": (short(summary.tokens_per_s) if summary.tokens_per_s is not None else "–", "median, all ranks"),
        "peak memory": (_gibibytes(summary.memory_peak_bytes), "largest rank"),
        "MFU": (
            f"{summary.mfu:.1%}" if summary.mfu is not None else "–",
            "median" if summary.mfu is not None else "the device's peak is not known",
        ),
    }


def _cards(summary: Summary) -> str:
    cards = "".join(
        f"<div class=card><dt>{name}</dt><dd>{_text(value)}</dd><small>{_text(note)}</small></div>"
        for name, (value, note) in _numbers(summary, summary.counted).items()
    )
    return f"<dl class=cards>{cards}</dl>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class=scroll><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _swatch(index: int, label: str) -> str:
    return f'<i class="swatch c{index % 8}"></i>{_text(label)}'


def _comparison(runs: Sequence[Run], summaries: Sequence[Summary]) -> str:
    columns = [_numbers(summary, common_word(summaries)) for summary in summaries]
    losses = [finite(summary.last_eval, "loss") for summary in summaries]
    best = min((loss for loss in losses if loss is not None), default=None)
    rows = []
    for index, (run, numbers) in enumerate(zip(runs, columns, strict=True)):
        cells = [_text(value) for value, _ in numbers.values()]
        if best is not None and losses[index] == best:
            cells[:2] = [f"<b>{cell}</b>" for cell in cells[:2]]
        rows.append([_swatch(index, run.label), *cells])
    return f"<section><h2>Runs</h2>{_table(['run', *columns[0]], rows, 'figures')}</section>"


def _differences(runs: Sequence[Run], differing: dict[str, list[Any]]) -> str:
    if not differing:
        return (
            "" if len(runs) == 1 else "<section><h2>Settings</h2><p>No setting differs, as far as is known.</section>"
        )
    head = ["setting", *(_swatch(index, run.label) for index, run in enumerate(runs))]
    rows = [
        [f"<code>{_text(name)}</code>", *(_text("–" if value is ABSENT else value) for value in values)]
        for name, values in differing.items()
    ]
    return f"<section><h2>Settings that differ</h2>{_table(head, rows)}</section>"


def _plots(charts: list[dict[str, Any]], one: bool, word: str) -> str:
    if not charts:
        return ""
    figures = "".join(
        f'<figure data-chart="{index}"><figcaption>{_text(chart["title"])}</figcaption></figure>'
        for index, chart in enumerate(charts)
    )
    keys = (
        "<span class=key><i class='swatch c0'></i>train</span><span class=key><i class='swatch c1'></i>held out</span>"
    )
    lines = "<span class=key>solid: train · dashed: held out</span>"
    legend = keys if one else f"<span id=legend></span>{lines}"
    return (
        f"<section><h2>Curves</h2><div class=tools>{legend}<span class=space></span>"
        f"<label>over <select id=axis><option value=step>steps<option value=tokens>{word}</select></label>"
        "<label>smoothing <input id=smooth type=range min=0 max=0.98 step=0.02 value=0></label></div>"
        "<noscript><p>The plots need JavaScript; the tables do not.</noscript>"
        f"<div class=plots>{figures}</div></section>"
    )


def _of(run: Run, one: bool) -> str:
    return "" if one else f" · {_text(run.label)}"


def _evaluations(run: Run, summary: Summary, one: bool) -> str:
    """The perplexity table; of very many evaluations an even choice, the first, best and last among them."""
    lines = run.eval
    if not lines:
        return ""
    stride = -(-len(lines) // TABLE_ROWS)
    always = (lines[0], lines[-1], summary.best_eval)
    shown = [line for index, line in enumerate(lines) if index % stride == 0 or any(line is kept for kept in always)]
    names = [name for name in metric_names(lines) if name != "tokens"]
    rows = []
    for line in shown:
        tokens = finite(line, "tokens")
        best = " <span class=best>best</span>" if line is summary.best_eval and len(lines) > 1 else ""
        cells = [f"{line.step:,}{best}", f"{tokens:,.0f}" if tokens is not None else "–"]
        cells += [_cell(name, line.metrics.get(name)) for name in names]
        rows.append(cells)
    note = f"<p class=note>{len(shown)} of {len(lines)} evaluations.</p>" if len(shown) < len(lines) else ""
    table = _table(["step", summary.counted, *map(_text, names)], rows, "figures")
    if one:
        return f"<section><h2>Evaluation</h2>{table}{note}</section>"
    return f"<section><details><summary>Evaluation{_of(run, one)}</summary>{table}{note}</details></section>"


def _cell(name: str, value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if name == "loss" else f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4g}"


def _range_test(run: Run, one: bool) -> str:
    test = range_test(run)
    if test is None:
        return ""
    said = f"<p class=note>{_text(test.sentence)}</p>" if not one else ""  # else it is the verdict
    return (
        f"<section><h2>Learning-rate range test{_of(run, one)}</h2>{said}<figure>{range_svg(test)}</figure></section>"
    )


def _confusion(run: Run, one: bool) -> str:
    matrix: Any = run.confusion.get("matrix")
    names = run.confusion.get("names")
    if not _square(matrix):
        return ""
    picture = confusion_svg(matrix, names if isinstance(names, list) and len(names) == len(matrix) else None)
    return f"<section><h2>Confusion matrix{_of(run, one)}</h2>{picture}</section>"


def _square(matrix: Any) -> bool:
    """Whether what the file holds is a matrix of counts."""
    return (
        isinstance(matrix, list)
        and len(matrix) > 0
        and all(isinstance(row, list) and len(row) == len(matrix) for row in matrix)
        and all(type(count) is int and count >= 0 for row in matrix for count in row)
    )


def _sample(run: Run, one: bool) -> str:
    if not run.sample.strip():
        return ""
    return f"<section><h2>Sample text{_of(run, one)}</h2><pre class=sample>{_text(run.sample.strip())}</pre></section>"


def _settings(run: Run, one: bool) -> str:
    parts = []
    if run.environment:
        shown = {name: value for name, value in run.environment.items() if name != "earlier"}
        rows = [[_text(name.replace("_", " ")), _value(value)] for name, value in shown.items()]
        earlier = run.environment.get("earlier")
        sessions = f"<p class=note>Sessions before this one: {len(earlier)}.</p>" if isinstance(earlier, list) else ""
        parts.append(
            f"<details><summary>Environment{_of(run, one)}</summary>{_table([], rows, 'plain')}{sessions}</details>"
        )
    if run.config_text:
        text = f"<pre>{_text(run.config_text)}</pre>"
        parts.append(f"<details><summary>Configuration{_of(run, one)}</summary>{text}</details>")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _value(value: Any) -> str:
    """A value of environment.json: mappings and lists of them as lines."""
    if isinstance(value, dict):
        return "<br>".join(f"{_text(name)}: {_text(_bytes_said(str(name), one))}" for name, one in value.items()) or "–"
    if isinstance(value, list):
        return "<br>".join(_value(one) if not isinstance(one, dict) else _line(one) for one in value) or "none"
    return "–" if value is None else _text(value)


def _line(values: dict[str, Any]) -> str:
    return ", ".join(f"{_text(name)}: {_text(_bytes_said(str(name), one))}" for name, one in values.items())


def _bytes_said(name: str, value: Any) -> Any:
    return _gibibytes(value) if name.endswith("_bytes") and isinstance(value, int) else value
