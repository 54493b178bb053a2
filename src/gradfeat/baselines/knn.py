"""k nearest neighbours on activations, as papers on representation learning use it (Wu et al., CVPR 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sklearn.neighbors
import torch
from sklearn.base import BaseEstimator, ClassifierMixin

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.estimators.reading import NotFittedError, check_lengths, indicator, is_indicator, read_classes
from gradfeat.metrics.scores import accuracy, mean_average_precision

GRID = (1, 5, 10, 20, 50, 200)
"""Numbers of neighbours that are tried."""


class NearestNeighbours(ClassifierMixin, BaseEstimator):
    """A vote of the k training samples whose activations have the highest cosine similarity.

    A neighbour of similarity s has the weight ``exp(s / τ)``. k is chosen by leave-one-out accuracy on the training
    data (several labels: mean average precision), each sample judged by the others; the fewest neighbours where several
    are equal.

    Args:
        k: "auto": one of `GRID`; or a number.
        temperature: τ; `inf` is a vote of equals.

    Attributes:
        classes_: Class labels, (c,); column numbers for several labels.
        k_: The number of neighbours.
        path_: (k, leave-one-out accuracy or mean average precision) of each k tried; empty if it was given.

    Example:
        >>> f = np.array([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.3, 1.0]])
        >>> NearestNeighbours(k=1).fit(f, ["a", "a", "b", "b"]).predict([[5.0, 0.0]]).tolist()
        ['a']

    Source: Wu, Xiong, Yu & Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, Sec. 3.4.
    """

    def __init__(self, k: int | str = "auto", *, temperature: float = 0.07) -> None:
        self.k = k
        self.temperature = temperature

    def fit(self, X: Any, y: Any) -> NearestNeighbours:
        """Keep the training samples, and choose k.

        Args:
            X: Activations, (n, d).
            y: Class labels, (n,); or an indicator (n, c) of several labels, 0, 1, or NaN for one that does not count.

        Raises:
            DataError: Activations that are no finite matrix, or labels of one class only.
            ConfigurationError: A k or temperature that cannot be meant, or more neighbours than samples.
        """
        f = _matrix(X)
        self._several = is_indicator(np.asarray(y))
        y = indicator(np.asarray(y)) if self._several else read_classes(y)
        check_lengths(f, y)
        self.classes_ = np.arange(y.shape[1]) if self._several else np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(f"y has one class only ({self.classes_[0]}): a classifier needs at least two classes")
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature must be above zero, not {self.temperature}")
        automatic = isinstance(self.k, str)
        if automatic and self.k != "auto":
            raise ConfigurationError(f"k must be 'auto' or a number of neighbours, not {self.k!r}")
        if not automatic and not 1 <= int(self.k) <= len(f):
            raise ConfigurationError(f"k must be from 1 to the {len(f)} training samples, not {self.k}")
        if automatic and len(f) < 2:
            raise DataError("k='auto' judges each sample by the others: one sample is too few, give k=1")
        self._labels = y if self._several else (y[:, None] == self.classes_).astype(float)
        self._index = sklearn.neighbors.NearestNeighbors(metric="cosine", algorithm="brute").fit(f)
        self.path_ = self._leave_one_out() if automatic else []
        self.k_ = max(self.path_, key=lambda tried: tried[1])[0] if automatic else int(self.k)
        self.n_features_in_ = f.shape[1]
        return self

    def _leave_one_out(self) -> list[tuple[int, float]]:
        """Return (k, what it is judged by) with every sample judged by the others."""
        grid = [k for k in GRID if k < len(self._labels)]
        distance, neighbours = self._index.kneighbors(n_neighbors=grid[-1])  # without the samples themselves
        path: list[tuple[int, float]] = []
        for k, share in zip(grid, self._shares(distance, neighbours, grid), strict=True):
            if self._several:
                ignore = np.isnan(self._labels)
                judged = mean_average_precision(share, np.nan_to_num(self._labels), ignore=ignore)
            else:
                judged = accuracy(self._labels.argmax(1), share.argmax(1))
            path.append((k, judged))
        return path

    def _shares(self, distance: np.ndarray, neighbours: np.ndarray, counts: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield each class's share of the vote, (m, c), of so many of the neighbours, (m, k), the nearest first.

        A neighbour's weight is ``exp(s / τ)`` up to a factor of each row, as the distance is 1 - s. Neighbours whose
        label does not count are left out; where that leaves none, the share is one half.
        """
        weight = np.exp((distance[:, :1] - distance) / self.temperature)
        votes = np.zeros((len(distance), self._labels.shape[1]))
        known = np.zeros_like(votes)
        for i in range(max(counts)):
            labels = self._labels[neighbours[:, i]]
            votes += weight[:, i, None] * np.nan_to_num(labels)
            known += weight[:, i, None] * ~np.isnan(labels)
            if i + 1 in counts:
                yield np.divide(votes, known, out=np.full_like(votes, 0.5), where=known > 0)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return each class's share of the vote, (n, c)."""
        index = self._fitted()
        distance, neighbours = index.kneighbors(self._like_fitted(X), n_neighbors=self.k_)
        return next(self._shares(distance, neighbours, [self.k_]))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest share of the vote, (n,); of several labels those with half, (n, c)."""
        share = self.predict_proba(X)
        return (share >= 0.5).astype(int) if self._several else self.classes_[share.argmax(1)]

    def _fitted(self) -> Any:
        if not hasattr(self, "_index"):
            raise NotFittedError("This NearestNeighbours instance is not fitted yet: call fit first.")
        return self._index

    def _like_fitted(self, X: Any) -> np.ndarray:
        f = _matrix(X)
        if f.shape[1] != self.n_features_in_:
            raise DataError(f"X has {f.shape[1]} features; the model was fitted to {self.n_features_in_}")
        return f


def _matrix(X: Any) -> np.ndarray:
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        X = X.float() if X.dtype == torch.bfloat16 else X  # which numpy does not know
    f = np.asarray(X)
    if f.ndim != 2 or 0 in f.shape or f.dtype.kind not in "fiub":
        raise DataError(f"activations must be a matrix (n, d) of numbers, not {f.dtype} of shape {f.shape}")
    if not np.isfinite(f).all():
        raise DataError("activations contain NaN or infinite values")
    return f if f.dtype.kind == "f" else f.astype(float)
