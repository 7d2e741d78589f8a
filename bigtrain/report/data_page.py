"""`data_report.html`: what prepared data was made of, what cleaning did to it, and what was dropped and why.

One self-contained page without scripts: it asks for nothing from anywhere. Every text of a document is escaped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.data.clean.funnel import FILE_NAME as FUNNEL
from bigtrain.data.clean.funnel import Funnel, StepCounts
from bigtrain.data.shards import Manifest, read_manifest
from bigtrain.errors import UserError
from bigtrain.report.data_parts import Places, bars, cards, changes, dropped, funnel_picture, histogram, table, text
from bigtrain.telemetry.progress import clock, short

FILE_NAME = "data_report.html"


@dataclass(frozen=True, slots=True)
class Part:
    """A domain: a prepared folder, and the funnel that lies in it."""

    name: str
    folder: Path
    manifest: Manifest
    funnel: Funnel | None
    weight: float | None

    def tokens(self, split: str) -> int:
        """Tokens of "train" or "eval"."""
        return self.manifest["splits"][split]["tokens"]

    def documents(self, split: str) -> int:
        """Documents of "train" or "eval"."""
        return self.manifest["splits"][split]["documents"]


def write_data_report(folders: Mapping[str, Path], out: Path, weights: Mapping[str, float] | None = None) -> Path:
    """Writes the page about prepared folders, by the names of their domains, to `out`; `weights`: of their mixture.

    Raises:
        UserError: a folder is not prepared, or the file cannot be written.
    """
    page = render([_part(name, folder, (weights or {}).get(name)) for name, folder in folders.items()])
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return out


def report_on(data: Any, run_dir: Path | None = None) -> list[Path]:
    """The pages about a data object: one of all its domains in the run folder, or else one in each prepared folder.

    None where the data are not bigtrain's (no `folders`, a mapping of domains to folders, and no `folder`), or lie in
    an object store. A folder that cannot be written to, as others' may be, is left without.
    """
    folders = getattr(data, "folders", None) or {"data": getattr(data, "folder", None)}
    here = {
        name: folder
        for name, folder in folders.items()
        if isinstance(folder, Path) and (folder / "manifest.json").is_file()
    }
    if run_dir is not None:
        return [write_data_report(here, run_dir / FILE_NAME, getattr(data, "weights", None))] if here else []
    written = []
    for name, folder in here.items():
        with contextlib.suppress(UserError):
            written.append(write_data_report({name: folder}, folder / FILE_NAME))
    return written


def render(parts: Sequence[Part]) -> str:
    """The whole page."""
    here = Path(__file__).parent
    one = len(parts) == 1
    title = _title(parts[0]) if one else " + ".join(part.name for part in parts)
    body = "".join(
        [
            "<header><p class=brand>bigtrain data</p>",
            f"<h1>{text(title)}</h1>",
            f"<p class=verdict>{text(_verdict(parts))}</p>",
            _facts(parts),
            "</header>",
            cards(_numbers(parts)),
            "" if one else _domains(parts),
            "".join(_section(part, one) for part in parts),
            f"<footer>{text(', '.join(part.folder.name for part in parts))} · made by bigtrain</footer>",
        ]
    )
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark">'
        f"<title>{text(title)} · data · bigtrain</title>\n"
        f"<style>\n{(here / 'style.css').read_text()}{(here / 'data.css').read_text()}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _part(name: str, folder: Path, weight: float | None) -> Part:
    manifest = read_manifest(folder)
    funnel = Funnel.read(folder / FUNNEL) if (folder / FUNNEL).is_file() else None
    return Part(name, folder, manifest, funnel if funnel and funnel.before.documents else None, weight)


def _title(part: Part) -> str:
    """The name of what was read."""
    sources = [Path(source["name"]).name for source in part.manifest["sources"]]
    return sources[0] if len(sources) == 1 else Path(part.manifest["sources"][0]["name"]).parent.name or part.name


def _verdict(parts: Sequence[Part]) -> str:
    """What a person wants to know, in two sentences."""
    tokens = sum(part.tokens("train") for part in parts)
    held = sum(part.tokens("eval") for part in parts)
    documents = sum(part.documents(split) for part in parts for split in ("train", "eval"))
    trained = f"{short(tokens)} tokens to train on, {short(held)} held out."
    funnels = [part.funnel for part in parts if part.funnel]
    if not funnels:
        return f"{documents:,} documents, none of them cleaned: {trained}"
    read, left = (sum(getattr(f, side).documents for f in funnels) for side in ("before", "after"))
    before, after = (sum(getattr(f, side).characters for f in funnels) for side in ("before", "after"))
    kept = f"{left:,} of {read:,} documents are left, and {_share(after, before)} of their characters"
    why: dict[str, int] = {}
    for funnel in funnels:
        for step in funnel.steps:
            for reason, counts in step.reasons.items():
                why[f"{step.name} ({reason})"] = why.get(f"{step.name} ({reason})", 0) + counts.documents
    most = max(why, key=lambda name: why[name], default=None)
    dropped_most = f" Most were dropped by {most}: {why[most]:,}." if most else " None was dropped."
    return f"{kept}: {trained}{dropped_most}"


def _share(part: float, whole: float) -> str:
    share = part / whole if whole else 0.0
    return f"{share:.0%}" if share in (0, 1) or 0.01 <= share <= 0.99 else f"{share:.2%}"


def _facts(parts: Sequence[Part]) -> str:
    """Chips: what holds for all parts."""
    manifest = parts[0].manifest
    settings = manifest["settings"]
    facts: dict[str, Any] = {
        "tokenizer": settings.get("tokenizer") or "trained here",
        "vocabulary": f"{manifest['vocab_size']:,}",
        "files": f"{sum(len(part.manifest['sources']) for part in parts):,}",
        "held out": f"{settings['held_out']:.3g} of the documents" if "held_out" in settings else None,
        "seed": settings.get("seed"),
        "empty documents": sum(part.manifest["empty_documents"] for part in parts),
        "broken records": sum(part.manifest["broken_records"] for part in parts),
        "excluded": sum(part.funnel.excluded for part in parts if part.funnel),
    }
    shown = {name: value for name, value in facts.items() if value or name == "seed"}
    chips = "".join(f"<li><b>{text(name)}</b> {text(value)}" for name, value in shown.items() if value is not None)
    return f"<ul class=facts>{chips}</ul>"


def _numbers(parts: Sequence[Part]) -> dict[str, tuple[str, str]]:
    """Name → (figure, what is behind it)."""
    train, held = (sum(part.tokens(split) for part in parts) for split in ("train", "eval"))
    documents = sum(part.documents(split) for part in parts for split in ("train", "eval"))
    held_documents = sum(part.documents("eval") for part in parts)
    numbers = {
        "training tokens": (short(train), f"{train:,}"),
        "held-out tokens": (short(held), f"{held_documents:,} documents"),
        "documents": (short(documents), f"{(train + held) / max(1, documents):,.0f} tokens each"),
    }
    funnels = [part.funnel for part in parts if part.funnel]
    if funnels:
        read, left = (sum(getattr(f, side).documents for f in funnels) for side in ("before", "after"))
        before, after = (sum(getattr(f, side).characters for f in funnels) for side in ("before", "after"))
        changed = sum(step.changed for funnel in funnels for step in funnel.steps)
        numbers["dropped"] = (_share(read - left, read), f"{read - left:,} of {read:,} documents")
        numbers["characters"] = (short(after), f"{_share(after, before)} of {short(before)} read")
        if len(funnels) == len(parts):
            numbers["characters / token"] = (f"{after / max(1, train + held):.2f}", "the tokenizer's compression")
        if changed:
            numbers["changes"] = (short(changed), "texts that a step changed")
    return numbers


def _domains(parts: Sequence[Part]) -> str:
    total = sum(part.tokens("train") for part in parts)
    rows = []
    for part in parts:
        read = f"{part.funnel.before.documents:,}" if part.funnel else "–"
        left = part.documents("train") + part.documents("eval")
        rows.append(
            [
                text(part.name),
                f"{part.weight:.1%}" if part.weight is not None else _share(part.tokens("train"), total),
                f"{part.tokens('train'):,}",
                _share(part.tokens("train"), total),
                f"{part.tokens('eval'):,}",
                read,
                f"{left:,}",
            ]
        )
    head = ["domain", "weight", "training tokens", "of all", "held-out tokens", "documents read", "left"]
    return f"<section><h2>Domains</h2>{table(head, rows, 'figures')}</section>"


def _section(part: Part, one: bool) -> str:
    heading = "" if one else f"<h2 class=domain>{text(part.name)}</h2>"
    if part.funnel is None:
        note = "Read as it is: <code>data.clean</code> names no steps, such as <code>clean=prose</code>."
        return f"<section>{heading}<p class=note>{note}</p></section>"
    funnel, places = part.funnel, Places(part.manifest["sources"])
    reasons = [(step, name, counts) for step in funnel.steps for name, counts in step.reasons.items()]
    reasons.sort(key=lambda item: (-item[2].documents, item[0].name, item[1]))
    return "".join(
        [
            f"<section>{heading}<h2>What each step left</h2>{funnel_picture(funnel)}{_seconds(funnel.steps)}</section>",
            f"<section><h2>Why documents were dropped</h2>{bars(reasons)}</section>" if reasons else "",
            f"<section><h2>Length of documents</h2>{histogram(funnel.before, funnel.after)}</section>",
            f"<section><h2>Samples of what was dropped</h2>{dropped(reasons, places)}</section>" if reasons else "",
            changes(funnel.steps, places),
        ]
    )


def _seconds(steps: Sequence[StepCounts]) -> str:
    total = sum(step.seconds for step in steps)
    slowest = max(steps, key=lambda step: step.seconds, default=None)
    if slowest is None or total < 1:
        return ""
    most = f"{_share(slowest.seconds, total)} of it {text(slowest.name)}"
    return f"<p class=note>{clock(total)} of processor time, {most}.</p>"
