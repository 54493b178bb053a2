"""What a network is, in 64 hexadecimal digits, and how two networks differ, in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gradfeat.files.digests import digest_tensors, tensor_lines

# Settings that change training or memory, but not the function in evaluation mode.
_WITHOUT_EFFECT = frozenset({"inplace", "momentum", "training", "dropout"})
_ROOT = "(top level)"


def fingerprint(network: nn.Module, features: str | None = None) -> str:
    """Return a digest of the network's architecture, weights and place of the features.

    It is a SHA-256 over the class's qualified name; over the class name and settings (stride, padding, eps ...) of
    every submodule; and over name, dtype, shape and bytes of every entry of the state dict, sorted by name. Equal
    networks have equal fingerprints in every process, whatever the device, memory layout or training mode.

    Args:
        network: Any module.
        features: Where f(x) is read, as in `gradfeat.linearize`.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> layer = torch.nn.Linear(2, 3)
        >>> fingerprint(layer) == fingerprint(layer.eval()), fingerprint(layer) == fingerprint(layer, "input:fc")
        (True, False)
    """
    return fingerprint_of(summary(network), features)


def fingerprint_of(about: Mapping[str, Any], features: str | None = None) -> str:
    """Return the fingerprint of a network whose `summary` is known.

    Args:
        about: The summary.
        features: As of `fingerprint`.
    """
    return hashlib.sha256(json.dumps([about, features], sort_keys=True).encode()).hexdigest()


def summary(network: nn.Module) -> dict[str, Any]:
    """Return a short JSON-able description of a network, enough to say later what changed.

    Args:
        network: Any module.

    Returns:
        ``class`` (qualified name), ``n_parameters``, and ``children``: for every top-level child its class, number of
        parameters and two digests, of the layers' kinds and settings (``layers``) and of the values (``weights``).
        Parameters and buffers of the network itself are listed as the child "(top level)".

    Example:
        >>> summary(nn.Sequential(nn.Linear(2, 3)))["children"]["0"]["n_parameters"]
        9
    """
    state = network.state_dict()
    children = {name: _describe(child, name, state) for name, child in network.named_children()}
    top_level = {name: value for name, value in state.items() if name.split(".")[0] not in children}
    if top_level:
        kinds = [type(network).__qualname__, _settings(network), *tensor_lines(top_level)]
        children[_ROOT] = {
            "class": type(network).__qualname__,
            "n_parameters": sum(p.numel() for p in network.parameters(recurse=False)),
            "layers": _digest_text(kinds),
            "weights": digest_tensors(top_level),
        }
    return {
        "class": f"{type(network).__module__}.{type(network).__qualname__}",
        "n_parameters": sum(p.numel() for p in network.parameters()),
        "children": children,
    }


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say in readable lines how network `b` differs from network `a`.

    Args:
        a: `summary` of the network that is expected.
        b: `summary` of the network that is there.

    Returns:
        One line per difference; empty when the networks are the same.

    Example:
        >>> difference(summary(nn.ReLU()), summary(nn.GELU()))
        ['class: expected torch.nn.modules.activation.ReLU, found torch.nn.modules.activation.GELU']
    """
    lines = []
    if a["class"] != b["class"]:
        lines.append(f"class: expected {a['class']}, found {b['class']}")
    if a["n_parameters"] != b["n_parameters"]:
        lines.append(f"parameters: expected {a['n_parameters']:,}, found {b['n_parameters']:,}")
    expected, found = a["children"], b["children"]
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name not in found:
            lines.append(f"{name}: missing ({expected[name]['class']} expected)")
        elif name not in expected:
            lines.append(f"{name}: not expected ({found[name]['class']})")
        elif expected[name]["class"] != found[name]["class"]:
            lines.append(f"{name}: expected {expected[name]['class']}, found {found[name]['class']}")
        elif expected[name]["layers"] != found[name]["layers"]:
            lines.append(f"{name}: other layers, shapes or settings inside")
        elif expected[name]["weights"] != found[name]["weights"]:
            lines.append(f"{name}: the same layers with other weights")
    return lines


def _describe(child: nn.Module, name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    inside = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
    kinds = [[path, type(module).__name__, _settings(module)] for path, module in child.named_modules()]
    return {
        "class": type(child).__name__,
        "n_parameters": sum(p.numel() for p in child.parameters()),
        "layers": _digest_text([kinds, tensor_lines(inside)]),
        "weights": digest_tensors(inside),
    }


def _settings(module: nn.Module) -> dict[str, str]:
    """Return a layer's settings; PyTorch's own layers name them in `__constants__`."""
    names = sorted(set(getattr(module, "__constants__", ())) - _WITHOUT_EFFECT)
    values = {name: getattr(module, name, None) for name in names}
    return {name: repr(value) for name, value in values.items() if isinstance(value, bool | int | float | str | tuple)}


def _digest_text(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
