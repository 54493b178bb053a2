"""k nearest neighbours on activations, as papers on representation learning use it (Wu et al., CVPR 2018)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.metrics import accuracy
from gradfeat.validation import NotFittedError, check_lengths, read_classes

GRID = (1, 5, 10, 20, 50, 200)
"""Numbers of neighbours that are tried."""


class NearestNeighbours(ClassifierMixin, BaseEstimator):
    """A vote of the k training samples whose activations have the highest cosine similarity.

    A neighbour of similarity s has the weight ``exp(s / τ)``. k is chosen by leave-one-out accuracy on the training
    data, each sample judged by the others; the fewest neighbours where several are equal.

    Args:
        k: "auto": one of `GRID`; or a number.
        temperature: τ; `inf` is a vote of equals.

    Attributes:
        classes_: Class labels, (c,).
        k_: The number of neighbours.
        path_: (k, leave-one-out accuracy) of each k tried; empty if it was given.

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
            y: Class labels, (n,).

        Raises:
            DataError: Activations that are no finite matrix, or labels of one class only.
            ConfigurationError: A k or temperature that cannot be meant, or more neighbours than samples.
        """
        f, y = _matrix(X), read_classes(y)
        check_lengths(f, y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(f"y has one class only ({self.classes_[0]}): a classifier needs at least two classes")
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature must be above zero, not {self.temperature}")
        automatic = isinstance(self.k, str)
        if automatic and self.k != "auto":
            raise ConfigurationError(f"k must be 'auto' or a number of neighbours, not {self.k!r}")
        if not automatic and not 1 <= int(self.k) <= len(f):
            raise ConfigurationError(f"k must be from 1 to the {len(f)} training samples, not {self.k}")
        weights = functools.partial(_weights, temperature=self.temperature)
        self._vote = KNeighborsClassifier(1, metric="cosine", algorithm="brute", weights=weights).fit(f, y)
        self.path_ = self._leave_one_out(y) if automatic else []
        self.k_ = max(self.path_, key=lambda tried: tried[1])[0] if automatic else int(self.k)
        self._vote.set_params(n_neighbors=self.k_)
        self.n_features_in_ = f.shape[1]
        return self

    def _leave_one_out(self, y: np.ndarray) -> list[tuple[int, float]]:
        """Return (k, accuracy) with every sample judged by the others."""
        grid = [k for k in GRID if k < len(y)]
        distance, neighbours = self._vote.kneighbors(n_neighbors=grid[-1])  # without the samples themselves
        weight = self._vote.weights(distance)
        true = np.searchsorted(self.classes_, y)
        votes = np.zeros((len(y), len(self.classes_)))
        path: list[tuple[int, float]] = []
        everyone = np.arange(len(y))
        for i in range(grid[-1]):
            votes[everyone, true[neighbours[:, i]]] += weight[:, i]
            if i + 1 in grid:
                path.append((i + 1, accuracy(true, votes.argmax(1))))
        return path

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return each class's share of the vote, (n, c)."""
        return self._fitted().predict_proba(self._like_fitted(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the class with the largest share of the vote, (n,)."""
        share = self.predict_proba(X)
        return self.classes_[share.argmax(1)]

    def _fitted(self) -> Any:
        if not hasattr(self, "_vote"):
            raise NotFittedError("This NearestNeighbours instance is not fitted yet: call fit first.")
        return self._vote

    def _like_fitted(self, X: Any) -> np.ndarray:
        f = _matrix(X)
        if f.shape[1] != self.n_features_in_:
            raise DataError(f"X has {f.shape[1]} features; the model was fitted to {self.n_features_in_}")
        return f


def _weights(distance: np.ndarray, temperature: float) -> np.ndarray:
    """Return ``exp(s / τ)`` up to a factor of each row: distance is 1 - s, and the nearest neighbour comes first."""
    return np.exp((distance[:, :1] - distance) / temperature)


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
