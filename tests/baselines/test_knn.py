from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from gradfeat.baselines import NearestNeighbours
from gradfeat.errors import ConfigurationError, DataError, GradfeatError
from gradfeat.metrics.scores import average_precision


def data(n: int = 60, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return rng.normal(size=(n, 5)) + 1.5 * np.eye(5)[y], y


@pytest.mark.parametrize("k", [1, 5, 20])
def test_a_vote_of_equals_is_that_of_scikit_learn(k: int) -> None:
    (f, y), (f_test, _) = data(), data(40, seed=1)
    expected = KNeighborsClassifier(k, metric="cosine", weights="uniform").fit(f, y)
    found = NearestNeighbours(k, temperature=math.inf).fit(f, y)
    np.testing.assert_allclose(found.predict_proba(f_test), expected.predict_proba(f_test))
    np.testing.assert_array_equal(found.predict(f_test), expected.predict(f_test))
    assert found.path_ == []


def test_the_weighted_vote_is_that_of_the_paper() -> None:
    (f, y), (f_test, _) = data(), data(30, seed=1)
    unit, unit_test = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (f, f_test))
    similarity = unit_test @ unit.T
    votes = np.zeros((30, 3))
    for i, row in enumerate(similarity):
        for j in np.argsort(-row)[:10]:
            votes[i, y[j]] += math.exp(row[j] / 0.07)
    model = NearestNeighbours(10).fit(torch.from_numpy(f), y)
    np.testing.assert_allclose(model.predict_proba(torch.from_numpy(f_test)), votes / votes.sum(1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.07, math.inf])
def test_k_is_chosen_by_leave_one_out(temperature: float) -> None:
    f, y = data(45)
    f += 3 * np.eye(5)[y]
    y[::4] = (y[::4] + 1) % 3  # wrong labels, which one neighbour alone believes
    path = []
    for k in (1, 5, 10, 20):
        right = 0
        for i in range(len(y)):
            others = np.arange(len(y)) != i
            right += NearestNeighbours(k, temperature=temperature).fit(f[others], y[others]).predict(f[[i]])[0] == y[i]
        path.append((k, right / len(y)))
    model = NearestNeighbours(temperature=temperature).fit(f, y)
    assert model.path_ == [(k, pytest.approx(share)) for k, share in path]
    assert model.k_ == max(path, key=lambda tried: tried[1])[0] > 1


def test_labels_of_any_kind_and_the_size_of_an_activation_does_not_count() -> None:
    f = np.array([[1.0, 0.1], [9.0, 1.0], [0.1, 1.0], [0.2, 1.0]])
    model = NearestNeighbours(2).fit(f, np.array(["b", "b", "a", "a"]))
    assert model.predict(np.array([[1e3, 1.0], [1e-3, 1.0]])).tolist() == ["b", "a"]
    assert model.score(f, ["b", "b", "a", "a"]) == 1.0
    assert model.predict(torch.tensor(f).bfloat16()).tolist() == ["b", "b", "a", "a"]


def several(n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    f, y = data(n, seed=seed)
    return f, np.stack([y == 0, y > 0, f[:, 3] > 0], 1).astype(float)


@pytest.mark.parametrize("k", [1, 7])
def test_several_labels_are_those_of_scikit_learn(k: int) -> None:
    (f, y), (f_test, _) = several(60), several(40, seed=1)
    expected = KNeighborsClassifier(k, metric="cosine", weights="uniform").fit(f, y)
    found = NearestNeighbours(k, temperature=math.inf).fit(f, y)
    share = np.stack([column[:, 1] for column in expected.predict_proba(f_test)], 1)
    np.testing.assert_allclose(found.predict_proba(f_test), share)
    np.testing.assert_array_equal(found.predict(f_test), expected.predict(f_test))


def test_k_for_several_labels_is_chosen_by_average_precision_without_the_labels_that_do_not_count() -> None:
    f, y = several(45)
    y[::5, 1] = np.nan
    model = NearestNeighbours().fit(f, y)
    for k, judged in model.path_:
        scores = np.zeros_like(y)
        for i in range(len(y)):
            others = np.arange(len(y)) != i
            scores[i] = NearestNeighbours(k).fit(f[others], y[others]).predict_proba(f[[i]])
        known = ~np.isnan(y)
        each = [average_precision(scores[known[:, c], c], y[known[:, c], c]) for c in range(3)]
        assert judged == pytest.approx(np.mean(each))
    assert model.k_ == max(model.path_, key=lambda tried: tried[1])[0]
    unknown = np.array([[np.nan, 1.0], [0.0, 1.0]])
    assert NearestNeighbours(1).fit(np.eye(2), unknown).predict_proba(np.eye(2)).tolist() == [[0.5, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("f", [np.eye(2), np.ones((2, 3)), np.zeros((2, 3)), np.repeat(np.eye(2), 40, 0)])
def test_few_equal_and_empty_activations(f: np.ndarray) -> None:
    y = np.arange(len(f)) * 2 // len(f)
    probability = NearestNeighbours().fit(f, y).predict_proba(f)
    np.testing.assert_allclose(probability.sum(1), 1)


@pytest.mark.parametrize(
    ("f", "y", "settings", "error", "message"),
    [
        (np.eye(3), [0, 0, 0], {}, DataError, "one class only"),
        (np.eye(3), [0, 1], {}, DataError, "3"),
        (np.zeros((2, 2, 2)), [0, 1], {}, DataError, r"matrix \(n, d\)"),
        (np.array([["a"], ["b"]]), [0, 1], {}, DataError, "of numbers"),
        (np.array([[np.nan], [1.0]]), [0, 1], {}, DataError, "NaN"),
        (np.eye(2), [0.5, 1.5], {}, DataError, "continuous"),
        (np.eye(2), [[0, 2], [1, 0]], {}, DataError, "values besides 0 and 1"),
        (np.ones((1, 2)), [[0, 1]], {}, DataError, "one sample is too few"),
        (np.eye(2), [0, 1], {"k": 3}, ConfigurationError, "the 2 training samples, not 3"),
        (np.eye(2), [0, 1], {"k": "best"}, ConfigurationError, "'auto'"),
        (np.eye(2), [0, 1], {"temperature": 0.0}, ConfigurationError, "above zero"),
    ],
)
def test_bad_input(f: np.ndarray, y: list, settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        NearestNeighbours(**settings).fit(f, y)


def test_not_fitted_and_other_features() -> None:
    with pytest.raises(GradfeatError, match="not fitted"):
        NearestNeighbours().predict(np.eye(2))
    with pytest.raises(DataError, match="3 features; the model was fitted to 2"):
        NearestNeighbours(1).fit(np.eye(2), [0, 1]).predict(np.eye(3))
