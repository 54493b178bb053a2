"""Networks of timm, by name, without their classifier."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from gradfeat.backbones.names import Name
from gradfeat.errors import BackboneError, ConfigurationError, did_you_mean
from gradfeat.optional import cached_on_hub, is_offline, require

_OURS = (
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "cache_dir",
    "checkpoint_path",
    "features_only",
)
_PUBLISHED = ("model.safetensors", "pytorch_model.bin")  # in the order in which timm looks for them


def build_timm(name: Name, *, pretrained: bool) -> tuple[nn.Module, set[str]]:
    """Build a timm network whose output is f(x), its pooled features before the classifier.

    Args:
        name: Model, with or without the tag of its weights, and options for timm's constructor.
        pretrained: Whether timm is to load its own weights, which it downloads when they are not on this machine.

    Returns:
        The network, and the names of the classifier's entries in a state dict, which the network no longer has.

    Raises:
        ConfigurationError: Unknown model, tag or option.
        BackboneError: timm has no weights for it, or they cannot be fetched.
    """
    timm = require("timm", extra="vision")
    _check(timm, name)
    overlay: dict[str, Any] = {}
    if pretrained:
        _check_pretrained(timm, name)
        if is_offline():
            overlay = {"pretrained_cfg_overlay": _on_this_machine(timm, name)}
    try:
        # A classifier of one class, only to learn the names of its parameters: it is removed at once.
        network = timm.create_model(name.model, pretrained=pretrained, num_classes=1, **overlay, **name.options)
    except (TypeError, AttributeError) as error:
        raise ConfigurationError(f"timm cannot build {name.model} with the options {name.options}: {error}") from error
    except Exception as error:  # downloading fails in many ways, by the errors of several libraries
        if not pretrained:
            raise BackboneError(f"timm cannot build {name.model}: {error}") from error
        raise BackboneError(_offline(timm, name, error)) from error
    complete = set(network.state_dict())
    network.reset_classifier(0)
    return network, complete - set(network.state_dict())


def _check(timm: Any, name: Name) -> None:
    architecture, _, tag = name.model.partition(".")
    if not timm.is_model(architecture):
        raise ConfigurationError(f"timm has no model {architecture!r}." + _near(architecture, timm.list_models()))
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        known = f" Known: {', '.join(tags)}." if tags else ""
        raise ConfigurationError(f"timm has no weights {tag!r} for {architecture}.{known}" + did_you_mean(tag, tags))
    ours = [option for option in name.options if option in _OURS]
    if ours:
        raise ConfigurationError(f"The options {', '.join(ours)} are set by gradfeat; weights are given by weights=.")


def _near(name: str, known: list[str]) -> str:
    """Return near names, also those that only begin the same way ("resnet" -> "resnet18")."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6) or [model for model in known if name in model][:5]
    return f" Did you mean {', '.join(near)}?" if near else " timm.list_models() lists them all."


def _check_pretrained(timm: Any, name: Name) -> None:
    config = timm.get_pretrained_cfg(name.model)
    if config is None or not config.has_weights:
        raise BackboneError(
            f"timm has no pre-trained weights for {name.model}: give a file (weights=..., --weights FILE), or "
            'weights="random" for random ones.'
        )


def _on_this_machine(timm: Any, name: Name) -> dict[str, Any]:
    """Return where the pre-trained weights are among what has been downloaded, as timm's configuration says it.

    Raises:
        BackboneError: They are not there.
    """
    config = timm.get_pretrained_cfg(name.model)
    if config.source == "local-dir" or config.file or config.state_dict:
        return {}
    found: Path | None = None
    if config.hf_hub_id:
        source, _, revision = config.hf_hub_id.partition("@")
        stated = config.hf_hub_filename
        names = [stated.replace("pytorch_", "").rpartition(".")[0] + ".safetensors", stated] if stated else _PUBLISHED
        found = cached_on_hub(source, names, revision or None)
        overlay: dict[str, Any] = {"custom_load": config.custom_load == "hf"}
    if found is None and config.url:
        url, name_there = (config.url, "") if isinstance(config.url, str) else config.url
        file = Path(torch.hub.get_dir()) / "checkpoints" / (name_there or Path(urlparse(url).path).name)
        found = file if file.is_file() else None
        overlay = {}
    if found is None:
        raise BackboneError(
            f"the pre-trained weights of {name.model} are not on this machine, and may not be fetched unless "
            "allow_download=True (on the command line: --allow-download) says so"
        )
    return {**overlay, "file": str(found), "source": ""}


def _offline(timm: Any, name: Name, error: Exception) -> str:
    config = timm.get_pretrained_cfg(name.model)
    source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    return (
        f"timm could not load the pre-trained weights of {name.model} ({type(error).__name__}: {error}). Without a "
        f"network: download model.safetensors from {source} on another machine, and pass it as "
        "weights=FILE (on the command line: --weights FILE.safetensors or FILE.pth)."
    )
