"""Data sets and tokenizers by their hub name, with a word in seconds where the hub is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bigtrain.data.remote import retried
from bigtrain.errors import UserError, nearest_path

TIMEOUT_S = 5.0
ROWS = 1000
"""Of a table that is taken from a hub set at once."""


def find(name: str, kind: Literal["dataset", "model"], setting: str, revision: str | None = None) -> str:
    """The commit at which the hub holds `name`.

    `datasets` and `transformers` try again for most of a minute where there is no network; this asks once.

    Raises:
        UserError: the hub does not answer, does not know the name, or does not let us read it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api, near = HfApi(), nearest_path(Path(name).expanduser(), listed=0)
    try:
        info = (api.dataset_info if kind == "dataset" else api.model_info)(name, revision=revision, timeout=TIMEOUT_S)
    except GatedRepoError as error:
        raise UserError(f"{setting}={name}: the hub wants a login for it: `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{setting}={name}: the hub has no revision '{revision}' of it.") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{setting}={name}: neither a local path nor a {kind} of {api.endpoint}.{near}") from error
    except Exception as error:  # whichever of its HTTP library's many the client lets through
        raise UserError(
            f"{setting}={name}: no such local path, and the hub ({api.endpoint}) cannot be reached to look there "
            f"({type(error).__name__}: {error}).{near}"
        ) from error
    return str(info.sha)


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a data set now; with HF_HUB_OFFLINE=1 nobody is asked, and it is the revision itself.

    Raises:
        UserError: as `find` does.
    """
    from huggingface_hub import constants

    return revision if constants.HF_HUB_OFFLINE else find(name, "dataset", "data.path", revision)


def count_files(name: str, config: str | None, split: str, commit: str | None) -> int:
    """The files of a split; 1 for the copy in the local cache.

    Raises:
        UserError: it cannot be reached, or has no such configuration or split.
    """
    return int(getattr(_opened(name, config, split, commit), "num_shards", 1))


def tables(name: str, config: str | None, split: str, commit: str | None, file: int) -> Iterator[Any]:
    """Streams one file of a hub data set as pyarrow tables; a stream that breaks is taken up where it broke.

    Raises:
        UserError: it cannot be reached, or has no such configuration or split.
        RunError: it breaks again and again.
    """
    dataset = _opened(name, config, split, commit)
    if hasattr(dataset, "num_shards"):
        dataset = dataset.shard(num_shards=dataset.num_shards, index=file)
    dataset = dataset.with_format("arrow")
    rows = 0
    stream: Iterator[Any] | None = None

    def following() -> Any:
        nonlocal stream
        if stream is None:
            stream = iter((dataset.skip(rows) if rows else dataset).iter(batch_size=ROWS))
        try:
            return next(stream, None)
        except Exception:
            stream = None
            raise

    while (table := retried(following, f"data.path={name}, file {file}")) is not None:
        yield table
        rows += table.num_rows


@lru_cache(maxsize=4)
def _opened(name: str, config: str | None, split: str, commit: str | None) -> Any:
    """The set: streamed; with HF_HUB_OFFLINE=1, the copy in the local cache."""
    import datasets  # heavy: only once the name is known to be good
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        return datasets.load_dataset(name, config, split=split, revision=commit, streaming=not offline)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        nowhere = "no such local path, nor a copy in the local cache, and the hub is switched off (HF_HUB_OFFLINE): "
        raise UserError(
            f"data.path={name} (data.name={config}, data.split={split}): {nowhere if offline else ''}{error}"
        ) from error
