"""Models of transformers, with pretrained weights from a folder, a GGUF file or the hub, or with random ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from bigtrain.errors import UserError, nearest
from bigtrain.models.build import whole_modules
from bigtrain.models.source import locate, need_gguf, read_config, reason
from bigtrain.models.tasks import WITH_CLASSES, auto_class, check_task


def pretrained(path: str, task: str, attention: str, classes: int | None, allowed: bool) -> tuple[Any, list[str]]:
    """(a pretrained model with what its task needs, the modules whose weights are fresh).

    Raises:
        UserError: there is none, it cannot be loaded, has no form for the task, or its weights are not the config's.
    """
    place = locate(path)
    if place.is_file():
        if task != "causal_lm":
            raise UserError(f"model.path={path} is a GGUF file, which holds a causal language model, not {task}.")
        return load_gguf(place, attention), []
    config = read_config(place, path)
    check_task(config, task, f"model.path={path}")
    if classes is not None and task in WITH_CLASSES:
        config.num_labels = classes
    try:
        with _silent():
            hf, found = auto_class(task).from_pretrained(
                place,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of any kind, from any of its loaders: it is the user's folder
        raise UserError(f"model.path={path}: transformers cannot load it: {reason(error)}") from error
    return hf, _check_loaded(hf, found, path, task, allowed)


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' bars and its table of weights: what matters of it is said here, on one line."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def from_config(config: dict[str, Any], task: str, vocab_size: int | None, classes: int | None, attention: str) -> Any:
    """A model with random weights, made of `model_type` and any settings of that model's configuration."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        close = nearest(str(kind), CONFIG_MAPPING.keys()) if kind else " Give one, such as llama."
        raise UserError(f"model.config.model_type: transformers has no '{kind}'.{close}")
    settings: dict[str, Any] = {}
    if vocab_size is not None and task != "image_classification":
        settings["vocab_size"] = vocab_size
    settings |= {key: value for key, value in config.items() if key != "model_type"}
    known = known_settings(str(kind))
    for key in settings:
        if key not in known:
            raise UserError(f"model.config: {kind} has no setting '{key}'.{nearest(key, known)}")
    if classes is not None and task in WITH_CLASSES:
        settings["num_labels"] = classes
    if task == "seq2seq":
        settings.setdefault("decoder_start_token_id", 0)
    try:
        made = AutoConfig.for_model(kind, **settings)
        check_task(made, task, f"model.config.model_type={kind}")
        return auto_class(task).from_config(made, attn_implementation=attention, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # of any kind, from any of its models: they are the user's numbers
        raise UserError(f"model.config: transformers cannot make this {kind}: {reason(error)}") from error


def known_settings(kind: str) -> set[str]:
    """Every name that the configuration of `model_type` kind takes."""
    from transformers import CONFIG_MAPPING, AutoConfig

    plain = AutoConfig.for_model(kind)
    return {*vars(plain), *plain.to_dict(), *CONFIG_MAPPING[kind].attribute_map}


def load_gguf(place: Path, attention: str) -> Any:
    """The transformers model of a GGUF file, its weights spread to fp32, and with nothing left that says quantised."""
    need_gguf(place)
    from transformers import AutoModelForCausalLM

    with whole_modules():
        try:
            with _silent(), redirect_stderr(StringIO()):  # a bar of its own
                read = AutoModelForCausalLM.from_pretrained(
                    place.parent, gguf_file=place.name, dtype=torch.float32, attn_implementation=attention
                )
        except Exception as error:  # of any kind: it is the user's file
            raise UserError(f"model.path={place}: transformers cannot load it: {reason(error)}") from error
        settings = read.config.to_dict()
        settings.pop("quantization_config", None)  # with it, save_pretrained refuses the weights
        config = type(read.config)(**settings)
        clean = type(read)._from_config(config, attn_implementation=attention, dtype=torch.float32)
        clean.load_state_dict(read.state_dict())
        clean.generation_config = read.generation_config
        return clean


def _check_loaded(hf: Any, found: dict[str, Any], path: str, task: str, allowed: bool) -> list[str]:
    """The modules with fresh weights, said: of a classifier those of its head. All else that the file lacks, or has too
    much, is refused unless it is allowed.

    A head is what lies outside of the base model, and BERT's pooler: a task has its own.

    Raises:
        UserError: names the weights that are missing, or that the model does not have.
    """
    base = f"{hf.base_model_prefix}."

    def of_head(name: str) -> bool:
        return hf.base_model is not hf and (not name.startswith(base) or name.startswith(f"{base}pooler."))

    missing = sorted(found["missing_keys"]) + sorted(key[0] for key in found["mismatched_keys"])
    unexpected = sorted(found["unexpected_keys"])
    lost = [name for name in missing if not (task in WITH_CLASSES and of_head(name))]
    over = [name for name in unexpected if not of_head(name)]
    if (lost or over) and not allowed:
        told = [
            f"{what} {_some(names)}" for what, names in (("lack", lost), ("have, unlike the model,", over)) if names
        ]
        raise UserError(
            f"model.path={path}: the weights {' and '.join(told)} (or in another shape than the config says). To go on "
            "with fresh ones in their place: model.allow_missing=true."
        )
    for what, names in (("fresh weights for", missing), ("not used:", unexpected)):
        if names:
            print(f"model: {path}: {what} {_some(names)}", file=sys.stderr)
    return sorted({name.rpartition(".")[0] for name in missing})


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
