"""A trained model from a PATH: a run folder, one checkpoint of it, or a Hugging Face folder.

What a folder says about itself is data. A run's `config.yaml` may name only components that bigtrain ships, unless the
user names the same one (`model._target_=my.Model`); of its components only the one that is needed is looked at. Weights
are safetensors, and no code that lies in a folder is ever run.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bigtrain.checkpoint.find import FOLDER, find, step_of
from bigtrain.config.check import check_fields
from bigtrain.config.components import build, check_component, refuse_untrusted_component
from bigtrain.config.compose import import_from_here, load_frozen
from bigtrain.config.composer import Composer
from bigtrain.config.schema import Component, RunConfig
from bigtrain.errors import UserError, nearest_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bigtrain.checkpoint.find import Checkpoint

TOKENIZER = "tokenizer"
"""Where training leaves the tokenizer in its run folder."""

LABELS = "labels.json"
"""The number and the names of the classes, there too."""

MARKER = "bigtrain_export.json"
"""The file by which bigtrain knows its own exports."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
Kind = Literal["run", "checkpoint", "hugging_face"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(slots=True)
class Trained:
    """A model ready for use: in eval mode, its weights in fp32, on `device`."""

    path: Path
    """As it was given."""
    kind: Kind
    model: nn.Module
    """input_ids (B, S) int64 -> logits (B, S, V)."""
    device: torch.device
    tokenizer: Any | None
    """Of transformers; None where the folder holds none."""
    tokenizer_path: Path | None
    config: RunConfig | None
    """The run's, with the overrides laid over it; None for a Hugging Face folder."""
    checkpoint: Checkpoint | None

    @property
    def window(self) -> int | None:
        """The longest sequence that the model knows, in tokens."""
        shape = getattr(self.model, "shape", None)
        theirs = getattr(self.model, "config", None)
        if shape is not None:
            return int(shape.sequence_length)
        if theirs is not None:
            found = getattr(theirs.get_text_config(), "max_position_embeddings", None)
            return None if found is None else int(found)
        length = self.config.data.get("sequence_length") if self.config else None
        return length if isinstance(length, int) else None

    @property
    def vocab_size(self) -> int | None:
        """Tokens that the model knows."""
        theirs = getattr(self.model, "config", None)
        known = theirs.get_text_config() if theirs is not None else self.model
        found = getattr(known, "vocab_size", None)
        return None if found is None else int(found)

    @property
    def progress(self) -> tuple[int | None, int | None]:
        """(optimizer steps, tokens) of its training, where it is known."""
        if self.checkpoint is not None:
            loop = self.checkpoint.manifest.state.get("loop")
            tokens = loop.get("tokens") if isinstance(loop, dict) else None
            return self.checkpoint.step, tokens if isinstance(tokens, int) else None
        told = read_marker(self.path) or {}
        step, tokens = told.get("step"), told.get("tokens")
        return step if isinstance(step, int) else None, tokens if isinstance(tokens, int) else None

    def need_tokenizer(self) -> Any:
        """The tokenizer; a `UserError` where there is none."""
        if self.tokenizer is None:
            where = self.path if self.kind == "hugging_face" else f"{TOKENIZER}/ of the run folder of {self.path}"
            raise UserError(
                f"There is no tokenizer in {where}, and text needs one: put its files (tokenizer.json) there."
            )
        return self.tokenizer


def end_tokens(trained: Trained) -> set[int]:
    """The tokens that end a text: the tokenizer's, and what a Hugging Face folder's generation_config says."""
    theirs = getattr(getattr(trained.model, "hf", None), "generation_config", None)
    told = getattr(theirs, "eos_token_id", None)
    several = told if isinstance(told, list) else [told]
    return {end for end in (getattr(trained.tokenizer, "eos_token_id", None), *several) if end is not None}


def load_trained(
    path: str | Path, *, config: RunConfig | None = None, overrides: Sequence[str] = (), device: Device = "auto"
) -> Trained:
    """Load the model at `path`.

    Args:
        path: a run folder (its newest intact checkpoint; damaged ones are named on standard error), one checkpoint in
            a run's `checkpoints/`, or a Hugging Face folder with a causal language model.
        config: the run's configuration where the caller has it; it is trusted as it is. None: the run's config.yaml.
        overrides: the user's own words, laid over the config.yaml of the run; a `_target_` that they name is trusted.
        device: where to put it. auto: a GPU if there is one, unless the run says trainer.device=cpu.

    Raises:
        UserError: there is no such path, it is none of the three, it has no intact checkpoint, names components that
            are not bigtrain's, or its weights are another model's.
    """
    folder = Path(path).expanduser()
    kind, run_dir = locate(folder)
    if run_dir is None:
        if overrides:
            raise UserError(
                f"{overrides[0]}: {folder} is a Hugging Face folder, which has no configuration to override."
            )
        place = choose_device(device, None)
        quiet_transformers()
        model = foreign(folder)
        found = folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None
        tokenizer = load_tokenizer(found) if found else None
        return Trained(folder, kind, model.to(place).eval(), place, tokenizer, found, None, None)

    source = run_dir / "config.yaml"
    model_component = config.model if config else None
    if config is None:
        config = run_config(source, overrides)
        model_component = trusted_component(config.model, "model", source, overrides)
    assert model_component is not None
    place = choose_device(device, config)
    checkpoint = find(folder if kind == "checkpoint" else run_dir, lambda message: print(message, file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{run_dir} holds no checkpoint: training has not come to its first one (checkpoint.every).")
    found = run_dir / TOKENIZER if (run_dir / TOKENIZER).is_dir() else None
    tokenizer = load_tokenizer(found) if found else None

    from bigtrain.checkpoint.load import load_weights

    weights = load_weights(checkpoint)
    labels = read_labels(run_dir)
    with redirect_stderr(StringIO()):  # what it says of fresh weights is not so: all come from the checkpoint
        model = build(model_component, "model", vocab_size=vocabulary(weights, tokenizer), classes=labels["classes"])
    if labels["names"] and hasattr(model, "name_labels"):
        model.name_labels(labels["names"])
    fill(model, weights, checkpoint.path)
    return Trained(folder, kind, model.to(place).eval(), place, tokenizer, found, config, checkpoint)


def locate(folder: Path) -> tuple[Kind, Path | None]:
    """What lies at `folder`, and the run folder that it belongs to (None: a Hugging Face folder).

    Raises:
        UserError: nothing, or none of the three.
    """
    if not folder.exists():
        raise UserError(f"There is no {folder}.{nearest_path(folder)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give the folder of a run, of a checkpoint or of a Hugging Face model.")
    real = folder.resolve()
    if step_of(real) >= 0 or (real / "manifest.json").is_file():
        run_dir = real.parent.parent
        if real.parent.name != FOLDER or not (run_dir / "config.yaml").is_file():
            raise UserError(
                f"{folder} is a checkpoint without its run: it must lie in the {FOLDER}/ of a run folder, whose "
                "config.yaml says what model it is."
            )
        return "checkpoint", run_dir
    if real.name == FOLDER and (real.parent / "config.yaml").is_file():
        return "run", real.parent
    if (folder / "config.yaml").is_file():
        return "run", folder
    if (folder / "config.json").is_file():
        return "hugging_face", None
    raise UserError(
        f"{folder} is neither a run folder (no config.yaml), nor a checkpoint (no manifest.json), nor a Hugging Face "
        f"folder (no config.json).{_inside(folder)}"
    )


def _inside(folder: Path) -> str:
    """The latest run folders below, for the message."""
    configs = [file for depth in (1, 2, 3) for file in folder.glob("*/" * depth + "config.yaml")]
    runs = [file for file in configs if (file.parent / FOLDER).is_dir()]
    latest = [str(file.parent) for file in sorted(runs, key=lambda file: file.stat().st_mtime)[-3:]]
    return f" There are runs in it: {', '.join(latest)}" if latest else ""


def choose_device(wanted: Device, config: RunConfig | None) -> torch.device:
    """Where the model is put; a `UserError` for a GPU where there is none."""
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError("--device cuda, but torch sees no GPU here: take --device cpu; `bigtrain doctor` tells more.")
    own = config.trainer.device if config else "auto"
    on_gpu = wanted == "cuda" or (wanted == "auto" and own != "cpu" and there)
    return torch.device("cuda" if on_gpu else "cpu")


def run_config(source: Path, overrides: Sequence[str]) -> RunConfig:
    """A run's frozen configuration with the user's value overrides on top; nothing in it is imported or called.

    Raises:
        UserError: it cannot be read, an override is no value override or names no setting.
    """
    raw = load_frozen(source)
    lay_over(raw, overrides)
    config: RunConfig = check_fields(raw, RunConfig, "")
    return config


def lay_over(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set the user's `a.b=value` in nested mappings; a `UserError` for any other kind of override."""
    if not overrides:
        return
    from hydra.core.override_parser.overrides_parser import OverridesParser

    choices, values = Composer().parse(overrides)
    removed = [text for text in values.values() if text.startswith("~")]
    if choices or removed:
        raise UserError(f"'{(choices or removed)[0]}': only values can be given over a run's own, as model.path=DIR.")
    for key, text in values.items():
        (override,) = OverridesParser.create().parse_overrides([text])
        *parents, leaf = key.split(".")
        node: Any = raw
        for parent in parents:
            if isinstance(node, list):
                node = node[int(parent)] if parent.isdecimal() and int(parent) < len(node) else None
            else:
                node = node.setdefault(parent, {})
            if not isinstance(node, dict | list):
                raise UserError(f"'{text}': {parent} has no settings of its own.")
        if isinstance(node, list):
            raise UserError(f"'{text}': give the whole list, or a setting of one in it.")
        node[leaf] = override.value()


def trusted_component(component: Component, key: str, source: Path, overrides: Sequence[str]) -> Component:
    """The checked component of a run; a `UserError` where it is neither bigtrain's nor named by the user's words."""
    import_from_here()
    typed = [text.lstrip("+").partition("=") for text in overrides]
    named = [value for name, _, value in typed if name.startswith(f"{key}.") and name.endswith("._target_")]
    refuse_untrusted_component(component, key, str(source), named)
    return check_component(copy.deepcopy(component), key, 0)


def quiet_transformers() -> Any:
    """The library, without its progress bars: they would stand in every log."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    return transformers


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; nothing is fetched and no code of the folder's own is run."""
    try:
        return quiet_transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of any kind: it is somebody's file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The tokenizer in {folder} cannot be read: {reason}") from error


def foreign(folder: Path) -> nn.Module:
    """The model in a Hugging Face folder, for the task that its architecture names."""
    from bigtrain.models.source import read_config
    from bigtrain.models.tasks import task_of

    task = task_of(read_config(folder, str(folder)))
    model: nn.Module = build({"_target_": "bigtrain.models.hugging_face", "path": str(folder), "task": task}, "model")
    return model


def read_labels(run_dir: Path) -> dict[str, Any]:
    """`classes` and `names`, each None where the run has none."""
    file = run_dir / LABELS
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"classes": None, "names": None} | told


def vocabulary_of(data: Any) -> int | None:
    """Tokens of a data component's tokenizer: `tokens`, where `vocab_size` is a setting of the data; else that."""
    found: int | None = getattr(data, "tokens", None) or getattr(data, "vocab_size", None)
    return found


def vocabulary(weights: dict[str, Tensor], tokenizer: Any | None) -> int | None:
    """The size that training filled in for a model without one: the rows of the embedding, else the tokenizer's."""
    for name in ("embedding.weight", "hf.model.embed_tokens.weight", "hf.transformer.wte.weight"):
        if name in weights:
            return len(weights[name])
    return None if tokenizer is None else max(tokenizer.get_vocab().values()) + 1


def fill(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Copy weights and persistent buffers into the model by its own names; a tensor with two names has the first.

    Raises:
        UserError: the names or shapes are not the model's.
    """
    import torch

    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in own and id(tensor) not in seen:  # not the scales of 4-bit weights, which come from model.path
            seen.add(id(tensor))
            held[name] = tensor
    faults = [f"{name} is not in it" for name in held if name not in weights]
    faults += [f"it has {name}, which the model lacks" for name in weights if name not in held]
    faults += [
        f"{name} is {list(weights[name].shape)} in it and {list(tensor.shape)} in the model"
        for name, tensor in held.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    faults = faults or [
        f"{name} has other 4-bit weights than model.path has now"
        for name, tensor in held.items()
        if hasattr(tensor, "quant_state") and not torch.equal(weights[name], tensor)
    ]
    if faults:
        more = f" (and {len(faults) - 1} other faults)" if len(faults) > 1 else ""
        raise UserError(f"{source} is not a checkpoint of the model in the run's config.yaml: {faults[0]}{more}.")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(weights[name])


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What bigtrain's export wrote about itself; None where the folder is not one."""
    try:
        told = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) else None
