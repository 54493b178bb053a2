"""Influence and what to label next, on fitted estimators: every kind of target, units, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.data import Preprocessing
from gradfeat.errors import ConfigurationError, DataError

GIVEN = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0}
N, PENALTY = 40, (0.02, 0.05)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def samples(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, 4))
    return X, X[:, 0] * X[:, 1] + X[:, 2] + 0.1 * generator.normal(size=n)


def targets(kind: str, y: np.ndarray) -> np.ndarray:
    if kind == "regression":
        return y
    if kind == "several labels":
        return np.stack([y > 0, y > 0.5], 1).astype(float)
    return np.digitize(y, [-0.5, 0.5])


def model_of(kind: str, penalty: tuple[float, ...] = PENALTY, **settings: Any) -> Any:
    if kind == "regression":
        return GradientFeatureRegressor(network(), penalty=penalty, **GIVEN, **settings)
    loss = {"one_hot": "one_hot_squared"}.get(kind, "auto")
    return GradientFeatureClassifier(network(), penalty=penalty, loss=loss, **GIVEN, **settings)


def outcome(model: Any, X: np.ndarray, chosen: np.ndarray, kind: str) -> np.ndarray:
    """Return what influence is about; of targets of 15, where a softmax bends within a change, its slope."""
    if kind == "one_hot":
        logits = model.logits(X).double().numpy()
        return np.asarray((logits * chosen).sum(1))
    if kind == "regression":
        return np.asarray(model.predict(X))
    p = model.predict_proba(X)
    if kind == "several labels":
        return np.log(np.where(chosen, p, 1 - p)).sum(1)
    return np.log(np.take_along_axis(p, chosen[:, None], 1)[:, 0])


ONE_HOT = pytest.param(
    "one_hot",
    marks=pytest.mark.xfail(strict=True, reason="correlated, but off by half of the change's norm: not yet understood"),
)


@pytest.mark.parametrize("kind", ["regression", "classes", ONE_HOT, "several labels"])
def test_influence_is_what_a_fit_without_a_sample_changes(kind: str) -> None:
    (X, y), (new, _) = samples(), samples(6, seed=1)
    y = targets(kind, y)
    model = model_of(kind).fit(X, y)
    p = model.predict(new) if kind == "regression" else model.predict_proba(new)
    chosen = p > 0.5 if kind == "several labels" else p.argmax(-1) if p.ndim == 2 else p
    if kind == "one_hot":
        chosen = np.eye(p.shape[1])[chosen] - p
    before, found = outcome(model, new, chosen, kind), model.influence(new)
    heavier = tuple(value * N / (N - 1) for value in PENALTY)
    actual = []
    for i in range(0, N, 4):
        weight = np.ones(N)
        weight[i] = 0
        refit = model_of(kind, heavier).fit(X, y, weight)
        actual.append(outcome(refit, new, chosen, kind) - before)
    one, other = np.array(actual).T.ravel(), found[:, ::4].ravel()
    assert np.corrcoef(one, other)[0, 1] > 0.97
    assert np.linalg.norm(other - one) < 0.3 * np.linalg.norm(one)  # the units too


def test_a_sample_and_its_mirror_image_are_left_out_together() -> None:
    generator = np.random.default_rng(0)
    X = generator.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    y = (X[:, 0].mean((1, 2)) > 127).astype(int)
    scaling = Preprocessing(size=(4, 4), mean=(0.5,), std=(0.5,), channels=1)

    def model(penalty: tuple[float, ...]) -> GradientFeatureClassifier:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        settings = {**GIVEN, "augment": "mirror", "preprocessing": scaling}
        return GradientFeatureClassifier(net, penalty=penalty, **settings)

    whole, new = model(PENALTY).fit(X, y), generator.integers(0, 256, (5, 4, 4, 1), dtype=np.uint8)
    chosen = whole.predict_proba(new).argmax(1)
    before, found = outcome(whole, new, chosen, "classes"), whole.influence(new)
    assert found.shape == (5, 30)
    heavier, actual = tuple(value * 30 / 29 for value in PENALTY), []
    for i in range(0, 30, 5):
        weight = np.ones(30)
        weight[i] = 0
        actual.append(outcome(model(heavier).fit(X, y, weight), new, chosen, "classes") - before)
    assert np.corrcoef(np.array(actual).T.ravel(), found[:, ::5].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("kind", ["regression", "classes", "one_hot", "several labels"])
def test_suggestions_are_diverse_and_useful(kind: str) -> None:
    (X, y), (pool, _) = samples(), samples(20, seed=2)
    model = model_of(kind).fit(X, targets(kind, y))
    found = model.suggest(np.concatenate([pool, pool]), 6)
    assert len(set(found.samples.tolist())) == 6
    assert bool((found.gains > 0).all())
    assert found.gains.sum() < found.before
    every = model.suggest(pool, 20)
    assert sorted(every.samples.tolist()) == list(range(20))
    alone = model.suggest(pool[:1], 1)
    assert alone.samples.tolist() == [0]


def test_a_gain_is_half_the_variance_that_is_gone() -> None:
    """Of a regression with ω̄ kept: by the covariances before, and the sample's own."""
    (X, y), (pool, _) = samples(), samples(9, seed=2)
    model = model_of("regression").fit(X, y)
    found = model.suggest(pool, 1)
    variance = model.predict_variance(pool)[:, 0, 0]
    assert found.before == pytest.approx(variance.mean() / 2, rel=1e-6)
    alike = model.suggest(np.tile(pool[:1], (7, 1)), 7)
    v = model.predict_variance(pool[:1])[0, 0, 0]
    expected = [0.5 * (v / (1 + k * v) - v / (1 + (k + 1) * v)) for k in range(7)]
    np.testing.assert_allclose(alike.gains, expected, rtol=1e-6)


def test_what_cannot_be_answered_is_refused() -> None:
    X, y = samples()
    model = model_of("classes").fit(X, targets("classes", y))
    for k in (0, -1, N + 1, True, 2.5):
        with pytest.raises(ConfigurationError, match="k must be"):
            model.suggest(X, k)
    for top in (0, N + 1):
        with pytest.raises(ConfigurationError, match="top must be"):
            model.influence(X, top=top)
    bad = X.copy()
    bad[3, 1] = np.nan
    for ask in (lambda z: model.influence(z), lambda z: model.suggest(z, 1)):
        with pytest.raises(DataError):
            ask(bad)
        with pytest.raises(DataError):
            ask(X[:, :3])
        with pytest.raises(DataError):
            ask(X[:0])
    assert model.influence(X[:1]).shape == (1, N)
    model.__dict__["_trained"] = None
    for ask in (lambda: model.influence(X), lambda: model.suggest(X, 1)):
        with pytest.raises(ConfigurationError, match="recall"):
            ask()
