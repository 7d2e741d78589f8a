"""A convolutional network for small images, such as MNIST's.

Shapes: B images, C channels, H = W pixels, N classes.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.models.checks import check_dropout, check_images, check_sizes


def layer(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 convolution, normalisation, ReLU: (B, inputs, H, W) -> (B, outputs, H, W).

    GroupNorm (Wu and He 2018, arXiv:1803.08494) and not BatchNorm: statistics of a batch would make an image's result
    depend on the images beside it, and so a run on the size of its micro-batches and on the number of its ranks.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),  # the norm takes any bias out again and brings its own
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    )


class ConvNet(nn.Module):
    """Three stages of convolutions, each at half the resolution of the one before and twice its width."""

    task = "image_classification"

    def __init__(self, classes: int, channels: int, image_size: int, width: int, dropout: float) -> None:
        super().__init__()
        check_sizes(classes=classes, channels=channels, image_size=image_size)
        check_dropout(dropout)
        if width < 8 or width % 8 or image_size < 4:
            raise UserError(f"model.width={width} must be a multiple of 8, and model.image_size at least 4.")
        self.classes, self.channels, self.image_size = classes, channels, image_size
        self.features = nn.Sequential(
            layer(channels, width),
            nn.MaxPool2d(2),
            layer(width, 2 * width),
            layer(2 * width, 2 * width),
            nn.MaxPool2d(2),
            layer(2 * width, 4 * width),
            layer(4 * width, 4 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width * (image_size // 4) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) float -> logits (B, N).

        Raises:
            UserError: the images have another size or other channels than the model was built for.
        """
        check_images(images, self.channels, self.image_size)
        features = self.features(images.to(self.head.weight.dtype))
        return cast(Tensor, self.head(self.dropout(features.flatten(1))))
