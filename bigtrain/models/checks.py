"""What the small native models ask of their settings; each fault is a `UserError` that names a right value."""

from __future__ import annotations

from torch import Tensor

from bigtrain.errors import UserError


def given(setting: str, value: int | None) -> int:
    """The value of `model.<setting>`; a `UserError` where it has none."""
    if value is None:
        raise UserError(f"model.{setting} has no value: give one, as model.{setting}=VALUE.")
    return value


def check_sizes(**sizes: int) -> None:
    """Each of the settings counts something: a `UserError` for one below 1."""
    for setting, size in sizes.items():
        if size < 1:
            raise UserError(f"model.{setting} must be at least 1, not {size}.")


def check_dropout(dropout: float) -> None:
    """A `UserError` for a share that is none, or that leaves nothing."""
    if not 0 <= dropout < 1:
        raise UserError(f"model.dropout must be at least 0 and less than 1, not {dropout}.")


def check_divides(part: str, parts: int, whole: str, size: int) -> None:
    """`model.<part>` divides `model.<whole>`: a `UserError` with the nearest divisor where it does not."""
    if size % parts:
        near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: abs(d - parts))
        raise UserError(f"model.{part}={parts} does not divide model.{whole}={size}: {near} does.")


def check_images(images: Tensor, channels: int, size: int) -> None:
    """images (B, C, H, W) are square and as the model was built for: a `UserError` where they are not."""
    if tuple(images.shape[1:]) != (channels, size, size):
        have, want = (" x ".join(map(str, shape)) for shape in (images.shape[1:], (channels, size, size)))
        raise UserError(
            f"The images are {have} (channels x height x width) and the model takes {want}: "
            "set model.channels and model.image_size as the images are, or data to another size."
        )
