"""Find the classifier that a published network still wears: its input is f(x)."""

from __future__ import annotations

from typing import Any

from torch import nn


def head_of(network: nn.Module) -> str | None:
    """Return the name of the last linear layer of a timm or torchvision classifier.

    The features f(x) of such a network are the input of that layer ("input:<name>"); dropout before it is the identity
    in evaluation mode.

    Args:
        network: Any module.

    Returns:
        The module's name; None for a network of another origin, without a head, or whose head is not one linear layer.
    """
    library = type(network).__module__.split(".")[0]
    if library == "timm":
        return _timm_head(network)
    if library == "torchvision":
        return last_linear(network)
    return None


def features_of(network: nn.Module) -> str | None:
    """Return where f(x) is read: "input:<head>", or None where the network's output is f(x)."""
    head = head_of(network)
    return None if head is None else f"input:{head}"


def last_linear(network: nn.Module) -> str | None:
    """Return the name of the last layer (in the order of definition) if it is linear, else None.

    Every classifier of torchvision defines its head last; the exception, SqueezeNet, ends in a convolution.
    """
    name, module = list(network.named_modules())[-1]
    return name if isinstance(module, nn.Linear) and name else None


def _timm_head(network: nn.Module) -> str | None:
    # timm keeps the head's name with the pre-trained configuration; an Identity there means that it was removed.
    config: Any = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    name = config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)
    if not isinstance(name, str):
        return None
    modules = dict(network.named_modules())
    return name if isinstance(modules.get(name), nn.Linear) else None
