"""Answers of fitted estimators: samples left out against fits without them, data given back, what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, load
from gradfeat.errors import ConfigurationError, DataError

GIVEN = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0}
N = 40


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def samples(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(n, 4))
    return X, X[:, 0] * X[:, 1] + X[:, 2] + 0.1 * generator.normal(size=n)


def classes(y: np.ndarray) -> np.ndarray:
    return np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]


def classifier(**settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{**GIVEN, **settings})


def without(i: int, n: int = N) -> np.ndarray:
    weight = np.ones(n)
    weight[i] = 0
    return weight


def test_a_regression_without_each_sample_is_a_fit_without_it() -> None:
    X, y = samples()
    penalty = (0.02, 0.05)
    model = GradientFeatureRegressor(network(), penalty=penalty, **GIVEN).fit(X, y)
    heavier = tuple(value * N / (N - 1) for value in penalty)  # as much beside each other sample as before
    found = model.loo_.prediction[:, 0]
    moved, expected = [], []
    for i in range(0, N, 4):
        refit = GradientFeatureRegressor(network(), penalty=heavier, **GIVEN).fit(X, y, without(i))
        expected.append(refit.predict(X[i : i + 1])[0] - model.predict(X[i : i + 1])[0])
        moved.append(found[i] - model.predict(X[i : i + 1])[0])
    assert np.corrcoef(moved, expected)[0, 1] > 0.99
    assert model.loo_.r2 < model.score(X, y)
    with pytest.raises(ConfigurationError, match="accuracy"):
        _ = model.loo_.accuracy
    with pytest.raises(ConfigurationError, match="probabilities"):
        _ = model.loo_.proba


def test_a_class_without_each_sample_is_a_fit_without_it() -> None:
    X, y = samples()
    y, penalty = classes(y), (0.02, 0.05)
    model = classifier(penalty=penalty, solver="dual").fit(X, y)
    heavier = tuple(value * N / (N - 1) for value in penalty)
    own = np.searchsorted(model.classes_, y)
    before, moved, expected = np.log(model.predict_proba(X)), [], []
    for i in range(0, N, 4):
        refit = classifier(penalty=heavier, solver="dual").fit(X, y, without(i))
        expected.append(np.log(refit.predict_proba(X[i : i + 1])[0, own[i]]) - before[i, own[i]])
        moved.append(np.log(model.loo_.proba[i, own[i]]) - before[i, own[i]])
    assert np.corrcoef(moved, expected)[0, 1] > 0.98
    assert model.loo_.log_loss.value > -before[np.arange(N), own].mean()
    assert 0 <= model.loo_.accuracy.value <= 1


@pytest.mark.parametrize("top", [None, 3])
def test_influence_is_what_a_fit_without_a_sample_changes(top: int | None) -> None:
    X, y = samples()
    penalty, new = (0.02, 0.05), np.random.default_rng(1).normal(size=(6, 4))
    model = classifier(penalty=penalty, solver="dual").fit(X, classes(y))
    chosen = model.predict_proba(new).argmax(1)
    heavier = tuple(value * N / (N - 1) for value in penalty)
    before = np.log(model.predict_proba(new))[range(6), chosen]
    found = model.influence(new, top=top)
    columns = found.samples if top else np.tile(np.arange(N), (6, 1))
    nats = found.nats if top else found
    pairs = []
    for i in range(0, N, 4):
        refit = classifier(penalty=heavier, solver="dual").fit(X, classes(y), without(i))
        after = np.log(refit.predict_proba(new))[range(6), chosen]
        pairs += [
            (nats[row][columns[row] == i].item(), after[row] - before[row]) for row in range(6) if i in columns[row]
        ]
    assert np.corrcoef(np.array(pairs).T)[0, 1] > 0.97
    if top:
        assert (np.diff(np.abs(nats), axis=1) <= 0).all()


def test_weights_of_zero_are_no_samples() -> None:
    X, y = samples()
    weight = np.ones(N)
    weight[[2, 5]] = 0
    model = classifier(penalty=(0.02, 0.05)).fit(X, classes(y), weight)
    other = classifier(penalty=(0.02, 0.05)).fit(np.delete(X, [2, 5], 0), np.delete(classes(y), [2, 5]))
    assert list(model.loo_.samples[:4]) == [0, 1, 3, 4]
    torch.testing.assert_close(model.loo_.logits, other.loo_.logits)


def test_a_model_from_a_file_has_answers_when_it_has_its_data_again(tmp_path: Path) -> None:
    X, y = samples()
    model = classifier(penalty=(0.02, 0.05)).fit(X, classes(y))
    expected = model.loo_.logits
    again = (load(model.save(tmp_path / "m.safetensors"), network()), pickle.loads(pickle.dumps(model)))
    for other in (*again, copy.deepcopy(model)):
        with pytest.raises(ConfigurationError, match="recall"):
            _ = other.loo_
        torch.testing.assert_close(other.recall(X, classes(y)).loo_.logits, expected, rtol=1e-6, atol=1e-8)
        with pytest.raises(DataError, match="not the samples"):
            other.recall(X[::-1], classes(y))
        torch.testing.assert_close(other.loo_.logits, expected, rtol=1e-6, atol=1e-8)  # as it was
        with pytest.raises(DataError, match="classes are others"):
            other.recall(X, np.where(classes(y) == "low", "least", classes(y)))


def test_what_has_no_answers_says_so() -> None:
    X, y = samples()
    with pytest.raises(AttributeError):
        _ = classifier().loo_
    tuned = classifier(mode="finetune", epochs=1).fit(X, classes(y))
    with pytest.raises(ConfigurationError, match="no linear model"):
        _ = tuned.loo_
    adam = classifier(solver="adam", epochs=1).fit(X, classes(y))
    with pytest.raises(ConfigurationError, match="optimum"):
        _ = adam.loo_
    model = classifier(penalty=(0.02, 0.05)).fit(X, classes(y))
    for top in (0, N + 1):
        with pytest.raises(ConfigurationError, match="top must be"):
            model.influence(X, top=top)


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
@pytest.mark.parametrize(
    "settings",
    [{"mode": "activation"}, {"mode": "gradient"}, {"rounds": 2}, {"effort": "auto"}, {"solver": "dual"}],
    ids=str,
)
def test_every_linear_model_has_finite_answers(settings: dict[str, Any]) -> None:
    X, y = samples(60)
    model = classifier(**{**settings, "precision": "auto"}).fit(X.astype(np.float32), classes(y))
    assert bool(torch.isfinite(model.loo_.logits).all())
    assert str(model.loo_).startswith("accuracy without a test set")
    variance = model.predict_variance(X[:3].astype(np.float32))
    assert variance.shape == (3, 3, 3)
    assert (np.linalg.eigvalsh(variance) > -1e-6).all()


def test_several_labels_and_two_samples_of_a_class() -> None:
    X, y = samples()
    indicator = np.stack([y > 0, y > 0.5], 1).astype(float)
    indicator[0, 0] = np.nan
    model = classifier(penalty=(0.02, 0.05)).fit(X, indicator)
    assert model.loo_.quality.shape == (N,)
    assert model.loo_.prediction.shape == (N, 2)
    few = classifier().fit(X[:2], np.array([0, 1]))
    assert bool(torch.isfinite(few.loo_.logits).all())


def test_versions_of_a_sample_are_left_out_together() -> None:
    generator = np.random.default_rng(0)
    half = generator.normal(size=(30, 1, 6, 3))
    X = np.concatenate([half, half[..., ::-1]], 3)  # each image is its own mirror image
    y = np.arange(30) % 3

    def fitted(augment: str | None) -> GradientFeatureClassifier:
        torch.manual_seed(0)
        small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh())
        given = {**GIVEN, "solver": "dual", "penalty": (0.02, 0.05)}  # to the end of the precision
        return GradientFeatureClassifier(small, augment=augment, **given).fit(X, y)

    twice, once = fitted("mirror"), fitted(None)
    torch.testing.assert_close(twice.loo_.logits, once.loo_.logits, rtol=1e-9, atol=1e-10)
    new = np.concatenate([half[:4] + 0.1, half[:4, ..., ::-1] + 0.1], 3)
    np.testing.assert_allclose(twice.influence(new), once.influence(new), rtol=1e-8, atol=1e-10)
