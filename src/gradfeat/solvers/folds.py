"""Folds of the training data: what is fitted, and what is held out to be judged on."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradfeat.errors import DataError
from gradfeat.losses import Loss

ONE_FOLD_FROM = 20_000
"""From this number of samples on, one held-out part is as good as several, and several times cheaper."""

Indices = NDArray[np.intp]

Folds = list[tuple[Indices, Indices]]
"""Pairs of indices: of the training part, and of the validation part."""


def folds(
    y: Tensor, loss: Loss, cv: Any, random_state: int | None, present: Indices | None = None
) -> tuple[Folds, str]:
    """Split the training data; a class with one sample is always in the part that is fitted.

    Args:
        y: Targets of the samples that count.
        loss: Says whether the targets are classes.
        cv: As in `gradfeat.solvers.probe.fit_probe`; pairs of indices are of all samples.
        random_state: Seed.
        present: Indices of the samples that count among all, ascending; None if all do.

    Returns:
        Pairs of indices of the samples that count, none if there are too few to split; and a note.

    Raises:
        DataError: Given pairs of indices leave a part without samples that count.
    """
    if not isinstance(cv, numbers.Integral):
        return _given(y, cv, np.arange(len(y)) if present is None else present), ""
    n, k = len(y), int(cv)
    pairs, reason = _stratified(y, k, random_state) if loss.task == "multiclass" else _shuffled(n, k, random_state)
    if not pairs:
        return [], f"{reason}: the penalty is what is likely of any features, not chosen"
    if n >= ONE_FOLD_FROM:
        return pairs[:1], f"one held-out part of {len(pairs[0][1]):,} samples instead of {len(pairs)} folds"
    return pairs, f"{len(pairs)} folds instead of {cv}: {reason}" if len(pairs) < k else ""


def _given(y: Tensor, cv: Any, present: Indices) -> Folds:
    """Return the folds of a scikit-learn splitter, or given pairs as indices of the samples that count."""
    if hasattr(cv, "split"):
        return list(cv.split(np.zeros(len(y)), y.cpu().numpy()))
    pairs = [(_among(train, present), _among(validation, present)) for train, validation in cv]
    if not pairs or not all(len(train) and len(validation) for train, validation in pairs):
        raise DataError("cv holds no pairs of indices, or one with an empty part (weight zero does not count)")
    return pairs


def _among(indices: Any, present: Indices) -> Indices:
    """Return the positions of samples among those present, leaving out the rest."""
    return np.flatnonzero(np.isin(present, np.asarray(indices)))


def _stratified(y: Tensor, k: int, random_state: int | None) -> tuple[Folds, str]:
    """Return up to k folds of classes, none where every class has one sample; and why they are fewer."""
    from sklearn.model_selection import StratifiedKFold

    labels = y.cpu().numpy()
    counts = np.bincount(labels)
    repeated = np.flatnonzero(counts[labels] >= 2)  # samples whose class has others
    single = np.flatnonzero(counts[labels] == 1)
    if not len(repeated):
        return [], "every class has one sample"
    count = min(k, int(counts[counts >= 2].min()))
    splitter = StratifiedKFold(count, shuffle=True, random_state=random_state)
    splits = splitter.split(repeated, labels[repeated])
    pairs = [(np.sort(np.concatenate([repeated[a], single])), repeated[b]) for a, b in splits]
    return pairs, "a class is rare"


def _shuffled(n: int, k: int, random_state: int | None) -> tuple[Folds, str]:
    """Return up to k folds of n samples, none of fewer than three samples; and why they are fewer."""
    from sklearn.model_selection import KFold

    if n < 3:
        return [], "too few samples for cross-validation"
    splitter = KFold(min(k, n), shuffle=True, random_state=random_state)
    return list(splitter.split(np.arange(n))), "there are no more samples"
