"""Data sets and tokenizers by their hub name, with a word in seconds where the hub is out of reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from bigtrain.errors import UserError

TIMEOUT_S = 5.0


def find(name: str, kind: Literal["dataset", "model"], setting: str, revision: str | None = None) -> str:
    """The commit at which the hub holds `name`.

    `datasets` and `transformers` try again for most of a minute where there is no network; this asks once.

    Raises:
        UserError: the hub does not answer, does not know the name, or does not let us read it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    try:
        info = (api.dataset_info if kind == "dataset" else api.model_info)(name, revision=revision, timeout=TIMEOUT_S)
    except GatedRepoError as error:
        raise UserError(f"{setting}={name}: the hub wants a login for it: `hf auth login`.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{setting}={name}: the hub has no revision '{revision}' of it.") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{setting}={name}: neither a local path nor a {kind} of {api.endpoint}.") from error
    except Exception as error:  # whichever of its HTTP library's many the client lets through
        raise UserError(
            f"{setting}={name}: no such local path, and the hub ({api.endpoint}) cannot be reached to look there "
            f"({type(error).__name__}: {error})."
        ) from error
    return str(info.sha)


def rows(name: str, config: str | None, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """Streams the records of a hub data set; with HF_HUB_OFFLINE=1, of the copy in the local cache.

    Raises:
        UserError: it cannot be reached, or has no such configuration or split.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    revision = revision if offline else find(name, "dataset", "data.path", revision)

    import datasets  # heavy: only once the name is known to be good

    try:
        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=not offline)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        nowhere = "no such local path, nor a copy in the local cache, and the hub is switched off (HF_HUB_OFFLINE): "
        raise UserError(
            f"data.path={name} (data.name={config}, data.split={split}): {nowhere if offline else ''}{error}"
        ) from error
