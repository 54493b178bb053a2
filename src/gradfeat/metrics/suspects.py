"""Which labels are suspect, by predictions of models that have not seen them (leave-one-out, or folds)."""

from __future__ import annotations

import numpy as np

MOST_DEVIATIONS = 3.5
"""Robust standard deviations of an outlier (Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993)."""

_TO_DEVIATION = 1.4826  # of a normal distribution: from the median of the absolute value to the standard deviation
_HUBER = 1.345  # robust deviations up to which a sample counts whole: 95 % efficient for normal errors


def suspect_classes(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which labels of one class each are suspect, (n,): confident learning.

    The threshold of a class is its mean probability over the samples that are labelled so. A label is suspect where
    the most probable class among those that reach their threshold, and the most probable class of all, are others
    (Northcutt, Jiang & Chuang, Confident Learning, JAIR 2021: the off-diagonal of the confident joint).

    Args:
        proba: Probability of each class by a model without the sample, (n, c).
        y: Index of each label, (n,).

    Example:
        >>> proba = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95]])
        >>> suspect_classes(proba, np.array([0, 0, 1, 1, 0])).nonzero()[0].tolist()
        [4]
    """
    counts = np.bincount(y, minlength=proba.shape[1])
    own = np.bincount(y, weights=proba[np.arange(len(y)), y], minlength=proba.shape[1])
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    reached = np.where(proba >= thresholds, proba, -1.0)
    confident = reached.max(1) >= 0
    found: np.ndarray = confident & (reached.argmax(1) != y) & (proba.argmax(1) != y)
    return found


def suspect_labels(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which of several labels are suspect, (n, c): each column by `suspect_classes`; unknown ones never are.

    Args:
        proba: Probability of each label by a model without the sample, (n, c).
        y: 0, 1 or NaN (unknown), (n, c).
    """
    found = np.zeros(y.shape, dtype=bool)
    for column in range(y.shape[1]):
        known = np.flatnonzero(~np.isnan(y[:, column]))
        p = proba[known, column]
        found[known, column] = suspect_classes(np.stack([1 - p, p], 1), y[known, column].astype(int))
    return found


def deviations(residuals: np.ndarray) -> np.ndarray:
    """Return distances of targets to predictions, (n, k), in standard deviations of each column.

    These are robust: from the median of the absolute distances, which wrong targets hardly move.

    Example:
        >>> deviations(np.array([[1.0], [-1.0], [1.0], [-1.0], [1e6]]))[0].round(4).tolist()
        [0.6745]
    """
    scale = _TO_DEVIATION * np.median(np.abs(residuals), axis=0)
    scale = np.where(scale > 0, scale, np.sqrt(np.square(residuals).mean(0)))  # more than half of them are exact
    found: np.ndarray = residuals / np.where(scale > 0, scale, 1.0)
    return found


def class_weights_of(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much labels of one class each should count, (n,): their probability by that of the most probable.

    A sample between classes counts whole where its label is the likeliest; one whose label does not fit hardly counts.
    """
    found: np.ndarray = proba[np.arange(len(y)), y] / proba.max(1)
    return found


def label_weights_of(proba: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how much samples with several labels should count, (n,): that of the label which fits least."""
    own = np.where(y > 0.5, proba, 1 - proba)
    found: np.ndarray = np.where(np.isnan(y), 1.0, own / np.maximum(proba, 1 - proba)).min(1)
    return found


def target_weights_of(far: np.ndarray) -> np.ndarray:
    """Return how much samples of a regression should count, (n,), by Huber's weights.

    Args:
        far: Largest distance of each sample in robust standard deviations, (n,).
    """
    found: np.ndarray = np.minimum(1.0, _HUBER / np.maximum(far, 1e-300))
    return found
