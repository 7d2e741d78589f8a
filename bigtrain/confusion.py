"""The confusion matrix of a classifier as a picture (SVG): rows are the true classes, columns what was guessed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CELL, LEFT, TOP, RIGHT = 56, 120, 96, 24
MOST = 30
"""Classes that can be told apart in a picture."""


def confusion_svg(matrix: Sequence[Sequence[int]], names: Sequence[str] | None) -> str:
    """A drawing of the matrix (C, C): a cell is the darker the larger its share of its row, and says its count.

    Of more than `MOST` classes only the first ones are drawn, and the picture says so.
    """
    classes = min(len(matrix), MOST)
    labels = [str(name) for name in (names or range(len(matrix)))][:classes]
    cell = CELL if classes <= 12 else 28
    width, height = LEFT + classes * cell + RIGHT, TOP + classes * cell + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="confusion" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="13" role="img" '
        'aria-label="Confusion matrix: rows are the true classes, columns the guesses">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" fill="#555">guessed →</text>',
        f'<text x="{LEFT - 12}" y="{TOP - 14}" fill="#555" text-anchor="end">true ↓</text>',
    ]
    for at, label in enumerate(labels):
        middle = at * cell + cell / 2
        short = escape(label if len(label) <= 14 else f"{label[:13]}…")
        parts.append(f'<text x="{LEFT - 10}" y="{TOP + middle + 5}" text-anchor="end" fill="#222">{short}</text>')
        parts.append(
            f'<text transform="translate({LEFT + middle + 4} {TOP - 8}) rotate(-35)" fill="#222">{short}</text>'
        )
    for true in range(classes):
        total = max(1, sum(matrix[true]))
        for guess in range(classes):
            count = int(matrix[true][guess])
            share = count / total
            x, y = LEFT + guess * cell, TOP + true * cell
            # The right ones blue, the wrong ones orange; a root makes small shares visible.
            red, green, blue = (31, 95, 168) if true == guess else (201, 93, 24)
            depth = share**0.5
            fill = ",".join(str(round(255 + (of - 255) * depth)) for of in (red, green, blue))
            ink = "#fff" if depth > 0.6 else "#222"
            title = f"{labels[true]} taken for {labels[guess]}: {count:,} ({100 * share:.1f} %)"
            parts.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="rgb({fill})">'
                         f"<title>{escape(title)}</title></rect>")  # fmt: skip
            if count and cell == CELL:
                place = f'x="{x + cell / 2}" y="{y + cell / 2 + 5}"'
                parts.append(f'<text {place} text-anchor="middle" fill="{ink}">{count:,}</text>')
    note = f"the first {classes} of {len(matrix)} classes" if classes < len(matrix) else ""
    parts.append(f'<text x="{LEFT}" y="{height - 12}" fill="#555">{note}</text></svg>')
    return "".join(parts)
