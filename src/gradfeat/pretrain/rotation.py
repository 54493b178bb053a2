"""Pre-training by predicting rotations (Gidaris, Singh & Komodakis, ICLR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain.cifar_resnet import CifarResNet
from gradfeat.pretrain.encoder import ConvEncoder, output_shape
from gradfeat.pretrain.loop import Task


def rotations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return images turned by 0, 90, 180 and 270 degrees against the clock, and by how many quarters each is.

    Args:
        x: Square images, (n, c, h, h).

    Returns:
        (4n, c, h, h), all images of one rotation together; and (4n,), int64, 0 to 3.

    Example:
        >>> turned, quarters = rotations(torch.tensor([[[[1, 2], [3, 4]]]]))
        >>> turned[1, 0].tolist(), int(quarters[1])
        ([[2, 4], [1, 3]], 1)
    """
    turned = torch.cat([torch.rot90(x, k, (2, 3)) for k in range(4)])
    return turned, torch.arange(4, device=x.device).repeat_interleave(len(x))


class Rotation(Task):
    """Which of four rotations was an image turned by? All four of every image are in the batch, as in the paper.

    Args:
        encoder: The network to pre-train; a linear classifier reads its f(x).
        image_shape: Channels, height and width.

    Raises:
        ConfigurationError: The images are not square.
    """

    def __init__(self, encoder: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__(encoder)
        if image_shape[1] != image_shape[2]:
            raise ConfigurationError(
                f"Rotations need square images; got {image_shape[1]} × {image_shape[2]}. Bring them to one side."
            )
        self.replayed = isinstance(encoder, ConvEncoder | CifarResNet)
        (d,) = output_shape(encoder, image_shape)
        self.classifier = nn.Linear(d, 4)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of images x, (n, c, h, h), in their four rotations."""
        turned, quarters = rotations(x)
        return F.cross_entropy(self.classifier(self.encoder(turned)), quarters)
