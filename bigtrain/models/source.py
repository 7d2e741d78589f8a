"""Where pretrained weights come from: a Hugging Face folder, a GGUF file, a hub name. No pickle, no remote code."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.errors import UserError, nearest_path

FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "pytorch_model*.bin"]
"""Of the tokenizer too, all of it: half of it in the cache would be read as a tokenizer without its chat template."""


def locate(path: str, setting: str = "model.path", files: Sequence[str] = FILES) -> Path:
    """The local folder or GGUF file that `path` names; a hub name's `files` are fetched into the Hugging Face cache.

    Raises:
        UserError: names the `setting`, and the nearest thing that is there.
    """
    local = Path(path).expanduser()
    if local.is_file() and local.suffix == ".gguf":
        return local
    if local.is_dir():
        if (local / "config.json").is_file():
            return local
        found = sorted(local.glob("*.gguf"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise UserError(f"{setting}={path} holds {len(found)} GGUF files ({names}): name one of them.")
        raise UserError(f"{setting}={path} has no config.json and no .gguf file: it is not a Hugging Face folder.")
    if local.exists():
        raise UserError(f"{setting}={path} is a file, but not a .gguf one: give the folder that it lies in.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise UserError(f"{setting}={path}: there is no such folder or file.{nearest_path(local)}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(files)))
    except Exception as error:  # a dozen kinds: no network, no such name, gated, no space
        raise UserError(
            f"{setting}={path}: there is no such folder here, and the hub did not give it: {reason(error)}"
            f"{nearest_path(local, listed=0)}"
        ) from error


def reason(error: Exception) -> str:
    """What a library says went wrong, in one line."""
    cause = error.__cause__ or error
    if isinstance(cause, pickle.UnpicklingError):  # torch's own text advises to load it unsafely
        return "its .bin file is damaged, or more than weights"
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def read_config(place: Path, path: str) -> Any:
    """The transformers configuration of a folder, or of a GGUF file."""
    from transformers import AutoConfig

    folder, name, kind = place, "its config.json", {}
    if place.is_file():
        need_gguf(place)
        folder, name, kind = place.parent, place.name, {"gguf_file": place.name}
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **kind)
    except Exception as error:  # of any kind: it is the user's file
        raise UserError(f"model.path={path}: transformers cannot read {name}: {reason(error)}") from error


@dataclass
class Source:
    """Pretrained weights: the model's configuration (of transformers) and its tensors, read on demand."""

    config: Any
    files: dict[str, Path] = field(default_factory=dict)
    """Which safetensors file holds a tensor."""
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the formats that cannot be read one by one."""

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.loaded

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        if name in self.loaded:
            return self.loaded[name]
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def open(self, place: Path, path: str) -> Source:
        """Find the tensors of a Hugging Face folder; a `UserError` where they are not there or not whole."""
        from safetensors import SafetensorError, safe_open

        index, single, pickled = (
            place / name for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
        )
        try:
            if index.is_file():
                names = json.loads(index.read_text("utf-8"))["weight_map"]
                self.files = {name: place / file for name, file in names.items()}
            elif single.is_file():
                with safe_open(single, framework="pt") as file:
                    self.files = dict.fromkeys(file.keys(), single)
            elif pickled.is_file():
                self.loaded = torch.load(pickled, map_location="cpu", weights_only=True, mmap=True)
            else:
                raise UserError(f"model.path={path} has a config.json but no model.safetensors.")
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"model.path={path}: the weights are damaged: {reason(error)}") from error
        absent = sorted({file.name for file in self.files.values() if not file.is_file()})
        if absent:
            raise UserError(f"model.path={path}: {index.name} names {absent[0]}, which is not there.")
        return self


def need_gguf(place: Path) -> None:
    """A `UserError` where the optional package that reads GGUF is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{place} needs the gguf package: pip install 'bigtrain[gguf]'.")
