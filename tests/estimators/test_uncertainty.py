"""Uncertainty of fitted estimators: against refits, quadrature, and the share of samples that sets cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.uncertainty import mean_proba
from gradfeat.losses import CrossEntropy, MultiLabelLogistic
from gradfeat.solvers.conformal import jackknife_plus

GIVEN: dict[str, Any] = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0, "penalty": (0.02, 0.05)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def samples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 4))
    return X, X[:, 0] * X[:, 1] + X[:, 2] + 0.3 * generator.normal(size=n)


def test_intervals_are_those_of_fits_without_each_sample() -> None:
    n = 24
    X, y = samples(n)
    new = samples(5, 1)[0]
    model = GradientFeatureRegressor(network(), **GIVEN).fit(X, y)
    heavier = tuple(value * n / (n - 1) for value in GIVEN["penalty"])  # as much beside each other sample as before
    predictions, far = [], []
    for i in range(n):
        weight = np.ones(n)
        weight[i] = 0
        refit = GradientFeatureRegressor(network(), **{**GIVEN, "penalty": heavier}).fit(X, y, weight)
        predictions.append(refit.predict(new))
        far.append(abs(y[i] - refit.predict(X[i : i + 1])[0]))
    expected = jackknife_plus(torch.from_numpy(np.stack(predictions, 1)), torch.tensor(far), 0.8).numpy()
    np.testing.assert_allclose(
        model.predict_interval(new, 0.8), expected, atol=0.1 * (expected[:, 1] - expected[:, 0]).min()
    )


def test_intervals_and_sets_cover_new_samples() -> None:
    X, y = samples(150)
    new, truth = samples(600, 1)
    interval = GradientFeatureRegressor(network(), **GIVEN).fit(X, y).predict_interval(new)
    assert abs(((interval[:, 0] <= truth) & (truth <= interval[:, 1])).mean() - 0.9) < 0.06
    two = GradientFeatureRegressor(network(), **GIVEN).fit(X, np.stack([y, -y], 1)).predict_interval(new[:3])
    assert two.shape == (3, 2, 2)
    labels, true = np.digitize(y, [-0.5, 0.5]), np.digitize(truth, [-0.5, 0.5])
    model = GradientFeatureClassifier(network(), **GIVEN).fit(X, labels)
    found = model.predict_set(new)
    assert found.dtype == bool
    assert abs(found[np.arange(600), true].mean() - 0.9) < 0.06
    assert found[np.arange(600), model.predict(new)].all()
    assert model.predict_set(new, 0.5).sum() < found.sum()


def test_mean_probabilities_are_integrals() -> None:
    logits, variances = torch.tensor([[0.3, -0.3], [2.0, -2.0]]).double(), torch.tensor([0.5, 4.0]).double()
    shift = torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double()
    found = mean_proba(CrossEntropy(), logits, variances[:, None, None] * shift)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for row, variance, one in zip(logits, variances, found, strict=True):
        difference = float(row[0] - row[1]) + np.sqrt(2 * float(variance)) * nodes  # whose variance is twice as much
        exact = (weights / (1 + np.exp(-difference))).sum() / weights.sum()
        assert float(one[0]) == pytest.approx(exact, abs=0.02)
    torch.testing.assert_close(found.sum(1), torch.ones(2).double())
    alone = mean_proba(MultiLabelLogistic(), logits, torch.zeros(2, 2, 2).double())
    torch.testing.assert_close(alone, logits.sigmoid())


def test_a_model_is_less_sure_of_what_is_unlike_its_samples() -> None:
    X, y = samples(80)
    light = {**GIVEN, "penalty": (1e-4, 1e-4)}  # so that it is too sure
    model = GradientFeatureClassifier(network(), **light).fit(X, (y > 0).astype(int))
    sure = model.predict_proba(X)
    mean = model.predict_proba(X, uncertainty=True)
    np.testing.assert_allclose(mean.sum(1), 1)
    assert mean.max(1).mean() < sure.max(1).mean()
    near, far = (model.predict_variance(scale * X)[:, 0, 0].mean() for scale in (1, 4))
    assert far > near


def test_the_temperature_is_that_of_the_least_leave_one_out_loss() -> None:
    X, y = samples(80)
    left = GradientFeatureClassifier(network(), **GIVEN).fit(X, (y > 0).astype(int)).loo_
    losses = [float(left.loss.value(left.logits / t, left.y)) for t in np.geomspace(0.1, 10, 400)]
    best = float(left.loss.value(left.logits / left.temperature, left.y))
    assert best == pytest.approx(min(losses), rel=1e-3)


def test_what_is_asked_of_the_wrong_model_or_of_too_few_samples() -> None:
    X, y = samples(12)
    regressor = GradientFeatureRegressor(network(), **GIVEN).fit(X, y)
    classifier = GradientFeatureClassifier(network(), **GIVEN).fit(X, (y > 0).astype(int))
    with pytest.raises(ConfigurationError, match="for classes"):
        regressor.predict_set(X)
    with pytest.raises(ConfigurationError, match="for a regression"):
        classifier.predict_interval(X)
    for coverage, words in ((0.99, "takes 99 training samples"), (1.0, "between 0 and 1")):
        with pytest.raises(ConfigurationError, match=words):
            classifier.predict_set(X, coverage)
        with pytest.raises(ConfigurationError, match=words):
            regressor.predict_interval(X, coverage)
    with pytest.raises(ConfigurationError, match="crops"):
        classifier.predict_proba(X, crops=2, uncertainty=True)


def test_the_dispersion_is_that_of_left_out_samples() -> None:
    X, y = samples(60)
    model = GradientFeatureRegressor(network(), **GIVEN).fit(X, y)
    assert model.dispersion_ == pytest.approx(np.mean((y - model.loo_.prediction[:, 0]) ** 2), rel=1e-6)
    two = GradientFeatureClassifier(network(), **GIVEN).fit(X, (y > 0).astype(int))
    answers, left = two.answers_, two.loo_
    without = answers.covariances_without()
    with_it = answers.covariances(answers.rows(two._trained.problem.store))
    assert (torch.diagonal(without - with_it, dim1=1, dim2=2) > 0).all()
    losses = [
        -mean_proba(left.loss, left.logits, factor * without).log()[torch.arange(60), left.y].mean()
        for factor in (0.0, two.dispersion_, 4.0)
    ]
    assert losses[1] == min(losses)
