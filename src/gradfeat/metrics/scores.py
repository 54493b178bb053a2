"""Metrics: accuracy, log loss, average precision in its three readings, calibration error, R², RMSE.

Average precision of a class ranks samples by score, highest first; at each rank, precision is the share of positives
so far, and recall the share of all positives found so far. Three readings of that curve are in use:

- "area": the area under its monotone envelope, the highest precision at this recall or more (VOC from 2010 on);
- "11point": the mean of that envelope at the recalls 0, 0.1, ... 1 (VOC 2007);
- "step": the sum of precision times gain in recall, without an envelope (scikit-learn's `average_precision_score`).

Samples with the same score enter together, as one threshold, so that the order of the data decides nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning

AP_METHODS = ("area", "11point", "step")


def accuracy(y_true: Any, y_pred: Any) -> float:
    """Return the share of samples whose class is right.

    Args:
        y_true: Classes, (n,).
        y_pred: Predicted classes, (n,).

    Raises:
        DataError: Not two vectors of one length, or names beside numbers.

    Example:
        >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    true, predicted = np.asarray(y_true), np.asarray(y_pred)
    if true.shape != predicted.shape or true.ndim != 1 or not len(true):
        raise DataError(f"expected two vectors of the same length, got shapes {true.shape} and {predicted.shape}")
    text = [array.dtype.kind in "US" for array in (true, predicted)]
    if text[0] != text[1] and "O" not in (true.dtype.kind, predicted.dtype.kind):
        raise DataError(f"expected classes of one kind, names or numbers; got {true.dtype} and {predicted.dtype}")
    return float((true == predicted).mean())


def log_loss(y_true: Any, probability: Any) -> float:
    """Return the mean of ``-log p``; probabilities are kept away from 0 and 1 by float64's ε.

    Args:
        y_true: Class indices, (n,), for one class a sample; or a 0/1 matrix (n, c) for independent labels, NaN where
            one is ignored.
        probability: (n, c); for one class a sample, each row sums to 1.

    Raises:
        DataError: Shapes that do not fit, labels out of range, numbers that are no probabilities, or no label that
            counts.

    Example:
        >>> round(log_loss([0, 1], [[0.5, 0.5], [0.5, 0.5]]), 4)
        0.6931
    """
    true, p = np.asarray(y_true), _probabilities(probability)
    if true.shape[:1] != p.shape[:1] or not len(p) or true.ndim not in (1, 2):
        raise DataError(f"expected labels and probabilities of the same samples, got shapes {true.shape} and {p.shape}")
    eps = np.finfo(np.float64).eps
    if true.ndim == 1:
        _check_sums(p)
        return float(-np.log(np.clip(p, eps, 1 - eps)[np.arange(len(p)), _class_indices(true, p.shape[1])]).mean())
    p, labels = np.clip(p, eps, 1 - eps), _zero_one(true, p.shape)
    known = ~np.isnan(labels)
    if not known.any():
        raise DataError("no label counts: all are NaN")
    losses = -np.where(labels == 1, np.log(p), np.log1p(-p))
    return float(losses[known].mean())


def average_precision(scores: Any, labels: Any, method: str = "area") -> float:
    """Return the average precision of one class; NaN if no sample has it.

    Args:
        scores: The higher, the surer, (n,).
        labels: 0 or 1, (n,).
        method: "area", "11point" or "step"; see the module.

    Raises:
        DataError: Shapes that do not fit, scores that are not finite, or labels besides 0 and 1.
        ConfigurationError: Another method.

    Example:
        >>> average_precision([0.9, 0.8, 0.7], [1, 0, 1])  # precision 1 at recall 1/2, 2/3 at recall 1
        0.8333333333333333
    """
    if method not in AP_METHODS:
        raise ConfigurationError(f"method must be one of {', '.join(AP_METHODS)}, not {method!r}")
    s = _finite(scores, 1)
    y = _zero_one(np.asarray(labels), s.shape)
    if np.isnan(y).any():
        raise DataError("labels must be 0 or 1; leave out samples without a label")
    if not y.sum():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)  # the last sample of each tied group
    hits = np.cumsum(y[order])[ends]
    precision, recall = hits / (ends + 1), hits / y.sum()
    if method == "step":
        return float((precision * np.diff(recall, prepend=0.0)).sum())
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "area":
        return float((envelope * np.diff(recall, prepend=0.0)).sum())
    reached = [envelope[recall >= point - 1e-12] for point in np.linspace(0, 1, 11)]
    return float(np.mean([values[0] if len(values) else 0.0 for values in reached]))


def average_precisions(scores: Any, labels: Any, *, ignore: Any = None, method: str = "area") -> np.ndarray:
    """Return the average precision of each class, (c,); NaN for a class that no sample has.

    Args:
        scores: (n, c).
        labels: 0 or 1, (n, c); any value where it is ignored.
        ignore: True where a label does not count (VOC's `difficult`), (n, c).
        method: "area", "11point" or "step".

    Raises:
        DataError: As for `average_precision`, or an `ignore` that is no (n, c) of booleans.
        ConfigurationError: Another method.
    """
    s, y = _finite(scores, 2), np.asarray(labels)
    if s.shape != y.shape:
        raise DataError(f"expected scores and labels of one shape (n, c), got {s.shape} and {y.shape}")
    ignored = np.zeros(s.shape, dtype=bool) if ignore is None else np.asarray(ignore)
    if ignored.shape != s.shape or ignored.dtype != bool:
        raise DataError(f"ignore must be booleans of the shape {s.shape}; got {ignored.dtype} of {ignored.shape}")
    counts = ~ignored
    columns = zip(s.T, y.T, counts.T, strict=True)
    return np.array([average_precision(a[c], b[c], method) if c.any() else np.nan for a, b, c in columns])


