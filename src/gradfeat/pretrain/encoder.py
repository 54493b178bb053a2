"""A small convolutional encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gradfeat.errors import ConfigurationError


class ConvEncoder(nn.Module):
    """Convolutions with batch norm and leaky ReLU, averaged over the image: f(x) of shape (n, channels[-1]).

    The form of the paper's base networks (METHOD: BiGAN and VAE encoders, leaky ReLU 0.01, average-pooled features),
    in a size for small images.

    Args:
        in_channels: Channels of the images.
        channels: Output channels of every convolution.
        strides: Stride of every convolution.
        kernel_size: Side of all kernels; odd, padded so that stride 1 keeps the size.

    Raises:
        ConfigurationError: Lengths of `channels` and `strides` differ, or sizes are not positive.

    Example:
        >>> import torch
        >>> ConvEncoder(1, channels=(8, 16), strides=(1, 2))(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 32, 32),
        strides: Sequence[int] = (1, 2, 1, 2),
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        if len(channels) != len(strides) or not channels:
            raise ConfigurationError(
                f"Every convolution needs its channels and its stride; got {len(channels)} channels and "
                f"{len(strides)} strides."
            )
        if min(in_channels, kernel_size, *channels, *strides) < 1 or kernel_size % 2 == 0:
            raise ConfigurationError("Channels and strides are positive, and kernel_size is odd.")
        self.arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "channels": list(channels),
            "strides": list(strides),
            "kernel_size": kernel_size,
        }
        self.blocks = nn.Sequential()
        width = in_channels
        for out, stride in zip(channels, strides, strict=True):
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(width, out, kernel_size, stride, kernel_size // 2, bias=False),
                    nn.BatchNorm2d(out),
                    nn.LeakyReLU(0.01),
                )
            )
            width = out

    def forward_map(self, x: Tensor) -> Tensor:
        """Return the last layer's activations before they are averaged, (n, d, h', w')."""
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), (n, d), for images x, (n, c, h, w)."""
        return self.forward_map(x).mean(dim=(2, 3))
