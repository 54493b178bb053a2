"""Rules of suspect labels, against their definitions written out, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import HuberRegressor

from gradfeat.metrics.suspects import (
    class_weights_of,
    deviations,
    label_weights_of,
    suspect_classes,
    suspect_labels,
    target_weights_of,
)


def drawn(n: int, c: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.full(c, 0.4), size=n)
    y = np.array([rng.choice(c, p=p) for p in proba])
    return proba, np.where(rng.random(n) < 0.2, rng.integers(c, size=n), y)


@pytest.mark.parametrize("c", [2, 3, 6])
def test_confident_learning_by_its_definition(c: int) -> None:
    proba, y = drawn(200, c, c)
    expected = []
    for p, label in zip(proba, y, strict=True):
        reached = [k for k in range(c) if (y == k).any() and p[k] >= proba[y == k, k].mean()]
        best = max(reached, key=lambda k: p[k]) if reached else label
        expected.append(best != label and p.argmax() != label)
    assert suspect_classes(proba, y).tolist() == expected
    assert 0 < sum(expected) < 100


def test_a_class_without_a_sample_takes_none() -> None:
    proba = np.array([[0.2, 0.1, 0.7], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    assert not suspect_classes(proba, np.array([0, 1, 0])).any()


def test_several_labels_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((300, 3))
    y = (rng.random((300, 3)) < p).astype(float)
    y[rng.random((300, 3)) < 0.1] = np.nan
    found = suspect_labels(p, y)
    assert not found[np.isnan(y)].any()
    for k in range(3):
        known = ~np.isnan(y[:, k])
        two = np.stack([1 - p[known, k], p[known, k]], 1)
        assert found[known, k].tolist() == suspect_classes(two, y[known, k].astype(int)).tolist()


def test_deviations_are_robust_and_survive_exact_predictions() -> None:
    residuals = np.random.default_rng(0).normal(size=(20_000, 2)) * [1.0, 30.0]
    residuals[:400] *= 1000
    assert np.allclose(deviations(residuals)[400:].std(0), 1, atol=0.05)
    assert np.isfinite(deviations(np.zeros((5, 1)))).all()
    assert deviations(np.array([[0.0], [0.0], [0.0], [2.0]]))[:, 0].tolist() == [0, 0, 0, 2]


def test_weights() -> None:
    proba = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert class_weights_of(proba, np.array([0, 1, 0])) == pytest.approx([1, 0.6, 0.125])
    y = np.array([[1, 0.0], [np.nan, 1.0], [0.0, np.nan]])
    assert label_weights_of(np.array([[0.9, 0.8], [0.1, 0.6], [0.75, 0.5]]), y) == pytest.approx([0.25, 1, 1 / 3])
    assert target_weights_of(np.array([0.0, 1.345, 2.69])) == pytest.approx([1, 1, 0.5])


def test_reweighted_least_squares_is_hubers_regression() -> None:
    """The weights, taken again and again, lead to the minimum of Huber's loss."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 1))
    y = 2 * x[:, 0] + rng.normal(size=80) + 20 * (rng.random(80) < 0.1)
    huber = HuberRegressor(epsilon=1.345, alpha=0, tol=1e-10, max_iter=10_000).fit(x, y)
    a = np.hstack([x, np.ones((80, 1))])
    weights = np.ones(80)
    for _ in range(300):
        theta = np.linalg.solve(a.T @ (weights[:, None] * a), a.T @ (weights * y))
        weights = target_weights_of(np.abs(y - a @ theta) / huber.scale_)
    assert theta == pytest.approx([huber.coef_[0], huber.intercept_], abs=1e-5)
