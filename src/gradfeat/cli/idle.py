"""Options that would do nothing: refused, so that nobody believes that they did."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.cli.given import Given
from gradfeat.cli.rules import ARRAYS, CLASSES, IMAGES, RECORDINGS, TABLES, TEXTS, Plan
from gradfeat.data import Dataset, TextPreprocessing
from gradfeat.data.load import is_sound
from gradfeat.errors import ConfigurationError
from gradfeat.solvers.schedule import SOLVERS


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
    values = given.values
    solver, rounds = values.get("solver", "auto"), values.get("rounds", "")
    plan = Plan(
        modes=tuple(modes),
        solver=solver,
        scheduled=solver in SOLVERS,
        penalty=values.get("penalty", ""),
        rounds=rounds,
        effort=values.get("effort", "auto"),
        named=rounds == "1"
        or values.get("theta2", ["auto"]) != ["auto"]
        or any(name in values for name in ("penalty", "solver", "metric", "parametrization")),
    )
    rules = {name: option.idle for name, option in given.options.items() if option.idle is not None}
    return {name: reason for name, rule in rules.items() if (reason := rule(plan)) is not None}


def idle_for_data(given: Given, kind: str, task: str | None = None, table: bool = True) -> dict[str, str]:
    """Return the options that do nothing for some data, with the reason for each.

    Args:
        given: The options.
        kind: Of the samples.
        task: Of the labels, where there are some.
        table: Whether the samples may come from a table.
    """
    reasons: dict[str, str] = {}
    if kind in (TEXTS, RECORDINGS):
        reasons[IMAGES] = f"it is for images, and the data are {kind}"
    if kind != TEXTS:
        reasons[TEXTS] = f"it is for texts, and the data are {kind}"
    if not table:
        reasons[TABLES] = "it is for tables, and the data are none"
    if kind != RECORDINGS:
        reasons[RECORDINGS] = f"it is for recordings (WAV files), and the data are {kind}"
    if task in ("regression", "multilabel"):
        what = "regression has no classes" if task == "regression" else "samples have several labels"
        reasons[CLASSES] = f"it is for one class a sample, and here {what}"
    return {name: reasons[option.only_for] for name, option in given.options.items() if option.only_for in reasons}


def refuse(given: Given, idle: dict[str, str]) -> None:
    """Refuse options that would do nothing.

    Raises:
        ConfigurationError: There are some; all are named.
    """
    if idle:
        raise ConfigurationError(
            "; ".join(f"{given.options[name].flag} would do nothing: {reason}" for name, reason in idle.items())
        )


def used(given: Given, modes: Sequence[str], names: Collection[str]) -> list[str]:
    """Return the options among some names as they are written, without those that the modes do not use."""
    idle = idle_in_modes(given, modes)
    return given.written([name for name in names if name not in idle])
