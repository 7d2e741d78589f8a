"""Where prepared data lies: each artifact is named by a hash of all that decides it. Nothing heavy is imported."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigtrain.config.components import resolve, shipped
from bigtrain.data.settings import FORMAT, VERSION, Preparation, files_hash
from bigtrain.data.sources import Source, find_sources, is_remote, kind_of


@dataclass(frozen=True, slots=True)
class Planned:
    """One domain on its way from its sources to its shards."""

    name: str
    preparation: Preparation
    sources: tuple[Source, ...]
    """Empty where `data.path` is a prepared folder."""
    cleaned: Path | None
    """Where its cleaned documents are kept; None where nothing cleans them."""
    tokenizer: Path
    """Where the tokenizer that all domains share is kept."""
    folder: Path
    """Its shards."""

    @property
    def done(self) -> bool:
        """Whether the shards are there."""
        return (self.folder / "manifest.json").is_file()


def locate(preparations: Mapping[str, Preparation], cache: Path) -> dict[str, Path] | None:
    """The prepared folder of each domain, where all of them are there."""
    planned = plan(preparations, cache)
    return {domain.name: domain.folder for domain in planned} if all(domain.done for domain in planned) else None


def plan(preparations: Mapping[str, Preparation], cache: Path) -> list[Planned]:
    """The artifacts that the domains are made of.

    Raises:
        UserError: a path names nothing, or nothing that can be read.
    """
    given = {name: prepared_folder(preparation, cache) for name, preparation in preparations.items()}
    sources = {
        name: () if given[name] else tuple(find_sources(p.corpus.path, p.corpus.reading.split))
        for name, p in preparations.items()
    }
    corpora = {name: _corpus(preparations[name], sources[name]) for name in preparations if not given[name]}
    documents = {name: [key, preparations[name].held_out, preparations[name].seed] for name, key in corpora.items()}
    theirs = next((folder / "tokenizer" for folder in given.values() if folder), None)
    planned = []
    for name, p in preparations.items():
        if theirs is not None:
            tokenizer, words = theirs, _hash(files_hash(theirs))
        else:
            wanted = p.tokenizer
            words = _hash([wanted and (files_hash(Path(wanted).expanduser()) or wanted)] if wanted else
                          [p.vocab_size, *p.special_tokens, *documents.values()])  # fmt: skip
            tokenizer = cache / f"tokenizer-{words}"
        folder = given[name]
        if folder is None:
            shards = _hash([FORMAT, VERSION, documents[name], words, p.token_type, p.shard_tokens])
            first = _name(p.corpus.path, sources[name]) if list(preparations) == ["data"] else name
            folder = cache / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', first)}-{shards}"
        cleaned = cache / f"cleaned-{corpora[name]}" if name in corpora and p.corpus.clean else None
        planned.append(Planned(name, p, sources[name], cleaned, tokenizer, folder))
    return planned


def _name(paths: Sequence[str], sources: Sequence[Source]) -> str:
    """What people will know the data by: the one path's last part, or the first file's."""
    only = paths[0].rstrip("/") if len(paths) == 1 and not re.search(r"[*?\[]", paths[0]) else sources[0].name
    return Path(only).name.partition(".")[0] or "data"


def prepared_folder(preparation: Preparation, cache: Path) -> Path | None:
    """`data.path`, where that is a folder which bigtrain prepared; of one in an object store, its mirror in `cache`."""
    paths = preparation.corpus.path
    if len(paths) == 1 and is_remote(paths[0]):
        if kind_of(paths[0]) or re.search(r"[*?\[]", paths[0]):
            return None
        from bigtrain.data.streaming import mirror

        return mirror(paths[0], cache)
    path = Path(paths[0]).expanduser() if len(paths) == 1 else None
    manifest = path / "manifest.json" if path else None
    return path if manifest and manifest.is_file() and FORMAT in manifest.read_text(errors="replace") else None


def _corpus(preparation: Preparation, sources: tuple[Source, ...]) -> str:
    from bigtrain.data.clean.contamination import evaluation_sources

    corpus = preparation.corpus
    exclude = Path(corpus.exclude).expanduser() if corpus.exclude else None
    excluded = hashlib.sha256(exclude.read_bytes()).hexdigest() if exclude and exclude.is_file() else corpus.exclude
    read = [*sources, *evaluation_sources(corpus.clean)]
    own = [_code(step["_target_"]) for step in corpus.clean if not shipped(step["_target_"])]
    return _hash([asdict(corpus.reading), corpus.clean, excluded, [asdict(source) for source in read], *own])


def _code(target: str) -> str | None:
    """A hash of the file that holds a step of the user's own: an edited step makes other documents."""
    with contextlib.suppress(TypeError, OSError):  # built in
        file = inspect.getsourcefile(resolve(target, "data.clean"))
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
