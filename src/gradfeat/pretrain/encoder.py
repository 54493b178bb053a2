"""A convolutional encoder: a small one, or the BiGAN encoder of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradfeat.errors import ConfigurationError

# Mu, Liang & Li, ICLR 2020, Sec. 4.1, after Dumoulin et al. 2016: 32 -> 28 -> 13 -> 10 -> 4 -> 1 pixels.
BIGAN: dict[str, Any] = {
    "channels": (32, 64, 128, 256, 512),
    "strides": (1, 2, 1, 2, 1),
    "kernel_size": (5, 4, 4, 4, 4),
    "padded": False,
}


class ConvEncoder(nn.Module):
    """Convolutions with batch norm and leaky ReLU, averaged over the image: f(x) of shape (n, channels[-1]).

    The form of the paper's base networks (METHOD: BiGAN and VAE encoders, leaky ReLU 0.01, average-pooled features),
    by default in a size for small images.

    Args:
        in_channels: Channels of the images.
        channels: Output channels of every convolution.
        strides: Stride of every convolution.
        kernel_size: Side of all kernels, or one for every convolution.
        padded: Whether kernels reach over the border by half, so that stride 1 keeps the size; they are odd then.

    Raises:
        ConfigurationError: Lengths of `channels`, `strides` and `kernel_size` differ, or sizes are not positive.

    Example:
        >>> import torch
        >>> ConvEncoder(1, channels=(8, 16), strides=(1, 2))(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 16])
        >>> ConvEncoder(3, **BIGAN).forward_map(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512, 1, 1])
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (16, 32, 32, 32),
        strides: Sequence[int] = (1, 2, 1, 2),
        kernel_size: int | Sequence[int] = 3,
        padded: bool = True,
    ) -> None:
        super().__init__()
        kernels = [kernel_size] * len(channels) if isinstance(kernel_size, int) else list(kernel_size)
        if not len(channels) == len(strides) == len(kernels) or not channels:
            raise ConfigurationError(
                f"Every convolution needs its channels, stride and kernel; got {len(channels)} channels, "
                f"{len(strides)} strides and {len(kernels)} kernels."
            )
        if min(in_channels, *kernels, *channels, *strides) < 1 or (padded and any(k % 2 == 0 for k in kernels)):
            raise ConfigurationError("Channels, strides and kernels are positive, and padded kernels are odd.")
        self.arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "channels": list(channels),
            "strides": list(strides),
            "kernel_size": kernel_size if isinstance(kernel_size, int) else kernels,
            "padded": padded,
        }
        self.blocks = nn.Sequential()
        width = in_channels
        for out, stride, kernel in zip(channels, strides, kernels, strict=True):
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(width, out, kernel, stride, kernel // 2 if padded else 0, bias=False),
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


def activation_map(network: Any, x: Tensor) -> Tensor:
    """Return a network's last activations before they are averaged, (n, d, h, w).

    This folder's encoders have them as `forward_map`, convolutional networks of timm as `forward_features`. Of any
    other network it is f(x) itself, as a map of one place.

    Example:
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> activation_map(ConvEncoder(1), x).shape, activation_map(nn.Flatten(), x).shape
        (torch.Size([2, 32, 2, 2]), torch.Size([2, 64, 1, 1]))
    """
    if hasattr(network, "forward_map"):
        return network.forward_map(x)
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        return network(x)[:, :, None, None]
    value = network.forward_features(x)
    if value.ndim == 4 and value.shape[1] == getattr(network, "num_features", None):
        return value
    return network.forward_head(value)[:, :, None, None]  # tokens, or channels that come last


def output_shape(network: nn.Module, input_shape: Sequence[int], *, spatial: bool = False) -> tuple[int, ...]:
    """Return the shape of a network's output for one sample.

    Args:
        network: Left in evaluation mode, so that a look at the shape leaves batch norm's statistics alone.
        input_shape: Of one sample, (c, h, w).
        spatial: Of `activation_map`, rather than of the output.

    Raises:
        ConfigurationError: The network cannot take such a sample.
    """
    network.eval()
    try:
        with torch.no_grad():
            x = torch.zeros(1, *input_shape)
            return tuple((activation_map(network, x) if spatial else network(x)).shape[1:])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigurationError(
            f"The network cannot take images of (channels, height, width) {tuple(input_shape)}: "
            f"{str(error).splitlines()[0]}. Choose another image size, or a network for such images "
            "(timm/<model>?in_chans=1 for grey ones)."
        ) from error
