"""What a run's checkpoints keep of its text: which text it is, the pieces of the mix, and what was left out when.

A run that goes on with another `data.exclude` keeps its shards and reads past the documents. From which sample on which
ones, stands in the checkpoint as `[[position, digest], …]`; digest None: they came back. Which documents a digest
means, stands in `excluded-DIGEST.jsonl` in the cache, so that it can be told when the user's file is another or gone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import fsync
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.data.exclude import not_met, of_domains
from bigtrain.data.sources import Source
from bigtrain.errors import UserError

if TYPE_CHECKING:
    from bigtrain.data.mixing import Piece
    from bigtrain.data.shards import Shards

LeftOut = dict[str, list[int]]
"""Name of a domain -> documents of its training split that are read past, in their order; none: it is not in it."""

Changes = list[tuple[int, str | None]]
"""(position in training, digest of what is left out from there on), in their order."""


@dataclass(frozen=True, slots=True)
class DomainText:
    """One domain, as it was prepared."""

    fingerprint: str
    sources: Sequence[Source]
    train: Shards
    held_out: Shards


def texts(state: Any) -> Any:
    """Of what a checkpoint keeps: the fingerprint of the text; of a mixture, by domain. Others' data: all of it."""
    if not isinstance(state, dict):
        return state
    return state["fingerprint"] if "fingerprint" in state else state.get("domains", state)


def changes(state: Any) -> Changes:
    """What was left out from when on, from what a checkpoint keeps."""
    listed = state.get("exclusions", []) if isinstance(state, dict) else []
    return [(position, digest) for position, digest in listed]


def held_at(of: Changes, position: int) -> str | None:
    """The digest of what is left out of the sample at this position."""
    return next((digest for start, digest in reversed(of) if start <= position), None)


def changed(of: Changes, position: int, digest: str | None) -> Changes:
    """The changes of a run that goes on from `position` without what `digest` means."""
    before = [change for change in of if change[0] < position]
    return before if held_at(before, position) == digest else [*before, (position, digest)]


def pieces_so_far(state: Any, names: Sequence[str], position: int) -> list[Piece]:
    """The pieces of the mixture up to a position, as a checkpoint keeps them, for the domains `names`."""
    from bigtrain.data.mixing import Piece

    then, pieces = list(state["domains"]), list[Piece]()
    for start, *listed in state["pieces"]:
        if start < position:
            shares = dict(zip(then, listed, strict=True))
            had = pieces[-1].counts(start) if pieces else (0,) * len(names)
            pieces.append(Piece(start, tuple(shares.get(name, 0) for name in names), had))
    return pieces


def resolve(file: str, domains: Mapping[str, DomainText]) -> LeftOut:
    """The documents that the user's file means. Those that are held out are not trained on anyway.

    Raises:
        UserError: the file is wrong (see `bigtrain.data.exclude`), or at an offset in it no document begins.
    """
    import numpy as np

    met, wanted, out = set[tuple[str, int]](), list[tuple[str, int]](), LeftOut()
    for name, exclusions in of_domains(file, {name: text.sources for name, text in domains.items()}).items():
        places = [(number, offset) for number, offsets in sorted(exclusions.items()) for offset in sorted(offsets)]
        if not places:
            continue
        text, listed = domains[name], np.array(places, np.uint64)
        found, also = text.train.find(listed), text.held_out.find(listed)
        if len(trained := found[found >= 0]):
            out[name] = np.sort(trained).tolist()
        wanted += (named := [(text.sources[number].name, offset) for number, offset in places])
        met.update(place for place, here in zip(named, ((found >= 0) | (also >= 0)).tolist(), strict=True) if here)
    for source, offset in wanted:  # a source of several domains has it in one of them at least
        if (source, offset) not in met:
            raise not_met(file, source, offset, _nearest(domains, source, offset))
    return out


def keep(left_out: LeftOut, domains: Mapping[str, DomainText], cache: Path) -> str:
    """Writes down which documents they are, unless that has been done; their digest.

    Raises:
        UserError: the cache cannot be written.
    """
    digest = _digest(left_out, {name: text.fingerprint for name, text in domains.items()})
    path = _path(digest, cache)
    if path.is_file():
        return digest
    lines = []
    for name, documents in left_out.items():
        text = domains[name]
        for document in documents:
            number, offset = text.train.place(document)
            entry = {"domain": name, "document": document, "file": text.sources[number].name, "offset": offset}
            lines.append(json.dumps(entry) + "\n")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, prefix=".excluded-", delete=False, encoding="utf-8") as new:
            try:
                new.writelines(lines)
                new.flush()
                fsync(new.fileno())
                Path(new.name).chmod(0o644)
                Path(new.name).replace(path)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(f"data.cache={cache} cannot be written: {error}.") from error
    return digest


def kept(digest: str, fingerprints: Mapping[str, str], cache: Path) -> LeftOut:
    """What `keep` wrote down.

    Raises:
        UserError: it is gone, or is not what it was.
    """
    path, left_out = _path(digest, cache), LeftOut()
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            left_out.setdefault(entry["domain"], []).append(entry["document"])
        whole = _digest(left_out, fingerprints) == digest
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is gone, which says what data.exclude had left out of this run's samples: put it back, or train "
            "on with the file that data.exclude was then, which writes it again."
        ) from error
    except (OSError, ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: put it back as it was. It says what data.exclude had left out.")
    return left_out


def _path(digest: str, cache: Path) -> Path:
    return cache / f"excluded-{digest}.jsonl"


def _digest(left_out: LeftOut, fingerprints: Mapping[str, str]) -> str:
    """By the numbers of the documents: it does not change where the text is moved."""
    content = [[name, fingerprints[name], documents] for name, documents in sorted(left_out.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _nearest(domains: Mapping[str, DomainText], source: str, offset: int) -> int | None:
    """Where the nearest document of the source begins."""
    begun = [
        near
        for text in domains.values()
        for number, one in enumerate(text.sources)
        for shards in (text.train, text.held_out)
        if one.name == source and (near := shards.nearest(number, offset)) is not None
    ]
    return min(begun, key=lambda near: abs(near - offset), default=None)
