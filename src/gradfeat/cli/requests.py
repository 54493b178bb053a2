"""What each command is asked for: its options and arguments, by the names that they have in the table, as one object.

A field that is such an object itself is made in the same way; `given` and `parameters` are made of all the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradfeat.cli.given import Given
from gradfeat.cli.option import Option


@dataclass(frozen=True)
class Parameters:
    """The estimator's parameters, as they were written.

    Attributes:
        written: Options that are parameters, each with its value.
    """

    written: Sequence[tuple[Option, Any]]

    def converted(self) -> dict[str, Any]:
        """Return them as the estimator takes them; one that is None is left to the estimator's default.

        Raises:
            ConfigurationError: One does not say what it has to.
        """
        parameters: dict[str, Any] = {}
        for option, value in self.written:
            if option.parameter is None or value is None:
                continue
            name, _, entry = option.parameter.partition(".")
            if entry:
                parameters.setdefault(name, {})[entry] = option.converted(value)
            else:
                parameters[name] = option.converted(value)
        return parameters


@dataclass(frozen=True)
class Source:
    """How data are read; what a command has no option for is None."""

    data_format: str
    skip_unreadable: bool
    image_column: str | None
    image_root: Path | None
    text_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    encoding: str | None = None
    seconds: float | None = None

    @property
    def on_error(self) -> str:
        """What is done with images that cannot be read."""
        return "skip" if self.skip_unreadable else "raise"


@dataclass(frozen=True)
class Settings:
    """What `fit` and `compare` share: the backbone, and the estimator's parameters."""

    backbone: str
    weights: str | None
    theta2: list[str] | None
    checkpoint: Path | None
    json: bool
    parameters: Parameters


@dataclass(frozen=True)
class SavedModel:
    """What `predict` and `evaluate` share: a file, and what it is to run on."""

    model: Path
    backbone: str | None
    weights: str | None
    device: str
    allow_download: bool


@dataclass(frozen=True)
class Demo:
    """Of `gradfeat demo`."""

    out: Path
    seed: int
    json: bool


@dataclass(frozen=True)
class Fit:
    """Of `gradfeat fit`."""

    data: Path
    split: str
    mode: str
    out: Path
    pictures: Path | None
    drop_suspects: bool
    reweight: bool
    source: Source
    settings: Settings
    given: Given


@dataclass(frozen=True)
class Compare:
    """Of `gradfeat compare`."""

    data: Path
    split: str
    test_data: Path | None
    test_split: str
    modes: str
    crops: int
    out: Path | None
    source: Source
    settings: Settings
    given: Given


@dataclass(frozen=True)
class Predict:
    """Of `gradfeat predict`."""

    data: Path
    split: str
    crops: int
    out: Path | None
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Evaluate:
    """Of `gradfeat evaluate`."""

    data: Path
    split: str
    crops: int
    picture: Path | None
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Explain:
    """Of `gradfeat explain`."""

    queries: Path
    data: Path | None
    split: str
    most: int
    html: Path | None
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Audit:
    """Of `gradfeat audit`."""

    data: Path
    split: str
    first: int
    out: Path | None
    html: Path | None
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Suggest:
    """Of `gradfeat suggest`."""

    pool: Path
    data: Path | None
    split: str
    most: int
    out: Path | None
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Forget:
    """Of `gradfeat forget`."""

    data: Path
    split: str
    remove: Path
    out: Path
    json: bool
    source: Source
    saved: SavedModel
    given: Given


@dataclass(frozen=True)
class Inspect:
    """Of `gradfeat inspect`."""

    backbone: str
    weights: str | None
    theta2: list[str] | None
    image_size: int | None
    most: int
    json: bool
    given: Given


@dataclass(frozen=True)
class TaskOptions:
    """The keywords of a pre-training task; None is none."""

    beta: float | None
    latent: int | None
    objective: str | None
    permutations: int | None
    rebalance: float | None
    drop_colours: bool | None


@dataclass(frozen=True)
class Pretrain:
    """Of `gradfeat pretrain`."""

    task: str
    data: Path
    split: str
    out: Path
    network: str | None
    image_size: int | None
    epochs: int
    batch_size: int
    learning_rate: float | None
    resume: bool
    checkpoint_every: int
    half: bool
    device: str
    seed: int
    json: bool
    source: Source
    options: TaskOptions


@dataclass(frozen=True)
class Reproduce:
    """Of `gradfeat reproduce`."""

    name: str
    scale: str
    data: Path | None
    out: Path | None
    encoder: Path | None
    protocol: str | None
    labels: int | None
    seeds: int
    only: list[str] | None
    finished: bool
    device: str
    json: bool