def mean_average_precision(scores: Any, labels: Any, *, ignore: Any = None, method: str = "area") -> float:
    """Return the mean of the classes' average precisions; classes that no sample has are left out, with a warning.

    Args:
        scores: (n, c).
        labels: 0 or 1, (n, c).
        ignore: True where a label does not count, (n, c).
        method: "area", "11point" or "step".

    Raises:
        DataError: As for `average_precisions`, or no class has a positive sample.
        ConfigurationError: Another method.

    Example:
        >>> mean_average_precision([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]], [[1, 0], [0, 0], [1, 1]])
        0.9166666666666666
    """
    values = average_precisions(scores, labels, ignore=ignore, method=method)
    missing = np.flatnonzero(np.isnan(values))
    if len(missing) == len(values):
        raise DataError("no class has a positive sample: mean average precision is not defined")
    if len(missing):
        names = ", ".join(map(str, missing[:10]))
        warnings.warn(f"no positive sample of class {names}: left out of the mean", GradfeatWarning, stacklevel=2)
    return float(np.nanmean(values))


def expected_calibration_error(y_true: Any, probability: Any, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy over equal bins of confidence (Guo et al., 2017).

    Args:
        y_true: Class indices, (n,).
        probability: (n, c).
        bins: Number of bins, from 1; each holds its lower edge, and the last one 1 too.

    Raises:
        DataError: Shapes that do not fit, labels out of range, or numbers that are no probabilities.
        ConfigurationError: No bins.

    Example:
        >>> expected_calibration_error([0, 0], [[1.0, 0.0], [1.0, 0.0]])
        0.0
    """
    true, p = np.asarray(y_true), _probabilities(probability)
    if true.shape != (len(p),) or not p.size:
        raise DataError(f"expected class indices (n,) and probabilities (n, c), got {true.shape} and {p.shape}")
    if bins < 1:
        raise ConfigurationError(f"bins must be a whole number from 1, not {bins!r}")
    _check_sums(p)
    confidence, right = p.max(1), p.argmax(1) == _class_indices(true, p.shape[1])
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    total = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, right, bins) - np.bincount(which, confidence, bins))
    return float(gap[total > 0].sum() / len(p))


def r2(y_true: Any, y_pred: Any) -> float:
    """Return R², the mean over outputs; an output that never varies counts 1 if it is met exactly, else 0.

    Args:
        y_true: Targets, (n,) or (n, k).
        y_pred: Predictions, of the same shape.

    Raises:
        DataError: Other shapes, or values that are not finite.

    Example:
        >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 2.0])
        0.5
    """
    true, predicted = _pair(y_true, y_pred)
    residual = ((true - predicted) ** 2).sum(0)
    spread = ((true - true.mean(0)) ** 2).sum(0)
    flat = (true == true[0]).all(0)  # not spread == 0: a constant's mean is rounded
    values = np.where(flat, (residual == 0).astype(float), 1 - residual / np.where(flat, 1, spread))
    return float(values.mean())


def rmse(y_true: Any, y_pred: Any) -> float:
    """Return the root of the mean squared error, over samples and outputs.

    Args:
        y_true: Targets, (n,) or (n, k).
        y_pred: Predictions, of the same shape.

    Raises:
        DataError: Other shapes, or values that are not finite.

    Example:
        >>> rmse([0.0, 0.0], [3.0, 3.0])
        3.0
    """
    true, predicted = _pair(y_true, y_pred)
    return float(np.sqrt(((true - predicted) ** 2).mean()))


def _float(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be numbers: {error}") from error


def _finite(values: Any, axes: int, what: str = "scores") -> np.ndarray:
    array = _float(values, what)
    if array.ndim != axes:
        raise DataError(f"expected {what} with {axes} axes, got the shape {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{what} contain NaN or infinite values")
    return array


def _probabilities(values: Any) -> np.ndarray:
    p = _finite(values, 2, "probabilities")
    if p.size and (p.min() < -1e-6 or p.max() > 1 + 1e-6):  # room for rounding
        raise DataError(f"probabilities must lie between 0 and 1, found {p.min():.4g} to {p.max():.4g}")
    return p


def _check_sums(p: np.ndarray) -> None:
    off = np.abs(p.sum(1) - 1)
    if off.max() > 1e-2:  # room for half precision
        worst = int(off.argmax())
        raise DataError(
            f"the probabilities of a sample must sum to 1; those of sample {worst} sum to {p[worst].sum():.4g}. Scores "
            "need a softmax first; independent labels go with a 0/1 matrix (n, c)"
        )


def _class_indices(labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.dtype.kind not in "iub":
        raise DataError(f"expected class indices, whole numbers from 0 to {classes - 1}, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"class indices must lie between 0 and {classes - 1}, found {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def _zero_one(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = _float(labels, "labels")
    if values.shape != shape:
        raise DataError(f"expected labels of the shape {shape}, got {values.shape}")
    if not np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
        raise DataError("labels must be 0 or 1")
    return values


def _pair(y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    true, predicted = _float(y_true, "targets"), _float(y_pred, "predictions")
    if true.shape != predicted.shape or true.ndim not in (1, 2) or not true.size:
        raise DataError(
            f"expected targets and predictions of one shape, (n,) or (n, k), got {true.shape} and {predicted.shape}"
        )
    if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
        raise DataError("targets or predictions contain NaN or infinite values")
    return true.reshape(len(true), -1), predicted.reshape(len(true), -1)
