"""One network of the zoo: how it is built, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gradfeat.linearization.capture import Features


@dataclass(frozen=True)
class Subject:
    """A network with random weights, and a batch for it.

    Attributes:
        network: In evaluation mode.
        example: Three samples, as the network takes them.
        features: What f(x) is, as for `gradfeat.linearize`.
    """

    network: nn.Module
    example: Any
    features: Features = None


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        library: "timm", "torchvision", "transformers" or "torch".
        family: The library's module, or the model's type.
        model: The model that stands for it.
        build: Makes it.
    """

    library: str
    family: str
    model: str
    build: Callable[[], Subject] = field(repr=False)

    @property
    def key(self) -> str:
        """The entry's name on the command line: library/family."""
        return f"{self.library}/{self.family}"
