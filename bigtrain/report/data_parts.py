"""The pictures and samples of `data_report.html`, as HTML. Whatever comes from a document or a setting is escaped."""

from __future__ import annotations

import difflib
import html
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigtrain.data.clean.funnel import EXCERPT, Example, Funnel, Lengths, Reason, StepCounts
from bigtrain.data.sources import HUB, JSONL, TEXT
from bigtrain.telemetry.progress import short

MOST_REASONS = 30
"""Of more, the rarest are counted together."""

Reasons = Sequence[tuple[StepCounts, str, Reason]]


class Places:
    """Names documents by file and offset: the file's name below what all files have in common."""

    def __init__(self, sources: Sequence[Mapping[str, Any]]) -> None:
        self.sources = sources
        folders = [str(Path(source["name"]).parent) for source in sources if source["kind"] != HUB]
        try:
            self.common = os.path.commonpath(folders) if len(folders) == len(sources) else ""
        except ValueError:  # absolute and other names together
            self.common = ""

    def __call__(self, source: int, offset: int) -> str:
        """Such as `notes.jsonl · byte 1,024`, with the whole name on hovering."""
        if source >= len(self.sources):
            return f"source {source} · {offset:,}"
        entry = self.sources[source]
        name = str(entry["name"])
        shown = name[len(self.common) :].lstrip("/") if self.common and name.startswith(self.common) else name
        unit = "byte" if entry["kind"] in (TEXT, JSONL) else "row"
        return f'<b title="{text(name)}">{text(shown or Path(name).name)}</b> <span>{unit} {offset:,}</span>'


def text(value: Any) -> str:
    """Escaped."""
    return html.escape(str(value), quote=True)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class=scroll><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(numbers: Mapping[str, tuple[str, str]]) -> str:
    """Name → (figure, what is behind it), as cards."""
    inside = "".join(
        f"<div class=card><dt>{text(name)}</dt><dd>{text(value)}</dd><small>{text(note)}</small></div>"
        for name, (value, note) in numbers.items()
    )
    return f"<dl class=cards>{inside}</dl>"


def funnel_picture(funnel: Funnel) -> str:
    """Documents to the left, characters to the right of the middle, narrower with each step; red: what went."""
    documents, characters = max(1, funnel.before.documents), max(1, funnel.before.characters)
    rows = [
        "<span class=head></span><span class='head figure'></span><span class='head documents'>documents</span>"
        "<span class='head characters'>characters</span><span class=head></span>"
        "<span class=head>dropped · changed</span>",
        _row("read", "", (documents, documents), (characters, characters), (documents, characters), "name end"),
    ]
    for step in funnel.steps:
        gone = step.documents_in - step.documents_out
        said = f"<span><b>−{gone:,}</b> ({_percent(gone, step.documents_in)})</span>" if gone else ""
        said += f"<span>{step.changed:,} changed</span>" if step.changed else ""
        rows.append(
            _row(
                step.name,
                said,
                (step.documents_in, step.documents_out),
                (step.characters_in, step.characters_out),
                (documents, characters),
            )
        )
    return f"<div class='panel funnel'>{''.join(rows)}</div>"


def _row(
    name: str,
    said: str,
    documents: tuple[int, int],
    characters: tuple[int, int],
    whole: tuple[int, int],
    kind: str = "name",
) -> str:
    sides = []
    for (start, end), all_, side in zip((documents, characters), whole, ("documents", "characters"), strict=True):
        top, bottom = 100 * start / all_, 100 * end / all_
        was, now = (_slab(top, until, mirrored=side == "documents") for until in (top, bottom))
        sides.append(f'<span class="shape {side}"><i class=was style="{was}"></i><i style="{now}"></i></span>')
    return (
        f'<span class="{kind}">{text(name)}</span><span class=figure>{documents[1]:,}</span>{sides[0]}{sides[1]}'
        f'<span class="figure right">{short(characters[1])}</span><span class=gone>{said}</span>'
    )


