"""Labelled data in memory, or as paths to images: what every loader of this folder returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.errors import ConfigurationError, DataError, did_you_mean
from gradfeat.files.terminal import printable

TASKS = ("multiclass", "multilabel", "regression")
WHOLE = "all"  # the `split` of data that has no parts


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with their labels.

    Args:
        X: A list of image paths or of texts, uint8 images (n, h, w, c), or a float array (n, ...) in the network's own
            layout.
        y: Labels (n,); for multi-label a 0/1 indicator (n, c); None for samples without labels.
        classes: Names of the classes, in the order of the columns of an indicator; empty for regression.
        task: "multiclass", "multilabel" or "regression".
        name: What it is called in tables, e.g. the folder's name.
        split: The part of the data, e.g. "train"; "all" where the data has no parts.
        ignore: For multi-label: (n, c) booleans, True where an entry counts neither as present nor as absent (VOC's
            `difficult`).
        note: What a reader of the data should know, e.g. that there are fewer images than officially.

    Raises:
        DataError: X, y and ignore do not fit each other.

    Example:
        >>> data = Dataset(np.zeros((3, 2)), np.array([0, 1, 0]), ["cat", "dog"], "multiclass", "pets", "train")
        >>> print(data.subset([0, 2]).describe())
        pets (train): 2 samples of shape (2,), 2 classes
    """

    X: list[Path] | list[str] | np.ndarray
    y: np.ndarray | None
    classes: list[str]
    task: str
    name: str
    split: str
    ignore: np.ndarray | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigurationError(
                f"task must be one of {', '.join(TASKS)}, not {self.task!r}.{did_you_mean(self.task, TASKS)}"
            )
        if self.y is not None and len(self.y) != len(self.X):
            raise DataError(f"{self.name}: X has {len(self.X)} samples and y has {len(self.y)} labels")
        if self.task == "multilabel" and self.y is not None and self.y.shape[1:] != (len(self.classes),):
            raise DataError(
                f"{self.name}: a multi-label y must be an indicator (n, {len(self.classes)}), one column for each "
                f"class; got shape {self.y.shape}"
            )
        if self.ignore is not None and (self.y is None or self.ignore.shape != self.y.shape):
            raise DataError(f"{self.name}: ignore must have the shape of a multi-label y; got {self.ignore.shape}")

    def __len__(self) -> int:
        return len(self.X)

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return isinstance(self.X, list) and bool(self.X) and isinstance(self.X[0], str)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return the samples at `indices` (whole numbers, or one boolean for each sample), in that order."""
        picked = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else int)]
        return dataclasses.replace(
            self,
            X=self.X[picked] if isinstance(self.X, np.ndarray) else [self.X[i] for i in picked],
            y=None if self.y is None else self.y[picked],
            ignore=None if self.ignore is None else self.ignore[picked],
        )

    def describe(self) -> str:
        """Return one line: name, split, number and kind of the samples and of the classes, and the note."""
        if isinstance(self.X, np.ndarray):
            kind = "images" if self.X.dtype == np.uint8 and self.X.ndim == 4 else "samples"
            samples = f"{len(self):,} {kind} of shape {self.X.shape[1:]}"
        else:
            samples = f"{len(self):,} {'texts' if self.texts else 'images'}"
        about = f"{self.name} ({self.split}): {samples}, {self._targets()}" + (f" ({self.note})" if self.note else "")
        return printable(about)

    def _targets(self) -> str:
        if self.y is None:
            return "no labels"
        if self.task == "regression":
            outputs: Any = 1 if self.y.ndim == 1 else self.y.shape[1]
            return f"regression with {outputs} output{'s' if outputs != 1 else ''}"
        return f"{len(self.classes)} {'labels (multi-label)' if self.task == 'multilabel' else 'classes'}"
