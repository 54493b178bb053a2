from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier
from gradfeat.data.low_shot import draw_labels
from gradfeat.errors import ConfigurationError, DataError


def indicator(n: int = 400, classes: int = 4) -> np.ndarray:
    """Labels of which about a quarter are positive, and some do not count."""
    rng = np.random.default_rng(0)
    y = (rng.random((n, classes)) < 0.25).astype(float)
    y[rng.random((n, classes)) < 0.1] = np.nan
    return y


@pytest.mark.parametrize("k", [1, 2, 8])
def test_each_class_has_k_positives_and_vissls_number_of_negatives(k: int) -> None:
    y = indicator()
    samples, labels = draw_labels(y, k, 5)
    assert (labels == 1).sum(0).tolist() == [k] * 4
    assert (labels == 0).sum(0).tolist() == [3 * k] * 4
    assert (np.diff(samples) > 0).all()
    drawn = ~np.isnan(labels)
    assert drawn.any(1).all()
    np.testing.assert_array_equal(labels[drawn], y[samples][drawn])  # NaN would differ from itself


def test_a_draw_is_its_seeds() -> None:
    y = indicator()
    first, again, other = draw_labels(y, 2, 0), draw_labels(y, 2, 0), draw_labels(y, 2, 1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].tolist() != other[0].tolist()


def test_every_positive_is_as_likely() -> None:
    y = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [0, 0]])
    counts = np.zeros(5)
    for seed in range(600):
        samples, labels = draw_labels(y, 1, seed)
        counts[samples[labels[:, 0] == 1]] += 1
    assert counts[[2, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[[0, 1, 3]], 200, atol=5 * np.sqrt(600 * 2 / 9))


def test_a_rare_class_gives_all_that_it_has() -> None:
    y = np.zeros((6, 3))
    y[0, 0] = y[1:3, 1] = y[:, 2] = 1
    samples, labels = draw_labels(y, 2)
    assert (labels == 1).sum(0).tolist() == [1, 2, 2]
    assert (labels == 0).sum(0).tolist() == [4, 4, 0]
    assert set(samples) >= {0, 1, 2}


def test_the_draw_is_what_fit_takes() -> None:
    torch.manual_seed(0)
    y = indicator(60, 3)
    samples, labels = draw_labels(y, 4)
    X = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))
    estimator = GradientFeatureClassifier(network, mode="activation", penalty=0.1).fit(X[samples], labels)
    assert estimator.multilabel_
    assert estimator.predict_proba(X).shape == (60, 3)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0, 1, 1]), r"indicator \(n, c\).*shape \(3,\)"),
        (np.array([["a", "b"]]), r"indicator \(n, c\).*<U1"),
        (np.array([[0, 2], [1, 1]]), "has other values"),
        (np.array([[0, 1], [np.nan, 0]]), "no positive label of class 0"),
    ],
)
def test_labels_that_are_no_indicator(y: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_labels(y, 1)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "1"])
def test_numbers_of_labels_that_cannot_be_meant(k: Any) -> None:
    with pytest.raises(ConfigurationError, match="k must be a whole number from 1"):
        draw_labels(np.eye(2), k)