def _slab(top: float, bottom: float, mirrored: bool) -> str:
    """The style of a shape so wide at its top and at its bottom, in percent, from the left, or from the right."""
    corners = [(0.0, 0), (top, 0), (bottom, 100), (0.0, 100)]
    return f"clip-path:polygon({','.join(f'{100 - x if mirrored else x:.2f}% {y}%' for x, y in corners)})"


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def bars(reasons: Reasons) -> str:
    """The reasons, from the most frequent to the rarest."""
    most = max(counts.documents for _, _, counts in reasons)
    rows = []
    for step, name, counts in reasons[:MOST_REASONS]:
        rows.append(
            f"<span class=step>{text(step.name)}</span><span>{text(name)}</span>"
            f'<span class=bar><i style="width:{100 * counts.documents / most:.2f}%"></i></span>'
            f"<span class=count>{counts.documents:,} <small>· {short(counts.characters)} characters</small></span>"
        )
    rest = reasons[MOST_REASONS:]
    number = sum(counts.documents for _, _, counts in rest)
    note = f"<p class=note>{len(rest):,} rarer reasons: {number:,} documents.</p>" if rest else ""
    return f"<div class='panel bars'>{''.join(rows)}</div>{note}"


def histogram(before: Lengths, after: Lengths) -> str:
    """Documents by their length, on a logarithmic scale: as read behind, as left in front."""
    was, now = (list(lengths.histogram) for lengths in (before, after))
    size = max(len(was), len(now))
    was, now = was + [0] * (size - len(was)), now + [0] * (size - len(now))
    used = [place for place in range(size) if was[place] or now[place]]
    if not used:
        return "<p class=note>No documents.</p>"
    first, last = max(0, used[0] - 1), used[-1] + 1
    width, height, left, bottom, top = 1080, 250, 52, 28, 10
    step = (width - left - 8) / (last - first + 1)
    most = max(*was, *now)
    scale = (height - bottom - top) / most
    parts = []
    for value in _ticks(most):
        y = height - bottom - value * scale
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class=axis x="{left - 8}" y="{y + 4:.1f}" text-anchor=end>{short(value)}</text>')
    for place in range(first, last):
        x = left + (place - first + 0.5) * step
        span = f"{2 ** (place / 2):,.0f} to {2 ** ((place + 1) / 2):,.0f} characters"
        title = f"<title>{span}: {was[place]:,} read, {now[place]:,} left</title>"
        for kind, number, inset in (("was", was[place], 0.03), ("now", now[place], 0.16)):
            if number:
                tall = max(1.0, number * scale)
                parts.append(
                    f'<rect class={kind} x="{x + inset * step:.1f}" y="{height - bottom - tall:.1f}" rx=2 '
                    f'width="{step * (1 - 2 * inset):.1f}" height="{tall:.1f}">{title}</rect>'
                )
    for power in range(13):
        for digit in (1, 3) if last - first < 16 else (1,):
            at = 2 * math.log2(digit * 10**power)
            if first <= at <= last:
                x = left + (at - first + 0.5) * step
                said = short(digit * 10**power)
                parts.append(f'<text class=axis x="{x:.1f}" y="{height - 8}" text-anchor=middle>{said}</text>')
    means = [short(lengths.characters / max(1, lengths.documents)) for lengths in (before, after)]
    keys = (
        f"<p class=keys><span><i class='swatch gone'></i>as read, {means[0]} characters on average</span>"
        f"<span><i class='swatch c0'></i>as left, {means[1]}</span></p>"
    )
    label = f"Documents by length in characters: {before.documents:,} read, {after.documents:,} left"
    picture = f'<svg viewBox="0 0 {width} {height}" role=img aria-label="{label}">{"".join(parts)}</svg>'
    return f"{keys}<div class='panel histogram'>{picture}</div>"


def _ticks(most: int) -> list[int]:
    """Four or five round numbers up to `most`."""
    power = 10 ** math.floor(math.log10(max(1, most) / 4)) if most >= 4 else 1
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power * 5 >= most)
    return [round(number * step) for number in range(int(most / step) + 1)]


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"


def dropped(reasons: Reasons, places: Places) -> str:
    """Of each reason a few documents, with file, offset, and what was seen in them."""
    parts = []
    for number, (step, name, counts) in enumerate(reasons[:MOST_REASONS]):
        distinct = {example.text: example for example in reversed(counts.examples)}.values()
        inside = "".join(_twins(e, places) if e.other is not None else _one(e, places) for e in distinct)
        twins = any(example.other not in (None, example.text) for example in distinct)
        parts.append(
            f"<details{' open' if number < 3 or twins else ''}><summary>{text(step.name)}: {text(name)}"
            f"<small>{_documents(counts.documents)}</small></summary><div class=samples>{inside}</div></details>"
        )
    return "".join(parts)


