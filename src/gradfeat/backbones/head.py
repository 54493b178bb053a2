"""Find the classifier that a published network still wears: its input is f(x)."""

from __future__ import annotations

import copy
import re
from typing import Any, cast

from torch import nn

_WRAPPERS = ("_orig_mod", "module")  # torch.compile; DataParallel and its like
_CALLED_SO = re.compile(r"(^|\.)(fc|heads?|classifier|logits|last_linear|output|score)(\.|$)")


def head_of(network: nn.Module) -> str | None:
    """Return the name of the last layer of a timm or torchvision classifier: linear, or a convolution of one pixel.

    The features f(x) of such a network are the input of that layer ("input:<name>"); dropout before it is the identity
    in evaluation mode, and the maps that a convolution takes are averaged.

    Args:
        network: Any module; one inside DataParallel or torch.compile is looked into.

    Returns:
        The module's name; None for a network of another origin, without a head, or whose head is not one layer.
    """
    prefix, inner = unwrapped(network)
    library = type(inner).__module__.split(".")[0]
    name = None
    if library == "timm":
        name = _timm_head(inner)
    elif library == "torchvision" or (
        library == "transformers"
        and type(inner).__name__.endswith(("ForImageClassification", "ForAudioClassification"))
    ):
        name = _last_layer(inner)
    return None if name is None else f"{prefix}{name}"


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


def without_heads(network: nn.Module) -> nn.Module | None:
    """Return a timm classifier that has several heads (distilled ones, heads of several depths) without them.

    Args:
        network: Any module.

    Returns:
        A network with the same weights, in the same memory, whose output is f(x), as timm itself makes it of one built
        by name; None where there are no such heads, or they cannot be taken off.
    """
    if not type(network).__module__.startswith("timm.") or len(_heads_left(network)) < 2:
        return None
    shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
    try:
        bare: Any = copy.deepcopy(network, shared)
        bare.reset_classifier(0)
    except Exception:  # a network with hooks or parts of one's own may refuse either; its output is said to be f(x)
        return None
    return cast("nn.Module", bare)


def classifier_left(network: nn.Module) -> str | None:
    """Describe what looks like a classifier at the end of a network whose output is taken as f(x), or return None.

    Example:
        >>> classifier_left(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))) is None
        True
        >>> net = nn.Module()
        >>> net.fc = nn.Linear(4, 2)
        >>> classifier_left(net)
        "'fc' (Linear, 2 outputs)"
    """
    prefix, inner = unwrapped(network)
    name, layer = _last(inner)
    outputs = getattr(layer, "out_features", None) or getattr(layer, "out_channels", None)
    if (
        layer is None
        or outputs is None
        or not (_CALLED_SO.search(name) or (is_published(inner) and isinstance(layer, nn.Linear)))
    ):
        return None
    return f"{prefix + name!r} ({type(layer).__name__}, {outputs} outputs)"


def is_published(network: nn.Module) -> bool:
    """Return whether a network is of timm or torchvision, or of a class that a user derived from one of theirs."""
    kinds = type(unwrapped(network)[1]).__mro__
    return any(kind.__module__.startswith(("timm.", "torchvision.models")) for kind in kinds)


def unwrapped(network: nn.Module) -> tuple[str, nn.Module]:
    """Return the network inside DataParallel, torch.compile and their like, and what precedes its modules' names."""
    prefix = ""
    while True:
        children = dict(network.named_children())
        kind = type(network).__name__
        name = next((name for name in _WRAPPERS if set(children) == {name}), None)
        if name is None or not (kind == "OptimizedModule" or "Parallel" in kind or kind == "AveragedModel"):
            return prefix, network
        prefix, network = f"{prefix}{name}.", children[name]


def _timm_head(network: nn.Module) -> str | None:
    names = _heads_left(network)
    return names[0] if len(names) == 1 else None


def _heads_left(network: nn.Module) -> list[str]:
    """Return the layers that classify, where timm's configuration says; what a user put there is looked into."""
    # timm keeps the heads' names with the pre-trained configuration; an Identity there means that it was removed.
    config: Any = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    stated = config.get("classifier") if isinstance(config, dict) else getattr(config, "classifier", None)
    modules = dict(network.named_modules())
    found = []
    for name in [stated] if isinstance(stated, str) else list(stated or ()):
        while name and name not in modules and getattr(network, "num_classes", 0) != 0:
            name = name.rpartition(".")[0]  # the head, of which the classifier was a part, was replaced whole
        inside = _last_layer(modules[name]) if name in modules else None
        if inside is not None:
            found.append(f"{name}.{inside}".rstrip("."))
    return list(dict.fromkeys(found))


def _last(network: nn.Module) -> tuple[str, nn.Module | None]:
    """Return the last layer with parameters, in the order of definition."""
    for name, module in reversed(list(network.named_modules())):
        if next(module.parameters(recurse=False), None) is not None:
            return name, module
    return "", None


def _last_layer(network: nn.Module) -> str | None:
    """Return the last layer with parameters if it is linear or a convolution of one pixel; "" is the network itself."""
    name, layer = _last(network)
    one_pixel = isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1}
    return name if isinstance(layer, nn.Linear) or one_pixel else None
