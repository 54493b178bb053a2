"""Reading labels and weights, and the errors that go with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn.exceptions
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight

from gradfeat.data import Inputs
from gradfeat.errors import DataError, GradfeatError


class NotFittedError(GradfeatError, sklearn.exceptions.NotFittedError):
    """The estimator has not been fitted yet."""


def labels_of(X: Any, y: Any, estimator: BaseEstimator) -> Any:
    """Return y, or the labels of a Dataset of pairs."""
    if y is not None:
        return y
    found = (
        Inputs(X).labels() if isinstance(X, torch.utils.data.Dataset) else X.labels() if isinstance(X, Inputs) else None
    )
    if found is None:
        raise DataError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None (only a "
            "Dataset of pairs brings its own)"
        )
    return found


def check_lengths(X: Any, targets: np.ndarray) -> None:
    """Refuse X and y of different lengths."""
    n = len(X)
    if n != len(targets):
        raise DataError(f"X has {n} samples and y has {len(targets)} labels")


def is_indicator(y: np.ndarray) -> bool:
    """Whether y is a matrix (n, c) with c > 1."""
    return y.ndim == 2 and y.shape[1] > 1


def indicator(y: np.ndarray) -> np.ndarray:
    """Check an indicator matrix: 0, 1, and NaN for a label that is to be ignored."""
    values = y.astype(float)
    if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
        raise DataError(
            "y is a matrix, so it is read as a multi-label indicator, but it has values besides 0 and 1: Unknown "
            "label type. For multi-class labels give a vector (n,)"
        )
    return values


def read_weight(sample_weight: Any, n: int) -> np.ndarray | None:
    """Check sample weights: finite, none below zero, one for each sample."""
    if sample_weight is None:
        return None
    try:
        weight = _check_sample_weight(sample_weight, np.empty((n, 1)), dtype=np.float64)
    except ValueError as error:
        raise DataError(f"sample_weight: {error}") from error
    if (weight < 0).any():
        raise DataError("sample_weight must not be negative")
    return weight


def refuse_missing(y: np.ndarray) -> None:
    """Refuse labels that are NaN, infinite or None; the message says how many, and the first."""
    if y.dtype.kind == "f":
        missing = ~np.isfinite(y)
    elif y.dtype.kind == "O":
        missing = np.array([label is None or label != label for label in y], dtype=bool)
    else:
        return
    if missing.any():
        count, first = int(missing.sum()), int(missing.argmax())
        raise DataError(f"y contains NaN, infinite or missing labels: {count} of {len(y)}, first in sample {first}")
