"""The residual networks for images of 32 × 32 pixels: ResNet-20, -32, -44, -56, -110."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from gradfeat.errors import ConfigurationError

_DEEPEST = 2000  # the deepest that was published has 1,202


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut without parameters (option A: every second pixel, zeros as channels)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride = stride
        self.more = (out - width) // 2  # channels of zeros on either side

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (n, out, h / stride, w / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.more:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """Residual network of He et al. (2016, Sec. 4.2): three stages of (depth - 2) / 6 blocks, with 16, 32, 64 channels.

    The names of its parameters are those of the common public weights (akamaster/pytorch_resnet_cifar10).

    Args:
        in_channels: Channels of the images.
        depth: Layers with weights, the classifier counted: 20, 32, 44, 56, 110.

    Raises:
        ConfigurationError: `depth` is not 6 n + 2.

    Example:
        >>> import torch
        >>> CifarResNet(depth=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(self, in_channels: int = 3, depth: int = 20) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1 or depth > _DEEPEST:
            raise ConfigurationError(
                f"A ResNet for small images has 6 n + 2 layers (8, 14, 20, 32 ...), {_DEEPEST} at most, not {depth}."
            )
        self.arguments: dict[str, Any] = {"in_channels": in_channels, "depth": depth}
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_map(self, x: Tensor) -> Tensor:
        """Return the last block's output, (n, 64, h / 4, w / 4)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return f(x), (n, 64), for images x, (n, c, h, w)."""
        return self.forward_map(x).mean(dim=(2, 3))


def _stage(width: int, out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(width, out, stride)
    return nn.Sequential(first, *(BasicBlock(out, out, 1) for _ in range(blocks - 1)))
