"""Networks of gradfeat's own, by name, with weights from a file."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradfeat.backbones.names import Name
from gradfeat.errors import BackboneError, ConfigurationError
from gradfeat.pretrain.cifar_resnet import CifarResNet


def build_own(name: Name, *, pretrained: bool) -> tuple[nn.Module, set[str]]:
    """Build a residual network for small images, whose output is f(x), its pooled features.

    Args:
        name: "resnet20" (32, 56, ...), with the option in_channels.
        pretrained: Whether weights of the network's own are asked for, of which there are none.

    Returns:
        The network, and the names of the classifier's entries in a state dict, which the network does not have.

    Raises:
        ConfigurationError: Another depth or option.
        BackboneError: No file of weights.
    """
    if pretrained:
        raise BackboneError(
            f"gradfeat/{name.model} is an architecture without weights of its own: give a file (weights=..., --weights "
            'FILE; of the common public ones), or weights="random".'
        )
    options: dict[str, Any] = dict(name.options)
    try:
        network = CifarResNet(depth=int(name.model.removeprefix("resnet")), **options)
    except TypeError as error:
        raise ConfigurationError(f"gradfeat/{name.model} takes the option in_channels, not {options}") from error
    return network, {"linear.weight", "linear.bias"}
