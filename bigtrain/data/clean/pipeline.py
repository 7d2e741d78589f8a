"""The steps of `data.clean`, built, and documents sent through them. A step's fault is named with its document."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bigtrain.config.components import build, resolve, takes_text
from bigtrain.data.clean import Drop
from bigtrain.data.clean.funnel import Funnel, StepCounts
from bigtrain.data.documents import Document
from bigtrain.data.sources import JSONL, TEXT, Source
from bigtrain.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CorpusStep(Protocol):
    """A step that compares the documents with each other, such as deduplication."""

    corpus: bool
    """True; that is how such a step is known."""
    reason: str
    """Why it drops documents, as a `Drop` says it."""

    def sketch(self, texts: Sequence[str]) -> NDArray[Any]:
        """(n, w): what the comparison needs of each text, w fixed. Called in many processes."""
        ...

    def duplicates(
        self, sketches: NDArray[Any], alive: NDArray[np.bool_], text_of: Callable[[int], str]
    ) -> NDArray[np.int64]:
        """(N,): -1 where a document stays, else the one that stays instead of it; only the `alive` ones count."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """A step with its place in the configuration."""

    number: int
    """In the list, and in `Funnel.steps`."""
    key: str
    """Such as `data.clean[2]`."""
    target: str
    run: Any
    """Called with a text, it gives the text that goes on, or a `Drop`; or a `CorpusStep`."""

    @property
    def corpus(self) -> bool:
        """Whether it compares documents with each other."""
        return bool(getattr(self.run, "corpus", False))


class Pipeline:
    """The steps in their order: `before` each document on its own, then `corpus`, then `after` on its own again."""

    def __init__(self, components: Sequence[Mapping[str, Any]], key: str = "data.clean") -> None:
        """Builds the steps; `key` is where the configuration has them.

        Raises:
            UserError: a setting is wrong, a package is missing, or corpus steps do not stand together.
        """
        self.components = [dict(component) for component in components]
        self.steps = [_build(n, f"{key}[{n}]", component) for n, component in enumerate(self.components)]
        places = [step.number for step in self.steps if step.corpus]
        first, end = (places[0], places[-1] + 1) if places else (len(self.steps), len(self.steps))
        apart = next((step for step in self.steps[first:end] if not step.corpus), None)
        if apart is not None:
            raise UserError(
                f"{apart.key} ({apart.target}) stands between steps that compare documents with each other "
                f"({', '.join(f'{key}[{n}]' for n in places)}): put it before or after all of them."
            )
        self.before, self.corpus, self.after = self.steps[:first], self.steps[first:end], self.steps[end:]

    def funnel(self) -> Funnel:
        """An empty one, with these steps. Each part of the work counts in one of its own; then they are merged."""
        return Funnel(
            [
                StepCounts(step.target.rpartition(".")[2], {n: v for n, v in component.items() if n != "_target_"})
                for step, component in zip(self.steps, self.components, strict=True)
            ]
        )


def apply(
    documents: Iterable[Document], steps: Sequence[Step], funnel: Funnel, sources: Sequence[Source]
) -> Iterator[Document]:
    """The documents that pass all `steps` (of one document each), in their order, counted in `funnel`.

    Raises:
        UserError: a step failed, or returned something else than a text or a `Drop`; with the document's place.
    """
    counted = [(step, funnel.steps[step.number]) for step in steps]
    for document in documents:
        for step, counts in counted:
            started = time.perf_counter()
            result = _run(step, document, sources)
            counts.seconds += time.perf_counter() - started
            if replaced := getattr(step.run, "counts", None):  # a Counter that the step fills
                counts.replacements(replaced)
                replaced.clear()
            if isinstance(result, Drop):
                counts.dropped(document, result)
                break
            if not result or result.isspace():
                counts.dropped(document, Drop("nothing left of the text"))
                break
            counts.passed(document, result, secret=getattr(step.run, "secret", False))
            document = document._replace(text=result)
        else:
            yield document


def place(source: Source, offset: int) -> str:
    """Where a document lies, for people: `notes.jsonl, byte 1024` or `part-0.parquet, row 3`."""
    return f"{source.name}, {'byte' if source.kind in (TEXT, JSONL) else 'row'} {offset:,}"


def _build(number: int, key: str, component: Mapping[str, Any]) -> Step:
    """The step: what its target makes of the settings, or the target itself where its first argument is the text."""
    target = str(component["_target_"])
    function = resolve(target, key)
    settings = {name: value for name, value in component.items() if name != "_target_"}
    run = functools.partial(function, **settings) if takes_text(function) else build(dict(component), key)
    if not callable(run) and not getattr(run, "corpus", False):
        raise UserError(
            f"{key}._target_={target} made a {type(run).__name__}, which is no step: a step is called with a text and "
            f"gives the text that goes on, or bigtrain.data.clean.Drop(reason)."
        )
    return Step(number, key, target, run)


def _run(step: Step, document: Document, sources: Sequence[Source]) -> str | Drop:
    try:
        result = step.run(document.text)
    except UserError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{step.key} ({step.target}) failed on the document at {place(sources[document.source], document.offset)}: "
            f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})."
        ) from error
    if not isinstance(result, str | Drop):
        raise UserError(
            f"{step.key} ({step.target}) returned a {type(result).__name__} for the document at "
            f"{place(sources[document.source], document.offset)}: a step returns the text that goes on (str), or "
            f"bigtrain.data.clean.Drop(reason)."
        )
    return result
