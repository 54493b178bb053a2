"""Backbones by name: "library/model?option=value"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from gradfeat.errors import ConfigurationError, did_you_mean

Option = bool | int | float | str | None

LIBRARIES = ("timm", "torchvision", "hf", "sentence-transformers", "gradfeat")
_WORDS: dict[str, Option] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Name:
    """A parsed name.

    Args:
        library: One of `LIBRARIES`.
        model: The model's name in that library, a folder, or the file of a gradfeat encoder ("gradfeat/resnet20" is an
            architecture, unless there is a file of that name).
        options: Arguments for the library's constructor.
    """

    library: str
    model: str
    options: dict[str, Option] = field(default_factory=dict)

    @property
    def architecture(self) -> bool:
        """Whether it is a network of gradfeat that takes weights from a file, rather than an encoder's own file."""
        return self.library == "gradfeat" and _is_architecture(self.model)


def parse_name(name: str) -> Name:
    """Split "library/model?option=value&..." into its parts; a path to an existing file is a gradfeat encoder.

    Raises:
        ConfigurationError: Unknown library, no model, or options that cannot be read.

    Example:
        >>> parse_name("timm/mobilenetv2_100?pad_type=same&in_chans=1").options
        {'pad_type': 'same', 'in_chans': 1}
    """
    if _is_file(name) or name.startswith(("/", "./", "../", "~")):
        return Name("gradfeat", name)
    library, slash, rest = name.partition("/")
    if not slash:
        raise ConfigurationError(
            f"No file {name!r}, and a backbone's name starts with its library: {_known()}, e.g. "
            f"timm/{name if not name.endswith('.safetensors') else 'resnet18'}."
        )
    if library not in LIBRARIES:
        raise ConfigurationError(
            f"Unknown library {library!r} in the backbone's name {name!r}. Known: {_known()}."
            + did_you_mean(library, LIBRARIES)
        )
    if library == "gradfeat" and not _is_architecture(rest.partition("?")[0]):
        return Name(library, rest)
    model, _, query = rest.partition("?")
    if not model:
        raise ConfigurationError(f"The backbone's name {name!r} has no model after {library}/.")
    return Name(library, model, _parse_options(query, name))


def _is_architecture(model: str) -> bool:
    return re.fullmatch(r"resnet\d+", model) is not None and not _is_file(model)


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, a zero byte, or the home of nobody
        return False


def _known() -> str:
    takes = {"gradfeat": "file or resnet20", "hf": "folder or id", "sentence-transformers": "folder or id"}
    return ", ".join(f"{library}/<{takes.get(library, 'model')}>" for library in LIBRARIES)


def _parse_options(query: str, name: str) -> dict[str, Option]:
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError as error:
        raise ConfigurationError(
            f"Cannot read the options of {name!r}: expected ?option=value&option=value."
        ) from error
    options = {option: _parse_value(text) for option, text in pairs}
    if len(options) < len(pairs):
        raise ConfigurationError(f"An option is given twice in {name!r}.")
    return options


def _parse_value(text: str) -> Option:
    """Return None, a bool, an int, a float or the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text
