"""Few labels of a multi-label data set, drawn as for the VOC07 low-shot benchmark."""

from __future__ import annotations

import numbers

import numpy as np

from gradfeat.errors import ConfigurationError, DataError


def draw_labels(y: np.ndarray, k: int, random_state: int | None = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw k positive and (c - 1) k negative labels of each of c classes; every other label is ignored.

    As Goyal et al. (2019) and VISSL do: each class draws on its own, so that an image drawn for one class keeps no
    label of another one unless that class drew it too. A class with fewer labels gives all that it has.

    Args:
        y: 0/1 indicator (n, c), NaN where a label does not count (VOC's `difficult`), which is never drawn.
        k: Positive labels of each class, from 1.
        random_state: Seed of the draw.

    Returns:
        The samples with a label, ascending, (m,); and their labels, (m, c), NaN where ignored: what
        `GradientFeatureClassifier.fit` takes.

    Raises:
        DataError: y is no indicator, or a class has no positive label.
        ConfigurationError: k is no whole number from 1.

    Example:
        >>> samples, labels = draw_labels(np.array([[1, 0], [0, 1], [0, 1], [1, 0]]), k=1)
        >>> np.nansum(labels, axis=0).tolist(), np.isfinite(labels).sum(0).tolist()
        ([1.0, 1.0], [2, 2])
    """
    if not isinstance(k, numbers.Integral) or isinstance(k, bool) or k < 1:
        raise ConfigurationError(f"k must be a whole number from 1, not {k!r}")
    given = np.asarray(y)
    if given.ndim != 2 or given.dtype.kind not in "fiub":
        raise DataError(f"y must be an indicator (n, c) of 0, 1 and NaN; got {given.dtype} of shape {given.shape}")
    known = given.astype(np.float64)
    if not (np.isnan(known) | np.isin(known, (0, 1))).all():
        raise DataError("y must be an indicator of 0, 1 and NaN; it has other values")
    empty = np.flatnonzero(~(known == 1).any(0))
    if len(empty):
        raise DataError(f"no positive label of class {', '.join(map(str, empty[:10]))}: nothing to draw")
    rng = np.random.default_rng(random_state)
    drawn = np.full(known.shape, np.nan)
    for c, column in enumerate(known.T):
        for label, count in ((1, k), (0, (known.shape[1] - 1) * k)):
            drawn[rng.permutation(np.flatnonzero(column == label))[:count], c] = label
    samples = np.flatnonzero(~np.isnan(drawn).all(1))
    return samples, drawn[samples]
