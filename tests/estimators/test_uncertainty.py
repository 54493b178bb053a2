"""How sure fitted estimators are: intervals and sets against fits without each sample, covariances, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError, DataError

GIVEN = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0, "penalty": (0.02, 0.05)}
N = 24


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def samples(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 4))
    return X, X[:, 0] * X[:, 1] + X[:, 2] + 0.3 * generator.normal(size=n)


def classes(y: np.ndarray) -> np.ndarray:
    return np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]


def classifier(**settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{**GIVEN, **settings})


def refits(make: Any, X: np.ndarray, y: np.ndarray) -> list[Any]:
    heavier = tuple(value * len(X) / (len(X) - 1) for value in GIVEN["penalty"])  # type: ignore[attr-defined]
    models = []
    for i in range(len(X)):
        weight = np.ones(len(X))
        weight[i] = 0
        models.append(make(penalty=heavier).fit(X, y, weight))
    return models


def regressor(**settings: Any) -> GradientFeatureRegressor:
    return GradientFeatureRegressor(network(), **{**GIVEN, **settings})


def test_intervals_are_those_of_fits_without_each_sample() -> None:
    (X, y), (new, _) = samples(), samples(6, seed=1)
    model = regressor(mode="activation").fit(X, y)  # ω̄ alone: exact
    others = refits(lambda **given: regressor(mode="activation", **given), X, y)
    errors = np.array([abs(y[i] - other.predict(X[i : i + 1])[0]) for i, other in enumerate(others)])
    predictions = np.stack([other.predict(new) for other in others], 1)
    k = int(np.ceil(0.8 * (N + 1)))
    low, high = np.sort(predictions - errors, 1)[:, N - k], np.sort(predictions + errors, 1)[:, k - 1]
    np.testing.assert_allclose(model.predict_interval(new, 0.8), np.stack([low, high], 1), atol=1e-5)


def test_intervals_with_gradients_are_near_those_of_fits() -> None:
    (X, y), (new, _) = samples(), samples(6, seed=1)
    model = regressor().fit(X, y)
    others = refits(regressor, X, y)
    errors = np.array([abs(y[i] - other.predict(X[i : i + 1])[0]) for i, other in enumerate(others)])
    predictions = np.stack([other.predict(new) for other in others], 1)
    k = int(np.ceil(0.8 * (N + 1)))
    low, high = np.sort(predictions - errors, 1)[:, N - k], np.sort(predictions + errors, 1)[:, k - 1]
    found = model.predict_interval(new, 0.8)
    assert np.abs(found - np.stack([low, high], 1)).max() < 0.1 * (high - low).mean()


def test_sets_are_those_of_fits_without_each_sample() -> None:
    (X, y), (new, _) = samples(), samples(20, seed=1)
    y = classes(y)
    model = classifier(solver="dual").fit(X, y)
    others = refits(lambda **given: classifier(solver="dual", **given), X, y)
    own = np.searchsorted(model.classes_, y)
    score = np.array([1 - other.predict_proba(X[i : i + 1])[0, own[i]] for i, other in enumerate(others)])
    scores = np.stack([1 - other.predict_proba(new) for other in others], 1)
    expected = (score[None, :, None] < scores).sum(1) < np.ceil(0.8 * (N + 1))
    expected[np.arange(20), model.predict_proba(new).argmax(1)] = True
    found = model.predict_set(new, 0.8)
    assert found.dtype == bool
    assert found.any(1).all()
    assert (found == expected).mean() > 0.95
    assert (model.predict_set(new, 0.6) <= model.predict_set(new, 0.9)).all()


def test_the_moves_are_what_influence_is_of() -> None:
    (X, y), (new, _) = samples(), samples(5, seed=1)
    model = regressor().fit(X, np.stack([y, -2 * y], 1))
    (_, rows, _), *_ = model._parts(new)
    store = next(model._parts(new))[0]
    moves = torch.cat([moved for _, moved in model.answers_.moves(store, rows)])
    np.testing.assert_allclose(moves[:, :, 0].numpy(), model.influence(new), atol=1e-12)
    assert model.predict_interval(new).shape == (5, 2, 2)
    assert model.noise_variance_.shape == (2,)
    np.testing.assert_allclose(model.noise_variance_[1], 4 * model.noise_variance_[0], rtol=1e-4)


def test_the_noise_variance_of_least_squares_is_that_of_its_degrees_of_freedom() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(400, 4))
    y = X @ np.ones(4) + 0.5 * generator.normal(size=400)
    linear = nn.Linear(4, 4)
    nn.init.eye_(linear.weight)
    model = GradientFeatureRegressor(
        nn.Sequential(linear), mode="activation", penalty=1e-8, precision="float64", random_state=0
    ).fit(X, y)
    assert model.noise_variance_[0] == pytest.approx(np.square(y - model.predict(X)).sum() / (400 - 5), rel=0.02)


def test_covariances_of_several_labels_are_of_the_sum_over_labels() -> None:
    X, y = samples(200)
    labels = np.stack([y > 0, y > 0.5], 1).astype(float)
    two = classifier(mode="activation", penalty=0.02).fit(X, labels)
    four = classifier(mode="activation", penalty=0.01).fit(X, np.concatenate([labels, labels], 1))
    # each label has half of its part in the mean, and half the penalty: its weights and their precision are the same
    found, expected = four.predict_variance(X[:5]), two.predict_variance(X[:5])
    np.testing.assert_allclose(found[:, :2, :2], expected, rtol=1e-3, atol=1e-7)


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
@pytest.mark.parametrize(
    "settings", [{}, {"mode": "activation"}, {"mode": "gradient"}, {"rounds": 2, "penalty": "auto"},
                 {"loss": "one_hot_squared"}], ids=str
)  # fmt: skip
def test_every_classifier_has_probabilities_and_sets(settings: dict[str, Any]) -> None:
    (X, y), (new, _) = samples(60), samples(7, seed=1)
    model = classifier(**settings).fit(X, classes(y))
    for extra in ("uncertainty", "calibrated"):
        p = model.predict_proba(new, **{extra: True})
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
        np.testing.assert_allclose(model.predict_proba(new[2:4], **{extra: True}), p[2:4], atol=1e-6)
    assert 0.04 < model.temperature_ < 21
    assert model.predict_set(new).any(1).all()


def test_doubt_only_adds_entropy_to_two_classes_and_labels() -> None:
    (X, y), (new, _) = samples(60), samples(9, seed=1)
    labels = np.stack([y > 0, y > 0.5], 1).astype(float)
    for target in ((y > 0).astype(int), labels):
        model = classifier().fit(X, target)
        before, after = model.predict_proba(new), model.predict_proba(new, uncertainty=True)
        assert (np.abs(after - 0.5) <= np.abs(before - 0.5) + 1e-9).all()
    found = model.predict_set(new, 0.8)
    assert found.shape == (9, 2)
    labels[:, 1] = 0
    labels[:3, 1] = 1
    assert classifier().fit(X, labels).predict_set(new, 0.9)[:, 1].all()  # three samples cannot exclude a label


def test_what_cannot_be_answered_says_so() -> None:
    X, y = samples()
    model, of_values = classifier().fit(X, classes(y)), regressor().fit(X, y)
    with pytest.raises(ConfigurationError, match="predict_interval"):
        of_values.predict_set(X)
    with pytest.raises(ConfigurationError, match="predict_set"):
        model.predict_interval(X)
    with pytest.raises(ConfigurationError, match="temperature"):
        _ = of_values.temperature_
    with pytest.raises(ConfigurationError, match="squared loss"):
        _ = model.noise_variance_
    with pytest.raises(DataError, match="at least 99 training samples"):
        model.predict_set(X, 0.99)
    with pytest.raises(DataError, match="at least 99 training samples"):
        of_values.predict_interval(X, 0.99)
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        model.predict_set(X, 90)
    with pytest.raises(ConfigurationError, match="one of them"):
        model.predict_proba(X, uncertainty=True, calibrated=True)
    with pytest.raises(ConfigurationError, match="crops"):
        model.predict_proba(X, 3, uncertainty=True)
    tuned = classifier(mode="finetune", epochs=1, penalty="auto").fit(X, classes(y))
    for answer in (tuned.predict_set, lambda X: tuned.predict_proba(X, uncertainty=True)):
        with pytest.raises(ConfigurationError, match="no linear model"):
            answer(X)


def test_the_covariance_of_a_sample_left_out_is_that_of_least_squares_without_it() -> None:
    X, y = samples()
    model = regressor(mode="activation").fit(X, y)
    found = model.answers_.left_out_covariances()
    f = network()(torch.from_numpy(X).float()).detach().double()
    centred = torch.cat([f - f.mean(0), torch.ones(N, 1, dtype=torch.float64)], 1)
    ridge = torch.full((centred.shape[1],), 0.02, dtype=torch.float64)
    ridge[-1] = 0
    for i in range(0, N, 6):
        others = torch.arange(N) != i
        hessian = centred[others].T @ centred[others] / N + ridge.diag()
        expected = float(centred[i] @ torch.linalg.solve(hessian, centred[i])) / N
        assert float(found[i, 0, 0]) == pytest.approx(expected, rel=1e-3)
