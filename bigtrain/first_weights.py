"""`checkpoint.weights_from`: a new run begins with the weights of another one, of the same model and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigtrain.checkpoint.find import find, listed
from bigtrain.config.compose import load_frozen
from bigtrain.config.schema import Component, RunConfig
from bigtrain.errors import UserError, nearest_path
from bigtrain.models.shapes import SETTINGS, resolve

if TYPE_CHECKING:
    from bigtrain.checkpoint.find import Checkpoint
    from bigtrain.distributed import Ranks
    from bigtrain.engines.base import Engine

KEY = "checkpoint.weights_from"
FREE = {"vocab_size", "sequence_length", "dropout"}
"""Settings of a shape in which the two may differ: the tokens are compared by themselves."""


def check(path: str, config: RunConfig) -> None:
    """A `UserError` where there is nothing to begin with, or another model; a run that goes on does not need it."""
    if listed(config.run.dir or ""):
        return
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{KEY}={path} is a file: give the run's folder, {folder.parent}.")
    if not folder.is_dir():
        own = Path(config.run.dir or "").resolve()  # has been made already
        near = nearest_path(folder, lambda entry: entry.resolve() != own)
        raise UserError(f"{KEY}={path}: there is no such run or checkpoint.{near}")
    if not listed(path):
        export = (folder / "config.json").is_file()
        hint = f" It is an export or another Hugging Face folder: model.path={path} begins with that." if export else ""
        raise UserError(f"{KEY}={path} holds no checkpoint.{hint}")
    run = folder.parent.parent if (folder / "manifest.json").is_file() else folder
    if (run / "config.yaml").is_file():
        _check_same(path, load_frozen(run / "config.yaml").get("model", {}), config.model)


def _check_same(path: str, theirs: Component, own: Component) -> None:
    """Of the native decoder: heads, norms and positions leave the shapes of the weights as they are."""
    if theirs.get("_target_") != own.get("_target_") or any(part.get("path") for part in (theirs, own)):
        return
    try:
        before, now = (_shape(part) for part in (theirs, own))
    except UserError:  # another model, or a setting that is refused where it is built
        return
    for name in SETTINGS:
        then, here = getattr(before, name), getattr(now, name)
        if name not in FREE and then != here:
            raise UserError(f"{KEY}={path} is of a model with model.{name}={then}, and this one has {here}.")


def _shape(component: Component) -> Any:
    given = {key: component[key] for key in SETTINGS if component.get(key) is not None}
    return resolve(component.get("preset"), {"vocab_size": 1, "sequence_length": 1} | given)


def load(path: str, engine: Engine, data: Any, ranks: Ranks) -> None:
    """Put the weights of another run's newest intact checkpoint into the engine of a new run.

    Where the data have other tokens than those weights were trained on, their embeddings would be those of other words.
    """
    from bigtrain.checkpoint.load import load_first_weights
    from bigtrain.data.tokenizer import equal
    from bigtrain.distributed import run_on_first
    from bigtrain.telemetry.progress import say

    def choose() -> Checkpoint:
        found = find(path, say)
        assert found is not None, "looked at before the data were prepared"
        theirs, here = found.path.parent.parent / "tokenizer", getattr(data, "tokenizer_path", None)
        if here is not None and (theirs / "tokenizer.json").is_file() and not equal(theirs, here):
            raise UserError(
                f"{KEY}: the data have other tokens than {found.path} was trained on. Set data.tokenizer={theirs}"
            )
        return found

    checkpoint = run_on_first(choose)
    load_first_weights(checkpoint, engine.fragments())
    engine.loaded()
    if ranks.first:
        say(f"starting from the weights of {checkpoint.path}")
