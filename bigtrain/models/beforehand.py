"""What of a model is refused before the data are prepared, which may take hours: paths, adapters, sizes of images."""

from __future__ import annotations

import inspect
from typing import Any

from bigtrain import models
from bigtrain.errors import UserError
from bigtrain.models.lora import Lora
from bigtrain.models.source import FILES, locate, read_config

CONFIG = [pattern for pattern in FILES if "safetensors" not in pattern and "bin" not in pattern]
"""Of a hub name no weights are fetched yet."""


def check_beforehand(component: dict[str, Any], images: tuple[int, int] | None = None) -> None:
    """Look at the settings of a model that bigtrain ships, and of pretrained ones at their configuration alone.

    Args:
        component: the checked model component of a run.
        images: (channels, height and width in pixels) of the data's images, where they are known already.

    Raises:
        UserError: `model.path` or `model.teacher` is not there; the configuration is of no model for the task;
            `model.lora` matches no layer; the images have another size than the model takes.
    """
    room, _, name = component["_target_"].rpartition(".")
    if room != models.__name__:
        return
    if images is not None and name in ("cnn", "vit"):
        _check_images(component, name, images)
    path = component.get("path")
    place = locate(path, files=CONFIG) if path else None
    if component.get("teacher"):
        locate(component["teacher"], "model.teacher", CONFIG)
    lora = component.get("lora")
    lora = Lora(**lora) if isinstance(lora, dict) else lora
    if lora is not None and lora.quantize is not None and not path:
        raise UserError("model.lora.quantize rounds pretrained weights, and model.config has random ones: model.path.")
    if name != "hugging_face" or (place is not None and place.is_file()):
        return
    task, config = component.get("task", "causal_lm"), None
    if place is not None:
        from bigtrain.models.tasks import check_task

        config = read_config(place, str(path))
        check_task(config, task, f"model.path={path}")
    if lora is not None:
        _check_adapters(component, lora, task, config)


def _check_images(component: dict[str, Any], name: str, images: tuple[int, int]) -> None:
    defaults = inspect.signature(getattr(models, name)).parameters
    takes = tuple(component.get(setting, defaults[setting].default) for setting in ("channels", "image_size"))
    if takes != images:
        (channels, size), (own_channels, own_size) = images, takes
        raise UserError(
            f"The images are {channels} x {size} x {size} (channels x height x width) and the model takes "
            f"{own_channels} x {own_size} x {own_size}: set model.channels={channels} model.image_size={size}, or "
            "data.channels and data.image_size."
        )


def _check_adapters(component: dict[str, Any], lora: Lora, task: str, config: Any) -> None:
    """On a model without weights. Of heads it is not known yet which are trained whole: all are taken for layers."""
    import torch

    from bigtrain.models.adapters import chosen_layers
    from bigtrain.models.pretrained import from_config
    from bigtrain.models.tasks import auto_class

    try:
        with torch.device("meta"):
            if config is None:
                hf = from_config(component["config"], task, None, None, "eager")
            else:
                hf = auto_class(task).from_config(config, attn_implementation="eager")
    except Exception:  # of any kind: what cannot be built like this is judged when it is built
        return
    chosen_layers(hf, lora, [])
