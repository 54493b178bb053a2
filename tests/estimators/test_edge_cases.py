"""Data at the edge of what can be fitted, for every solver and loss: the predictions are finite."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import GradfeatWarning

LOSSES = ("cross_entropy", "one_hot_squared", "logistic", "squared")
GIVEN = 0.01  # a penalty; choosing it takes most of the time, and is tried with two of the solvers
SOLVERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "subspace": ({"solver": "subspace"}, LOSSES),
    "rounds": ({"solver": "subspace", "rounds": 2}, ("squared",)),
    "whitened": ({"solver": "subspace", "metric": "whitened", "penalty": GIVEN}, ("cross_entropy", "squared")),
    "no-penalty": ({"solver": "subspace", "penalty": 0.0}, LOSSES),
    "gradient": ({"mode": "gradient", "penalty": GIVEN}, ("cross_entropy", "logistic")),
    "dual": ({"solver": "dual", "penalty": GIVEN}, LOSSES),
    "dual-gradient": ({"solver": "dual", "mode": "gradient", "penalty": GIVEN}, ("cross_entropy", "logistic")),
    "dual-no-penalty": ({"solver": "dual", "penalty": 0.0}, LOSSES),
    "adam": ({"solver": "adam", "epochs": 1, "penalty": GIVEN}, ("cross_entropy", "squared")),
    "sgd": ({"solver": "sgd", "epochs": 1, "penalty": GIVEN}, ("logistic",)),
    "finetune": ({"mode": "finetune", "epochs": 1, "penalty": GIVEN}, ("cross_entropy", "squared")),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())


def samples(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)


def labels(loss: str, n: int, c: int) -> np.ndarray:
    """Return classes in turn, an indicator in which every label has both values and one is ignored, or numbers."""
    if loss in ("cross_entropy", "one_hot_squared"):
        return np.arange(n) % c
    if loss == "logistic":
        Y = (np.add.outer(np.arange(n), np.arange(c)) % 2).astype(float)
        if n > 2:
            Y[0, 0] = np.nan
        return Y
    return np.random.default_rng(1).normal(size=(n, c))


Case = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def no_fewer_outputs_than_samples(loss: str) -> Case:
    return samples(5), labels(loss, 5, 9), None


def constant_features(loss: str) -> Case:
    return np.ones((12, 3), dtype=np.float32), labels(loss, 12, 3), None


def features_of_zero(loss: str) -> Case:
    return np.zeros((12, 3), dtype=np.float32), labels(loss, 12, 3), None


def duplicates(loss: str) -> Case:
    return np.repeat(samples(3), 4, 0), np.repeat(labels(loss, 3, 3), 4, 0), None


def duplicates_that_disagree(loss: str) -> Case:
    return np.tile(samples(2), (6, 1)), labels(loss, 12, 3), None


def weights_of_zero(loss: str) -> Case:
    weight = np.ones(12)
    weight[[0, 3, 7, 11]] = 0
    return samples(12), labels(loss, 12, 2), weight


def all_but_two_weights_of_zero(loss: str) -> Case:
    weight = np.zeros(12)
    weight[[4, 5]] = 1e-3, 1e3
    return samples(12), labels(loss, 12, 3), weight


def two_samples(loss: str) -> Case:
    return samples(2), labels(loss, 2, 2), None


CASES = (
    no_fewer_outputs_than_samples,
    constant_features,
    features_of_zero,
    duplicates,
    duplicates_that_disagree,
    weights_of_zero,
    all_but_two_weights_of_zero,
    two_samples,
)


def fit(case: Any, loss: str, settings: dict[str, Any]) -> tuple[Any, np.ndarray]:
    X, y, weight = case(loss)
    cls = GradientFeatureRegressor if loss == "squared" else GradientFeatureClassifier
    model = cls(network(), theta2="*", loss=loss, random_state=0, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        model.fit(X, y, weight)
    return model, model.predict(X) if loss == "squared" else model.predict_proba(X)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize(("solver", "loss"), [(name, loss) for name, (_, own) in SOLVERS.items() for loss in own])
def test_works(solver: str, loss: str, case: Any) -> None:
    model, predicted = fit(case, loss, SOLVERS[solver][0])
    assert np.isfinite(predicted).all()
    for value in (model.w1_, model.b_, model.omega_, *model.w2_.values()):
        assert bool(torch.isfinite(value).all())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", ["subspace", "dual"])
def test_constant_features_predict_the_mean(solver: str, loss: str) -> None:
    _, predicted = fit(constant_features, loss, {"solver": solver, "penalty": 0.1, "precision": "float64"})
    y = labels(loss, 12, 3)
    expected = np.eye(3)[y].mean(0) if y.ndim == 1 else np.nanmean(y, 0)
    if loss == "one_hot_squared":  # whose values go through a softmax
        expected = np.exp(15 * expected) / np.exp(15 * expected).sum()
    np.testing.assert_allclose(predicted, np.broadcast_to(expected, predicted.shape), atol=2e-3)
