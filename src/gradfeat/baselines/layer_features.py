"""The output of every layer of a network, pooled to a few features."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradfeat.contexts import computing
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.linearization.capture import FeatureExtractor, Features

PER_LAYER = 512
"""Most features of one layer."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def pooled(value: Tensor, axis: int, most: int) -> Tensor:
    """Return a layer's output as at most `most` features of each sample, (n, m).

    Places are averaged on the finest square grid (cube, row) that leaves so few; where the channels alone are more,
    neighbouring channels are averaged too.

    Args:
        value: (n, ...), of 2 to 5 axes.
        axis: Where the channels are.
        most: m at most.

    Example:
        >>> pooled(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), 1, 2)  # one channel, four places
        tensor([[2., 6.]])
    """
    value = value.movedim(axis, 1)
    places = value.shape[2:]
    if places:
        side = max(1, int((most / value.shape[1]) ** (1 / len(places)) + 1e-9))
        value = _POOLS[len(places)](value, [min(side, size) for size in places])
    flat = value.flatten(1)
    return flat if flat.shape[1] <= most else F.adaptive_avg_pool1d(flat[:, None], most)[:, 0]


class LayerFeatures:
    """All layers of a network as features: its convolutions, its linear layers, its blocks, and f(x).

    A block is any module with modules of its own; where it only hands on what its last module returned it is not
    counted again. The channels of a block's output are the axis that is as long as its last layer has channels.

    Args:
        network: The network; used in evaluation mode, and not changed.
        features: What f(x) is, as of `gradfeat.linearize`.
        most: Features of one layer at most.

    Attributes:
        layers: Names of the layers, in the order of evaluation, after the first batch; f(x) comes last, unless the
            last layer's features are f(x).
        sizes: How many features each has.
    """

    def __init__(self, network: nn.Module, features: Features = None, *, most: int = PER_LAYER) -> None:
        if most < 1:
            raise ConfigurationError(f"features_per_layer must be a whole number from 1, not {most}")
        self.network = FeatureExtractor(network, features)
        self.most = most
        self.layers: list[str] = []
        self.sizes: list[int] = []
        self._repeated: bool | None = None  # whether f(x) is the last layer once more

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features of a batch, (n, D).

        Raises:
            DataError: The layers are others than those of the batch before.
        """
        found: dict[str, Tensor] = {}
        calls: Counter[str] = Counter()
        last: list[tuple[Tensor, int, int, int]] = []  # the last output, its version, axis of channels, and channels

        def note(name: str, module: nn.Module, output: Any) -> None:
            if not isinstance(output, Tensor) or not 2 <= output.ndim <= 5 or len(output) != len(x):
                return
            if last and output is last[0][0] and output._version == last[0][1]:
                return
            axis, channels = 1, 0
            if isinstance(module, _CONVOLUTIONS):
                channels = module.out_channels
            elif isinstance(module, nn.Linear):
                axis, channels = output.ndim - 1, module.out_features
            elif last:
                _, _, axis, channels = last[0]
                ends = (axis, 1, output.ndim - 1)
                axis = next((end for end in ends if end < output.ndim and output.shape[end] == channels), 1)
            last[:] = [(output, output._version, axis, channels)]
            calls[name] += 1
            found[name if calls[name] == 1 else f"{name} ({calls[name]})"] = pooled(
                output.detach(), axis, self.most
            )  # now: an activation may overwrite it

        handles = [
            module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
            for name, module in self.network.network.named_modules()
            if name and (isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or any(True for _ in module.children()))
        ]
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.no_grad(), computing():
                f = self.network((x,), {})
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes:
                module.training = training
        f_pooled = pooled(f, 1, self.most)
        if self._repeated is None:
            top = next(reversed(found.values()), None)
            self._repeated = top is not None and top.shape == f_pooled.shape and torch.allclose(top, f_pooled)
        if not self._repeated:
            found["f(x)"] = f_pooled
        names, sizes = list(found), [value.shape[1] for value in found.values()]
        if self.layers and (names, sizes) != (self.layers, self.sizes):
            raise DataError("the network runs other layers, or layers of another size, than for the batch before")
        self.layers, self.sizes = names, sizes
        return torch.cat([value.to(f) for value in found.values()], dim=1)
