"""Pre-training on labels: the ordinary classifier, whose features are used elsewhere."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat.errors import ConfigurationError
from gradfeat.pretrain.encoder import output_shape
from gradfeat.pretrain.loop import Task


class Supervised(Task):
    """Cross-entropy of a linear classifier on f(x).

    Args:
        encoder: The network to pre-train.
        image_shape: Channels, height and width.
        classes: How many.
    """

    def __init__(self, encoder: nn.Module, image_shape: tuple[int, int, int], *, classes: int) -> None:
        super().__init__(encoder)
        (d,) = output_shape(encoder, image_shape)
        self.classifier = nn.Linear(d, classes)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of images x, (n, c, h, w), with labels y, (n,), from 0."""
        if y is None:
            raise ConfigurationError("The task 'supervised' needs labels.")
        return F.cross_entropy(self.classifier(self.encoder(x)), y)
