"""The output of every layer of a network, pooled to a few features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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

    Positions are averaged on the finest square grid (cube, row) that leaves so few; where the channels alone are more,
    neighbouring channels are averaged too.

    Args:
        value: (n, ...), of 2 to 5 axes.
        axis: Where the channels are.
        most: m at most.

    Example:
        >>> pooled(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]), 1, 2)  # one channel, four positions
        tensor([[2., 6.]])
    """
    value = value.movedim(axis, 1)
    extent = value.shape[2:]
    if extent:
        side = max(1, int((most / value.shape[1]) ** (1 / len(extent)) + 1e-9))
        value = _POOLS[len(extent)](value, [min(side, size) for size in extent])
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
        record = _Record(len(x), self.most)
        f = self._run(x, record)
        features = record.features
        f_pooled = pooled(f, 1, self.most)
        if self._repeated is None:
            top = next(reversed(features.values()), None)
            self._repeated = top is not None and top.shape == f_pooled.shape and torch.allclose(top, f_pooled)
        if not self._repeated:
            features["f(x)"] = f_pooled
        names, sizes = list(features), [value.shape[1] for value in features.values()]
        if self.layers and (names, sizes) != (self.layers, self.sizes):
            raise DataError("the network runs other layers, or layers of another size, than for the batch before")
        self.layers, self.sizes = names, sizes
        return torch.cat([value.to(f) for value in features.values()], dim=1)

    def _run(self, x: Tensor, record: _Record) -> Tensor:
        """Return f(x), with the outputs of the layers in the record; the network's modes come back."""
        handles = [
            module.register_forward_hook(lambda module, _, output, name=name: record.add(name, module, output))
            for name, module in self.network.network.named_modules()
            if name and (isinstance(module, (*_CONVOLUTIONS, nn.Linear)) or any(True for _ in module.children()))
        ]
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.no_grad(), computing():
                return self.network((x,), {})
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes:
                module.training = training


@dataclass
class _Output:
    """A layer's output, and where its channels are.

    Attributes:
        value: The output itself, (n, ...).
        version: Of the tensor, when it was returned: an operation in place makes another output of it.
        axis: Of the channels.
        channels: How many; 0 where no layer has said so.
    """

    value: Tensor
    version: int
    axis: int
    channels: int


class _Record:
    """The outputs of the layers in one forward pass, pooled at once: an activation may overwrite them.

    Args:
        n: Samples in the batch.
        most: Features of one layer at most.

    Attributes:
        features: (n, m) of each layer by its name, in the order of evaluation; a second call has its number behind it.
    """

    def __init__(self, n: int, most: int) -> None:
        self.n, self.most = n, most
        self.features: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._last: _Output | None = None

    def add(self, name: str, module: nn.Module, output: Any) -> None:
        """Note the output of a module, unless it is the last one once more, or none of one row for each sample."""
        if not isinstance(output, Tensor) or not 2 <= output.ndim <= 5 or len(output) != self.n:
            return
        last = self._last
        if last is not None and output is last.value and output._version == last.version:
            return
        self._last = _Output(output, output._version, *self._channels(module, output))
        self._calls[name] += 1
        key = name if self._calls[name] == 1 else f"{name} ({self._calls[name]})"
        self.features[key] = pooled(output.detach(), self._last.axis, self.most)

    def _channels(self, module: nn.Module, output: Tensor) -> tuple[int, int]:
        """Return the axis of the channels and their number; of a block the axis as long as its last layer's."""
        if isinstance(module, _CONVOLUTIONS):
            return 1, module.out_channels
        if isinstance(module, nn.Linear):
            return output.ndim - 1, module.out_features
        if self._last is None:
            return 1, 0
        channels = self._last.channels
        ends = (self._last.axis, 1, output.ndim - 1)
        axis = next((end for end in ends if end < output.ndim and output.shape[end] == channels), 1)
        return axis, channels
