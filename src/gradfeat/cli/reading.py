"""Labelled data, as every command that takes some reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradfeat.cli.requests import Source
from gradfeat.data import Dataset, load_dataset
from gradfeat.data.dataset import WHOLE
from gradfeat.errors import ConfigurationError, DataError


def read(path: Path, split: str, source: Source, like: Dataset | None = None) -> Dataset:
    """Read labelled data; the labels of a table as those of `like`, which the models are or were fitted to."""
    return load_dataset(
        path,
        split=split,
        format=source.data_format,
        on_error=source.on_error,
        text_column=source.text_column,
        label_column=source.label_column,
        encoding=source.encoding,
        seconds=source.seconds,
        image_column=source.image_column,
        image_root=source.image_root,
        label_separator=source.label_separator,
        like=like,
    )


def check_part(data: Path, split: str, usual: str, dataset: Dataset, option: str = "--split") -> None:
    """Refuse another part than the usual one of data that have none.

    Raises:
        ConfigurationError: The data have no parts.
    """
    if dataset.split == WHOLE and split != usual:
        raise ConfigurationError(f"{data} has no parts, so there is no {split!r} in it: leave out {option}")


def labels(dataset: Dataset) -> np.ndarray:
    """Return labels, with NaN where a multi-label entry is to be ignored (VOC's `difficult`)."""
    if dataset.y is None:
        raise DataError(f"{dataset.name} has no labels")
    if dataset.task == "multilabel" and dataset.ignore is not None:
        return np.where(dataset.ignore, np.nan, dataset.y)
    return dataset.y


def class_names(dataset: Dataset, classes: np.ndarray | None) -> list[str] | None:
    """Return the name of each of an estimator's classes; whole numbers count the names that a data set gives.

    Args:
        dataset: What the estimator was fitted to.
        classes: The estimator's `classes_`; None for regression.
    """
    if classes is None:
        return None
    if dataset.task == "multilabel":
        return list(dataset.classes)
    numbered = classes.dtype.kind in "iu" and dataset.classes != [str(value) for value in classes]
    return [dataset.classes[value] if numbered else str(value) for value in classes.tolist()]
