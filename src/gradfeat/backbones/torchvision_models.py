"""Classifiers of torchvision, by name, without their classifying layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from gradfeat.backbones.head import last_linear
from gradfeat.backbones.names import Name
from gradfeat.errors import BackboneError, ConfigurationError, did_you_mean
from gradfeat.optional import is_offline, require

_OURS = ("num_classes", "weights", "weights_backbone", "progress")


def build_torchvision(name: Name, *, pretrained: bool, random: bool) -> tuple[nn.Module, set[str], Any]:
    """Build a torchvision classifier whose output is f(x): its last linear layer becomes the identity.

    Args:
        name: Model, with or without the tag of its weights ("resnet50.IMAGENET1K_V2"), and options for the constructor.
        pretrained: Whether torchvision is to load its own weights, and to download them if need be.
        random: Whether the weights will stay random.

    Returns:
        The network; the names of the last layer's entries in a state dict, which the network no longer has; and the
        transforms that belong to the weights (None when torchvision has no weights).

    Raises:
        ConfigurationError: Unknown model, tag or option, or a network without a last linear layer.
        BackboneError: torchvision has no weights for it, or they cannot be fetched.
    """
    models = require("torchvision.models", extra="vision")
    entry = _weights_entry(models, name)
    options: dict[str, Any] = dict(name.options)
    model = name.model.partition(".")[0]
    if pretrained and entry is None:
        raise BackboneError(
            f"torchvision has no pre-trained weights for {model}: give a file (weights=..., --weights FILE), or "
            'weights="random" for random ones.'
        )
    if pretrained and is_offline() and not (_downloads() / Path(urlparse(entry.url).path).name).is_file():
        raise BackboneError(
            f"the pre-trained weights of {model} are not on this machine, and may not be fetched unless "
            "allow_download=True (on the command line: --allow-download) says so"
        )
    if model in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", random)
        if not random and not pretrained:
            # Weights from the library turn this on; from a file they mean the same function only with it.
            options.setdefault("transform_input", True)
    try:
        network = models.get_model(model, weights=entry if pretrained else None, progress=False, **options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"torchvision cannot build {model} with the options {name.options}: {error}"
        ) from error
    except Exception as error:  # fetching fails in many ways, and so does reading what was cut off on the way
        raise BackboneError(
            f"torchvision could not load the pre-trained weights of {model} ({type(error).__name__}: {error}). Without "
            f"a network: download {getattr(entry, 'url', 'them')} on another machine, and pass it as weights=FILE "
            "(on the command line: --weights FILE.pth)."
        ) from error
    complete = set(network.state_dict())
    head = last_linear(network)
    if model.startswith("squeezenet"):  # its classifier is a 1 × 1 convolution of the last map, averaged afterwards
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1))
    elif head is None:
        raise ConfigurationError(
            f"torchvision's {model} does not end in a linear layer, so its features f(x) are not known. Build the "
            "network yourself, and pass the module whose output is f(x)."
        )
    else:
        network.set_submodule(head, nn.Identity())
    return network, complete - set(network.state_dict()), None if entry is None else entry.transforms()


def _downloads() -> Path:
    """Return where torchvision keeps what it has fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _weights_entry(models: Any, name: Name) -> Any:
    """Return the weights that the tag names, or the default ones; None when there are none."""
    model, _, tag = name.model.partition(".")
    known = models.list_models(module=models)  # classifiers; not the detection, segmentation and video models
    if model not in known:
        raise ConfigurationError(
            f"torchvision has no classifier {model!r}."
            + (
                did_you_mean(model, known)
                or " torchvision.models.list_models(module=torchvision.models) lists them all."
            )
        )
    ours = [option for option in name.options if option in _OURS]
    if ours:
        raise ConfigurationError(f"The options {', '.join(ours)} are set by gradfeat; weights are given by weights=.")
    entries = {entry.name: entry for entry in models.get_model_weights(model)}
    if tag and tag not in entries:
        raise ConfigurationError(
            f"torchvision has no weights {tag!r} for {model}. Known: {', '.join(entries) or 'none'}."
        )
    if tag:
        return entries[tag]
    return models.get_model_weights(model).DEFAULT if entries else None
