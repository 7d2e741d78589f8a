"""`checkpoint.weights_from`: a new run begins with the weights of another one of the same model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigtrain.checkpoint.find import Checkpoint, find, listed
from bigtrain.errors import UserError


def check_named(path: str | None, run_dir: str) -> None:
    """A `UserError` where there is no checkpoint to begin with; a run that goes on does not need it any more."""
    if path is not None and not listed(run_dir) and not listed(path):
        raise UserError(f"checkpoint.weights_from={path} holds no checkpoint.")


def first_weights(path: str | None, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint of that run folder, or the checkpoint itself; a `UserError` where none is intact."""
    return None if path is None else find(path, warn)


def check_tokenizer(checkpoint: Checkpoint, tokenizer: str | Path | None) -> None:
    """A `UserError` where the tokens of the data are not those that the weights were trained on: their embeddings
    would be those of other words. `tokenizer`: the folder of the data's own, if there is one."""
    theirs = checkpoint.path.parent.parent / "tokenizer"
    known, here = (_tokens(folder) for folder in (theirs, tokenizer))
    if known is not None and here is not None and known != here:
        raise UserError(
            f"checkpoint.weights_from: the data have other tokens than {checkpoint.path} was trained on. "
            f"Set data.tokenizer={theirs}"
        )


def _tokens(folder: str | Path | None) -> Any:
    """Of a folder with a `tokenizer.json`; None: another kind, or none."""
    file = Path(folder or "", "tokenizer.json")
    return json.loads(file.read_text(encoding="utf-8"))["model"].get("vocab") if folder and file.is_file() else None
