"""What cleaning did: documents and characters step by step, why documents were dropped, and examples of it.

A funnel is counted where the documents are and merged afterwards: sums, and the examples with the smallest hashes. So
neither the number of processes nor the order in which they end changes it (but for the seconds).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.data.clean import Drop
from bigtrain.data.documents import Document
from bigtrain.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_NAME = "funnel.json"
EXAMPLES = 4
"""Examples that are kept of a reason, and of what a step changed."""

EXCERPT = 700
"""Characters of an example's text."""

LEAD_IN = 160
"""Characters before the first change of an example."""


@dataclass(slots=True)
class Example:
    """A document that was dropped, or changed."""

    order: int
    """A hash of its place; of all candidates those with the smallest are kept."""
    source: int
    offset: int
    characters: int
    text: str
    """Its beginning; of a change: the surroundings of the first place that differs, before; empty where secret."""
    other: str | None = None
    """Of a change: the same place afterwards. Of a copy: the beginning of the document that stays instead."""
    other_place: tuple[int, int] | None = None
    """Of a copy: (source, offset) of the document that stays."""
    detail: str = ""
    """What was seen in this document (`Drop.detail`)."""


@dataclass(slots=True)
class Reason:
    """Documents that a step dropped for one reason."""

    documents: int = 0
    characters: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Lengths:
    """Documents, their characters, and a histogram: bin b counts lengths in [2^(b/2), 2^((b+1)/2)) characters."""

    documents: int = 0
    characters: int = 0
    histogram: list[int] = field(default_factory=list)

    def count(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Passes the documents on, counted."""
        for document in documents:
            self.add(len(document.text))
            yield document

    def add(self, characters: int) -> None:
        """Counts one document."""
        self.documents += 1
        self.characters += characters
        place = math.floor(2 * math.log2(max(1, characters)))
        self.histogram.extend([0] * (place + 1 - len(self.histogram)))
        self.histogram[place] += 1

    def merge(self, other: Lengths) -> None:
        """Adds the counts of `other`."""
        self.documents += other.documents
        self.characters += other.characters
        self.histogram.extend([0] * (len(other.histogram) - len(self.histogram)))
        for place, number in enumerate(other.histogram):
            self.histogram[place] += number


@dataclass(slots=True)
class StepCounts:
    """What one step did."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    documents_in: int = 0
    characters_in: int = 0
    documents_out: int = 0
    characters_out: int = 0
    changed: int = 0
    """Documents that go on with another text."""
    seconds: float = 0.0
    """Of all processes together."""
    replaced: dict[str, int] = field(default_factory=dict)
    """What was replaced within texts, by kind, where the step counts it."""
    reasons: dict[str, Reason] = field(default_factory=dict)
    changes: list[Example] = field(default_factory=list)

    def replacements(self, counts: Mapping[str, int]) -> None:
        """Adds what was replaced, by kind."""
        for kind, number in counts.items():
            self.replaced[kind] = self.replaced.get(kind, 0) + number

    def passed(self, document: Document, text: str, secret: bool = False) -> None:
        """The document goes on, as `text`; where it had a `secret`, no example shows what it was."""
        self.documents_in += 1
        self.characters_in += len(document.text)
        self.documents_out += 1
        self.characters_out += len(text)
        if text != document.text:
            self.changed += 1
            _offer(self.changes, document.source, document.offset, lambda order: _change(order, document, text, secret))

    def dropped(self, document: Document, drop: Drop) -> None:
        """The document ends here."""
        self.documents_in += 1
        self.characters_in += len(document.text)
        reason = self.reasons.setdefault(drop.reason, Reason())
        reason.documents += 1
        reason.characters += len(document.text)
        _offer(reason.examples, document.source, document.offset, lambda order: _example(order, document, drop.detail))

    def deduplicated(
        self,
        reason: str,
        characters: NDArray[np.int64],
        alive: NDArray[np.bool_],
        kept: NDArray[np.int64],
        document_of: Callable[[int], Document],
    ) -> None:
        """Counts a corpus step at once.

        Args:
            reason: why documents are dropped, as the step says it.
            characters: (N,) lengths of all documents.
            alive: (N,) those that came to this step.
            kept: (N,) -1 where a document stays, else the one that stays instead of it.
            document_of: the document of an index; asked for examples only.
        """
        import numpy as np

        gone = alive & (kept >= 0)
        self.documents_in += int(alive.sum())
        self.characters_in += int(characters[alive].sum())
        self.documents_out += int((alive & ~gone).sum())
        self.characters_out += int(characters[alive & ~gone].sum())
        if not gone.any():
            return
        counted = self.reasons.setdefault(reason, Reason())
        counted.documents += int(gone.sum())
        counted.characters += int(characters[gone].sum())
        candidates = np.flatnonzero(gone)
        scattered = candidates.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: an even choice
        for index in candidates[np.argsort(scattered, kind="stable")[:EXAMPLES]].tolist():
            document, twin = document_of(index), document_of(int(kept[index]))
            _offer(
                counted.examples,
                document.source,
                document.offset,
                lambda order, document=document, twin=twin: _example(order, document, "", twin),  # type: ignore[misc]
            )

    def merge(self, other: StepCounts) -> None:
        """Adds the counts of `other`, of the same step."""
        for name in ("documents_in", "characters_in", "documents_out", "characters_out", "changed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.replacements(other.replaced)
        self.changes = _smallest([*self.changes, *other.changes])
        for name, reason in other.reasons.items():
            mine = self.reasons.setdefault(name, Reason())
            mine.documents += reason.documents
            mine.characters += reason.characters
            mine.examples = _smallest([*mine.examples, *reason.examples])


@dataclass(slots=True)
class Funnel:
    """The counts of a pipeline, from the documents that were read to those that are left."""

    steps: list[StepCounts] = field(default_factory=list)
    before: Lengths = field(default_factory=Lengths)
    """As read, without those that are excluded."""
    after: Lengths = field(default_factory=Lengths)
    """As left in the end."""
    excluded: int = 0
    """Documents that `data.exclude` named."""

    def merge(self, other: Funnel) -> None:
        """Adds the counts of another part of the same corpus."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        self.excluded += other.excluded
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.merge(theirs)

    def write(self, path: Path) -> None:
        """As JSON, with the reasons from the most frequent to the rarest."""
        written = asdict(self)
        for step in written["steps"]:
            step["reasons"] = dict(sorted(step["reasons"].items(), key=lambda item: (-item[1]["documents"], item[0])))
        path.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")

    @classmethod
    def read(cls, path: Path) -> Funnel:
        """What `write` wrote.

        Raises:
            UserError: it is not there, or no funnel.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is no funnel of a cleaning: {error}.") from error

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Funnel:
        """A funnel out of what `dataclasses.asdict` makes of it."""
        steps = []
        for step in value["steps"]:
            reasons = {
                name: Reason(one["documents"], one["characters"], [_read_example(e) for e in one["examples"]])
                for name, one in step["reasons"].items()
            }
            changes = [_read_example(example) for example in step["changes"]]
            steps.append(StepCounts(**step | {"reasons": reasons, "changes": changes}))
        return cls(steps, Lengths(**value["before"]), Lengths(**value["after"]), value["excluded"])

    def table(self) -> str:
        """A few lines for a terminal: what went into each step, and what it dropped for which reason."""
        rows = [("read", f"{self.before.documents:,}", "")]
        if self.excluded:
            rows.append(("excluded before", f"{self.excluded:,}", ""))
        for step in self.steps:
            reasons = sorted(step.reasons.items(), key=lambda item: -item[1].documents)
            said = [f"{reason} ({counts.documents:,})" for reason, counts in reasons[:3]]
            said += ["…"] if len(reasons) > 3 else []
            replaced = ", ".join(f"{kind} ({number:,})" for kind, number in sorted(step.replaced.items()))
            told = ["dropped: " + ", ".join(said)] * bool(said) + [f"replaced: {replaced}"] * bool(replaced)
            rows.append((step.name, f"{step.documents_out:,}", "; ".join(told)))
        wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"  {a:<{wide[0]}}  {b:>{wide[1]}} documents  {c}".rstrip() for a, b, c in rows)


def nothing_left(funnel: Funnel, what: str, key: str = "data.clean") -> UserError:
    """The error of a corpus (`what`: its paths) of which the steps left no document: it shows the funnel."""
    emptied = next((s for s in funnel.steps if s.documents_in and not s.documents_out), None)
    last = f" {emptied.name} dropped the last: loosen its settings, or leave it out of {key}." if emptied else ""
    counted = f"{funnel.before.documents:,} documents of {what}"
    return UserError(f"Cleaning left none of the {counted}.{last}\n{funnel.table()}")


def _hash(source: int, offset: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{source}:{offset}".encode(), digest_size=7).digest(), "big")


def _offer(examples: list[Example], source: int, offset: int, make: Callable[[int], Example]) -> None:
    """Takes the example in where its hash is among the smallest; it is made only then."""
    order = _hash(source, offset)
    if len(examples) < EXAMPLES or order < examples[-1].order:
        examples[:] = _smallest([*examples, make(order)])


def _smallest(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: (e.order, e.source, e.offset))[:EXAMPLES]


def _example(order: int, document: Document, detail: str, twin: Document | None = None) -> Example:
    """The beginning of a document; of a copy, the first place where it differs from the one that stays."""
    text, source, offset = document
    if twin is None:
        return Example(order, source, offset, len(text), text[:EXCERPT], detail=detail)
    there = _around_difference(text, twin.text) if text != twin.text else slice(EXCERPT)
    return Example(order, source, offset, len(text), text[there], twin.text[there], (twin.source, twin.offset))


def _change(order: int, document: Document, text: str, secret: bool) -> Example:
    there = _around_difference(document.text, text)
    before = "" if secret else document.text[there]
    return Example(order, document.source, document.offset, len(document.text), before, text[there])


def _around_difference(one: str, other: str) -> slice:
    """The surroundings of the first place where two texts differ."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # the longest common beginning
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return slice(max(0, low - LEAD_IN), max(0, low - LEAD_IN) + EXCERPT)


def _read_example(value: dict[str, Any]) -> Example:
    place = value["other_place"]
    return Example(**value | {"other_place": tuple(place) if place else None})
