"""The network's own preprocessing, from what its library or its weights file says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradfeat.errors import BackboneError, ConfigurationError, refuse_unknown_fields

if TYPE_CHECKING:
    from gradfeat.data import Preprocessing, TextPreprocessing

_REQUIRED = ("size", "mean", "std")  # without these three a picture cannot become an input


def from_timm(network: Any, in_channels: int | None = None) -> dict[str, Any]:
    """Return the fields of a timm network's preprocessing.

    Args:
        network: The network.
        in_channels: Channels of its input, where they are other than those of its published weights.
    """
    config = network.pretrained_cfg
    channels, height, width = config["input_size"]
    mean, std = list(config["mean"]), list(config["std"])
    if in_channels is not None and in_channels != channels:
        # timm adapts its weights to other channels; the mean over colours is the neutral scaling.
        channels, mean, std = in_channels, [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)  # img_size=... moves it from the default
    crop_mode = config.get("crop_mode", "center")
    return {
        "size": list(size or (height, width)),
        "crop_pct": 1.0 if crop_mode == "squash" else config["crop_pct"],
        "interpolation": config["interpolation"],
        "mean": mean,
        "std": std,
        "channels": channels,
        **({"resize": "squash"} if crop_mode == "squash" else {}),
    }


def from_torchvision(transforms: Any) -> dict[str, Any]:
    """Return the fields of torchvision's ImageClassification transforms."""
    crop, resized = transforms.crop_size[0], transforms.resize_size[0]
    return {
        "size": [crop, crop],
        "crop_pct": crop / resized,
        "interpolation": transforms.interpolation.value,
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "channels": len(transforms.mean),
    }


def from_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the fields that a safetensors file's metadata gives.

    Read are ``preprocessing`` (JSON), or else the plain lists ``mean``, ``std`` and ``input_size`` ("3,224,224").

    Raises:
        BackboneError: They cannot be read.
    """
    try:
        if "preprocessing" in metadata:
            return dict(json.loads(metadata["preprocessing"]))
        fields: dict[str, Any] = {
            key: [float(value) for value in metadata[key].split(",")] for key in ("mean", "std") if key in metadata
        }
        if "input_size" in metadata:
            channels, *size = (int(value) for value in metadata["input_size"].split(","))
            fields |= {"size": size, "channels": channels}
    except (ValueError, TypeError) as error:
        raise BackboneError(f"The preprocessing in the metadata of {where} cannot be read: {error}") from error
    return fields


def build(
    fields: Mapping[str, Any] | None,
    override: Mapping[str, Any] | Preprocessing | TextPreprocessing | None,
    image_size: int | None,
) -> Preprocessing | TextPreprocessing | None:
    """Return the preprocessing, the user's wishes over the network's own.

    Args:
        fields: What the library or the file says; None when nothing is known.
        override: A whole `Preprocessing` or `TextPreprocessing`, or some of its fields; a crop_pct of None is the
            network's own.
        image_size: Side of the square that the network gets, in pixels. Images are then kept whole (crop_pct 1) unless
            `override` says otherwise: a border cut off suits the network's own size, not one that is asked for.

    Raises:
        ConfigurationError: Unknown fields, both a size and an image size, or too little to go by.
    """
    if fields is None and not override and image_size is None:
        return None
    from gradfeat.data import Preprocessing, TextPreprocessing

    if isinstance(override, TextPreprocessing) or "tokenizer" in {**(fields or {}), **_mapping(override)}:
        if image_size is not None:
            raise ConfigurationError("image_size is for images, and this backbone reads texts.")
        if isinstance(override, Preprocessing):
            raise ConfigurationError("This backbone reads texts: its preprocessing is a TextPreprocessing.")
        if isinstance(override, TextPreprocessing):
            return override
        return TextPreprocessing.from_dict({**(fields or {}), **_mapping(override)})
    if isinstance(override, Preprocessing):
        if image_size is not None:
            raise ConfigurationError("Give the size inside preprocessing or as image_size, not both.")
        return override
    wishes = dict(_mapping(override))
    if wishes.get("crop_pct", 1.0) is None:
        del wishes["crop_pct"]
    elif image_size is not None:
        wishes.setdefault("crop_pct", 1.0)
    merged = {**(fields or {}), **wishes}
    if image_size is not None:
        if "size" in _mapping(override):
            raise ConfigurationError("Give the size inside preprocessing or as image_size, not both.")
        if image_size < 1:
            raise ConfigurationError(f"Expected a positive image_size; got {image_size}.")
        merged["size"] = [image_size, image_size]
    known = [field.name for field in dataclasses.fields(Preprocessing)]
    refuse_unknown_fields(merged, known, "the preprocessing")
    for name in ("mean", "std"):
        if isinstance(merged.get(name), int | float):  # one number for every channel
            merged[name] = [merged[name]] * merged.get("channels", 3)
    missing = [name for name in _REQUIRED if name not in merged]
    if missing:
        raise ConfigurationError(
            f"The network's own preprocessing is not known, and {', '.join(missing)} is missing: give all of "
            f"{', '.join(_REQUIRED)}, or pass X as arrays in the network's own input layout."
        )
    if "channels" not in merged:
        merged["channels"] = len(merged["mean"])
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in merged.items()}
    return Preprocessing(**arguments)


def _mapping(override: Any) -> Mapping[str, Any]:
    """Return single fields that the user gave; none of a whole preprocessing."""
    return override if isinstance(override, Mapping) else {}
