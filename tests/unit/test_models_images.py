"""The convolutional network and the vision transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from bigtrain.errors import UserError
from bigtrain.models import cnn, vit

MODELS: dict[str, Any] = {
    "cnn": lambda **changes: cnn(**{"classes": 5, "image_size": 8, "width": 8, "dropout": 0.0} | changes),
    "vit": lambda **changes: vit(
        **{"classes": 5, "image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
        | changes
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_gradient_does_not_depend_on_the_split(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().train()
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 5
    gradients = []
    for size in (8, 2):
        model.zero_grad()
        for start in range(0, 8, size):
            part = slice(start, start + size)
            functional.cross_entropy(model(images[part]), labels[part], reduction="sum").backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_what_does_not_fit_is_said(kind: str) -> None:
    with pytest.raises(UserError, match="The images are 1 x 7 x 7 .* and the model takes 1 x 8 x 8"):
        MODELS[kind]()(torch.zeros(1, 1, 7, 7))
    with pytest.raises(UserError, match="model.classes has no value"):
        MODELS[kind](classes=None)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("vit", {"patch_size": 3}, "model.patch_size=3 does not divide model.image_size=8: 2 does"),
        ("vit", {"heads": 3}, "model.heads=3 does not divide model.width=16: 2 does"),
        ("cnn", {"width": 12}, "multiple of 8"),
        ("cnn", {"dropout": 1.0}, "less than 1"),
    ],
)
def test_shapes_that_cannot_be(kind: str, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        MODELS[kind](**changes)


def test_checkpointed_blocks_have_the_same_gradient() -> None:
    torch.manual_seed(0)
    model, images = MODELS["vit"](dropout=0.3).train(), torch.randn(4, 1, 8, 8)
    found = []
    for again in (False, True):
        if again:
            model.enable_activation_checkpointing()
        model.zero_grad()
        torch.manual_seed(1)
        model(images).sum().backward()
        found.append(model.blocks[0].qkv.weight.grad.clone())
    torch.testing.assert_close(*found)
