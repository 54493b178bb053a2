"""Reading what a user gives an estimator (tables, labels, weights), and the errors that go with it."""

from __future__ import annotations

import numbers
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.exceptions
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, DataError, GradfeatError, did_you_mean
from gradfeat.estimators.fitted import Columns
from gradfeat.estimators.labels import as_labels, as_weights, refuse_missing
from gradfeat.estimators.parameters import is_number
from gradfeat.estimators.warn import warn_user

LEAST_SPREAD = 1e-14
"""Targets that are nearer to their mean than this, or further than its inverse, call for a warning."""


class NotFittedError(GradfeatError, sklearn.exceptions.NotFittedError):
    """The estimator has not been fitted yet."""


# ---- folds ----------------------------------------------------------------------------------------------------------


def folds_among(cv: Any, present: np.ndarray, n: int) -> Any:
    """Return `cv` for some of the samples: pairs of indices are of all n samples, and become those of `present`.

    Args:
        cv: A number of folds, a scikit-learn splitter, or pairs of indices.
        present: Indices of the samples that count, ascending.
        n: Number of samples.

    Raises:
        DataError: Pairs of other samples than there are, or without a sample that counts.
    """
    if isinstance(cv, numbers.Integral) or hasattr(cv, "split"):
        return cv
    position = np.full(n, -1)
    position[present] = np.arange(len(present))
    try:
        pairs = [(position[np.asarray(train)], position[np.asarray(validation)]) for train, validation in cv]
    except (IndexError, TypeError, ValueError) as error:
        raise DataError(f"cv must hold pairs of indices (fitted, held out) below {n}: {error}") from error
    pairs = [(train[train >= 0], validation[validation >= 0]) for train, validation in pairs]
    if not pairs or not all(len(train) and len(validation) for train, validation in pairs):
        raise DataError("cv holds no pairs of indices, or one with an empty part (samples of weight zero do not count)")
    return pairs


# ---- samples --------------------------------------------------------------------------------------------------------


def read_samples(estimator: BaseEstimator, X: Any, *, reset: bool) -> Any:
    """Check X; tables become float arrays, everything else is for `Inputs`.

    Raises:
        DataError: A table with NaN, of another number of features than in fit, or of values that are no numbers.
    """
    if isinstance(X, (list, tuple, np.ndarray, torch.Tensor)) and getattr(X, "ndim", True) and len(X) == 0:
        raise DataError("X has no samples: found 0 sample(s), and one at least is needed")
    if isinstance(X, (Inputs, torch.Tensor, torch.utils.data.Dataset, Image.Image)):
        return X
    if hasattr(X, "to_numpy") and np.ndim(X) == 1:  # a column of a table: texts, or paths
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and (X.ndim > 2 or _are_strings(X)):
        return X
    if isinstance(X, (list, tuple)) and (_are_strings(X) or all(isinstance(item, Image.Image) for item in X)):
        return X
    try:
        return validate_data(estimator, X, reset=reset, dtype=[np.float64, np.float32])
    except ValueError as error:
        raise DataError(str(error)) from error


def columns_of(estimator: BaseEstimator, X: Any) -> Columns:
    """Return the columns of what `read_samples` has returned: of a table, as scikit-learn has kept them."""
    if not isinstance(X, np.ndarray) or X.ndim != 2:
        return Columns()
    return Columns(estimator.n_features_in_, getattr(estimator, "feature_names_in_", None))


def _are_strings(X: Any) -> bool:
    """Whether X holds texts or paths; one is enough, so that `Inputs` can name the others."""
    if isinstance(X, np.ndarray) and (X.ndim != 1 or X.dtype.kind not in "UO"):
        return False
    return any(isinstance(item, (str, Path)) for item in X)


def shape_of(X: Any) -> tuple[int, ...] | None:
    """Return the shape of X, (n, ...), what a callable builds its network from; None for paths and texts."""
    shape = getattr(X, "shape", None)
    if shape is None and isinstance(X, torch.utils.data.Dataset):
        inputs = Inputs(X)
        shape = (len(inputs), *inputs.example(1).shape[1:])
    return tuple(shape) if shape is not None and len(shape) > 1 else None


def check_lengths(X: Any, targets: np.ndarray) -> None:
    """Refuse X and y of different lengths."""
    n = len(X)
    if n != len(targets):
        raise DataError(f"X has {n} samples and y has {len(targets)} labels")


# ---- labels and weights ---------------------------------------------------------------------------------------------


def labels_of(X: Any, y: Any, estimator: BaseEstimator) -> np.ndarray:
    """Return y, or the labels of a Dataset of pairs, as an array with one row for each sample."""
    if y is None and isinstance(X, (Inputs, torch.utils.data.Dataset)):
        y = (X if isinstance(X, Inputs) else Inputs(X)).labels()
    if y is None:
        raise DataError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None (only a "
            "Dataset of pairs brings its own)"
        )
    return as_labels(y)


def is_indicator(y: np.ndarray) -> bool:
    """Whether y is a matrix (n, c) with c > 1."""
    return y.ndim == 2 and y.shape[1] > 1


def indicator(y: np.ndarray) -> np.ndarray:
    """Check an indicator matrix: 0, 1, and NaN for a label that is to be ignored."""
    try:
        values = y.astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(
            "y is a matrix, so it is read as a multi-label indicator of 0 and 1, but holds other values: Unknown label "
            f"type {y.dtype}. For multi-class labels give a vector (n,)"
        ) from error
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
        weight: np.ndarray = _check_sample_weight(as_weights(sample_weight), np.empty((n, 1)), dtype=np.float64)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"sample_weight: {error}") from error
    if (weight < 0).any():
        raise DataError("sample_weight must not be negative")
    if not weight.any():
        raise DataError("sample_weight must not be zero for all samples")
    most = weight.max(initial=0.0)
    return weight / most if most > 0 else weight  # shares count alone; sums of huge weights would not be finite


