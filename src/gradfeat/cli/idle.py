"""Options that would do nothing: refused, so that nobody believes that they did."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.given import Given
from gradfeat.data import Dataset, TextPreprocessing
from gradfeat.data.load import is_sound
from gradfeat.errors import ConfigurationError
from gradfeat.solvers.schedule import SOLVERS

IMAGES, TEXTS, RECORDINGS, ARRAYS = "images", "texts", "recordings", "arrays"

OF_IMAGES = ("image_size", "mean", "std", "resize", "crop_pct", "augment", "crops")
"""Options of images alone; arrays may stand for images."""

_LINEAR = ("gradient", "full")


def kind_of(dataset: Dataset, path: Path, data_format: str) -> str:
    """Return what the samples of a data set are."""
    if dataset.texts:
        return TEXTS
    if not isinstance(dataset.X, np.ndarray):
        return IMAGES
    if data_format == "wav" or (data_format == "auto" and path.is_dir() and dataset.X.ndim == 2 and is_sound(path)):
        return RECORDINGS
    return ARRAYS


def kind_for(preprocessing: Any, recordings: bool) -> str:
    """Return what a fitted model takes, by its preprocessing."""
    if isinstance(preprocessing, TextPreprocessing):
        return TEXTS
    return RECORDINGS if recordings else ARRAYS if preprocessing is None else IMAGES


def idle_in_modes(given: Given, modes: Sequence[str]) -> dict[str, str]:
    """Return the options that no mode of a command uses, with the reason for each."""
    found: dict[str, str] = {}
    solver = given.values.get("solver", "auto")
    linear = [mode for mode in modes if mode in _LINEAR]
    of = f"{'--mode' if len(modes) == 1 else '--modes'} {','.join(modes)}"

    def refuse(name: str, reason: str) -> None:
        if name in given:
            found[name] = reason

    if not linear:
        refuse("solver", f"{of} has no solver to choose: it is of gradient and full")
        refuse("metric", f"{of} has no penalty of w₂, which it is the metric of: it is of gradient and full")
        refuse("parametrization", f"{of} has no w₂ that it could be of: it is of gradient and full")
    if "full" not in modes:
        refuse("rounds", f"{of} has no rounds: they are of full")
    if set(modes) == {"activation"}:
        refuse("theta2", "--mode activation has no θ₂: it is the probe on the activations")
    if "finetune" not in modes and not (linear and solver in SOLVERS):
        refuse("epochs", f"{of} is solved without epochs: they are of finetune, and of --solver adam or sgd")
    if "," in str(given.values.get("penalty", "")) and not (linear and solver not in SOLVERS):
        why = f"--solver {solver} has no penalty of w₂" if linear else f"{of} has no w₂"
        if not str(given.values["penalty"]).rpartition(",")[2].strip().strip("0."):
            why = ""  # a penalty of zero is none
        if why:
            refuse("penalty", f"{why}: give one number")
    if "pictures" in given and not (linear and solver not in SOLVERS and "penalty" not in given):
        refuse("pictures", "nothing is chosen that could be drawn: penalties and rounds are of gradient and full")
    return found


def idle_for_data(given: Given, kind: str, task: str | None = None, table: bool = True) -> dict[str, str]:
    """Return the options that do nothing for some data, with the reason for each.

    Args:
        given: The options.
        kind: Of the samples.
        task: Of the labels, where there are some.
        table: Whether the samples may come from a table.
    """
    found: dict[str, str] = {}
    if kind in (TEXTS, RECORDINGS):
        found |= dict.fromkeys(OF_IMAGES, f"it is for images, and the data are {kind}")
    if kind != TEXTS:
        found["max_length"] = f"it is for texts, and the data are {kind}"
    if not table:
        found |= dict.fromkeys(("text_column", "encoding"), "it is for tables, and the data are none")
    if kind != RECORDINGS:
        found["seconds"] = f"it is for recordings (WAV files), and the data are {kind}"
    if task in ("regression", "multilabel"):
        what = "regression has no classes" if task == "regression" else "samples have several labels"
        found["class_weight"] = f"it is for one class a sample, and here {what}"
    return {name: reason for name, reason in found.items() if name in given}


def refuse(given: Given, idle: dict[str, str]) -> None:
    """Refuse options that would do nothing.

    Raises:
        ConfigurationError: There are some; all are named.
    """
    if idle:
        raise ConfigurationError(
            "; ".join(f"{given.flags[name]} would do nothing: {reason}" for name, reason in idle.items())
        )


def used(given: Given, modes: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the options among some names as they are written, without those that the modes do not use."""
    idle = idle_in_modes(given, modes)
    return given.options([name for name in names if name not in idle])