def _one(example: Example, places: Places) -> str:
    seen = f"<span class=seen>{text(example.detail)}</span>" if example.detail else ""
    cut = "<span class=cut> …</span>" if example.characters > len(example.text) else ""
    return (
        f"<article class=example><p>{places(example.source, example.offset)}"
        f"<span>{example.characters:,} characters</span>{seen}</p><pre>{_shown(example.text)}{cut}</pre></article>"
    )


def _twins(example: Example, places: Places) -> str:
    """Side by side: the document that was dropped, and the one that stays instead."""
    kept = places(*example.other_place) if example.other_place else "another"
    left, right = _compared(example.text, example.other or "")
    same = "the same" if example.text == example.other else "at the first difference"
    return (
        f"<article class='example wide'><p><span>{example.characters:,} characters, {same}</span></p><div class=sides>"
        f"<div><small>dropped: {places(example.source, example.offset)}</small><pre>{left}</pre></div>"
        f"<div><small>stays: {kept}</small><pre>{right}</pre></div></div></article>"
    )


def changes(steps: Sequence[StepCounts], places: Places) -> str:
    """Of each step that changed texts a few, before and after."""
    parts: list[str] = []
    for step in steps:
        if not step.changes:
            continue
        inside = []
        for example in {(example.text, example.other): example for example in reversed(step.changes)}.values():
            if not example.text:  # what was replaced is nobody's business
                inside.append(_one(replace(example, text=example.other or "", other=None), places))
                continue
            before, after = _compared(example.text, example.other or "", unseen=True)
            inside.append(
                f"<article class='example wide'><p>{places(example.source, example.offset)}"
                f"<span>{example.characters:,} characters, at the first change</span></p><div class=sides>"
                f"<div><small>before</small><pre>{before}</pre></div>"
                f"<div><small>after</small><pre>{after}</pre></div></div></article>"
            )
        replaced = "".join(f", {number:,} {text(kind)}" for kind, number in sorted(step.replaced.items()))
        changed, lost = _documents(step.changed), step.characters_in - step.characters_out
        lost -= sum(reason.characters for reason in step.reasons.values())
        moved = f", {short(abs(lost))} characters {'fewer' if lost > 0 else 'more'}" if lost else ""
        parts.append(
            f"<details{'' if parts else ' open'}><summary>{text(step.name)}<small>{changed}{moved}{replaced}</small>"
            f"</summary><div class=samples>{''.join(inside)}</div></details>"
        )
    return f"<section><h2>Samples of what was changed</h2>{''.join(parts)}</section>" if parts else ""


def _compared(before: str, after: str, unseen: bool = False) -> tuple[str, str]:
    """Both as HTML, with what differs marked."""
    a, b = (re.findall(r"\w+|\s|[^\w\s]", side) for side in (before, after))
    left, right = [], []
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    blocks = matcher.get_opcodes()
    for number, (kind, i1, i2, j1, j2) in enumerate(blocks):
        old, new = "".join(a[i1:i2]), "".join(b[j1:j2])
        if kind == "equal":
            left.append(_shown(old))
            right.append(_shown(new))
            continue
        farther = number == len(blocks) - 1 and not (old and new) and max(len(before), len(after)) >= EXCERPT
        if farther:  # one excerpt merely shows more of the same
            left.append(_shown(old))
            right.append(_shown(new))
            continue
        left.append(f"<del>{_shown(old, unseen)}</del>" if old else "")
        right.append(f"<ins>{_shown(new, unseen)}</ins>" if new else "")
    return "".join(left), "".join(right)


def _shown(value: str, spaces: bool = False) -> str:
    """Escaped; characters without a glyph by their number, and where asked for, spaces and line ends too."""
    out = []
    for character in value:
        if character == "\n":
            out.append("<span class=unseen>↵</span>\n" if spaces else "\n")
        elif character == "\r":
            out.append("<span class=unseen>CR</span>")
        elif character == " " and spaces:
            out.append("<span class=unseen>space</span>" if len(value.strip(" ")) == 0 else " ")
        elif character == "\t":
            out.append("<span class=unseen>tab</span>" if spaces else "\t")
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") or (
            character.isspace() and character != " "
        ):
            out.append(f"<span class=unseen>U+{ord(character):04X}</span>")
        else:
            out.append(html.escape(character))
    return "".join(out)