def centred(y: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of targets (n, k) by the samples' weights, (k,), and the targets less it.

    The mean is a value of y itself where all are the same. Targets of weight zero do not count, in the range either.

    Raises:
        DataError: Targets further apart than double precision holds.
    """
    present = slice(None) if weight is None or not weight.any() else weight > 0
    some = y[present]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = some[0] + np.average(some - some[0], axis=0, weights=None if weight is None else weight[present])
        distances = y - mean
    if not np.isfinite(distances[present]).all():
        raise DataError("y has values further apart than double precision holds: divide y by a large number")
    return mean, distances


def as_targets(y: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Return targets as the solvers take them: numbers in single precision, or in double where the network is.

    Raises:
        DataError: Numbers that single precision does not hold.
    """
    targets = torch.as_tensor(y)
    if not targets.is_floating_point():
        return targets
    known = ~torch.isnan(targets)  # NaN is a label to ignore
    converted = targets.to(torch.float64 if dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(converted[known]).all()):
        raise DataError(
            f"y is up to {float(targets[known].abs().max()):.3g} from its mean, which single precision does not hold: "
            "divide y by a number of that size"
        )
    spread = float(targets[known].abs().max()) if bool(known.any()) else 0.0
    least, most = (LEAST_SPREAD, 1 / LEAST_SPREAD) if converted.dtype == torch.float32 else (1e-100, 1e100)
    if spread > most or 0 < spread < least:
        warn_user(
            f"y is {spread:.3g} from its mean at most: in this precision its squares are not told from zero, or too "
            "large, and parts of a model may be lost; divide y by a number of that size"
        )
    return converted


def class_weights(class_weight: Any, y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return sample weights times those of the classes; "balanced" counts samples with a weight above zero."""
    weight = np.ones(len(y)) if weight is None else weight.copy()
    present = weight > 0
    if isinstance(class_weight, dict):
        known = set(y.tolist())
        unknown = [label for label in class_weight if label not in known]
        if unknown:
            raise ConfigurationError(f"class_weight names classes that y has not: {', '.join(map(str, unknown[:5]))}")
        if not all(is_number(value) and value >= 0 for value in class_weight.values()):
            raise ConfigurationError(f"class_weight must hold numbers from 0, not {class_weight!r}")
    elif class_weight != "balanced":
        meant = did_you_mean(str(class_weight), ["balanced"])
        raise ConfigurationError(f"class_weight must be None, 'balanced' or a dict, not {class_weight!r}.{meant}")
    weight[present] *= compute_sample_weight(class_weight, y[present])
    if not weight.any():
        raise DataError("all samples have weight zero, by class_weight or sample_weight")
    return weight


def read_classes(y: np.ndarray) -> np.ndarray:
    """Check labels of a classification; return them as a vector (n,)."""
    y = np.asarray(y)
    if y.dtype.kind == "S" or (y.dtype.kind == "O" and any(isinstance(label, bytes) for label in y.ravel())):
        raise DataError("y holds bytes: decode them into texts, np.char.decode(y), or give numbers")
    if y.dtype.kind == "O" and y.size and all(isinstance(label, numbers.Integral) for label in y.ravel()):
        raise DataError("y holds whole numbers beyond 64 bits: make them texts, [str(label) for label in y]")
    try:
        y = column_or_1d(y, warn=True)
        refuse_missing(y)
        np.unique(y)  # labels are put in order
        check_classification_targets(y)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error
    except TypeError as error:
        raise DataError(f"y mixes labels of different kinds, which cannot be put in order: {error}") from error
    return y


def read_truth(truth: np.ndarray, task: str, classes: np.ndarray | None) -> np.ndarray:
    """Return test labels as `metrics_of` takes them.

    Args:
        truth: Labels as the user gave them.
        task: The loss's task.
        classes: Class labels of the training data; for multi-label targets the columns.

    Returns:
        Class indices (n,); an indicator (n, c) with NaN where an entry is ignored; or targets (n, k).

    Raises:
        DataError: Labels of another kind, or classes that the training data has not.
    """
    if task == "multiclass":
        if truth.ndim != 1:
            raise DataError(f"the test labels must have the shape (n,), as the training labels, not {truth.shape}")
        known = {label: index for index, label in enumerate(np.asarray(classes).tolist())}
        labels = truth.tolist()
        if any(label not in known for label in labels):  # 1 and "1": files of one data set may differ in their quotes
            by_name = {str(label): index for label, index in known.items()}
            if len(by_name) == len(known):
                known, labels = by_name, list(map(str, labels))
        unknown = [str(label) for label in dict.fromkeys(labels) if label not in known]
        if unknown:
            raise DataError(
                f"the test labels have classes that the training data has not: {', '.join(unknown[:5])}"
                f"{' ...' if len(unknown) > 5 else ''}; known are {', '.join(map(str, list(known)[:10]))}"
                f"{' ...' if len(known) > 10 else ''}"
            )
        return np.array([known[label] for label in labels], dtype=np.int64)
    try:
        values = truth.reshape(len(truth), -1).astype(float)
    except ValueError as error:
        raise DataError(f"the test labels must be numbers, not {truth.dtype}") from error
    if task == "regression" and not np.isfinite(values).all():
        raise DataError("the test labels contain NaN or infinite values")
    if task == "multilabel" and values.shape[1] != len(np.asarray(classes)):
        raise DataError(
            f"the test labels have {values.shape[1]} columns, the training labels {len(np.asarray(classes))}"
        )
    return values
