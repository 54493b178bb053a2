"""Several models as one: joint fits against fits of all the data, averages and ensembles, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, combine, load
from gradfeat.errors import ConfigurationError, DataError

GIVEN = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0, "penalty": (0.02, 0.05)}
N, GAP = 60, 1e-9


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())


def samples() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(N, 4))
    return X, X[:, 0] * X[:, 1] + X[:, 2] + 0.1 * generator.normal(size=N)


def classes(y: np.ndarray) -> np.ndarray:
    return np.array(["low", "middle", "high"])[np.digitize(y, [-0.5, 0.5])]


def classifier(**settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{**GIVEN, **settings})


def halves() -> tuple[np.ndarray, np.ndarray, Any, Any]:
    X, y = samples()
    y = classes(y)
    return X, y, classifier().fit(X[:30], y[:30]), classifier().fit(X[30:], y[30:])


def test_two_halves_jointly_are_the_fit_of_all() -> None:
    X, y, a, b = halves()
    whole = classifier(solver="dual").fit(X, y)
    joint = combine([a, b], gap=GAP)
    assert joint.solution_.gap <= GAP
    torch.testing.assert_close(joint.logits(X), whole.logits(X), rtol=0, atol=2e-3)
    torch.testing.assert_close(joint.loo_.logits, whole.loo_.logits, rtol=0, atol=3e-3)
    assert "60 samples of 2 models" in joint.how_["combined"]
    less = joint.update(remove=range(30, 60), gap=GAP)  # the second one taken away again
    torch.testing.assert_close(
        less.logits(X), classifier(solver="dual").fit(X[:30], y[:30]).logits(X), rtol=0, atol=2e-3
    )


def test_three_models_of_different_classes_jointly(tmp_path: Path) -> None:
    X, y = samples()
    y = classes(y)
    pairs = [("low", "middle"), ("high", "low")]
    parts = [np.flatnonzero(np.isin(y, names)) for names in pairs]
    models = [classifier().fit(X[rows], y[rows]) for rows in parts]
    models[1] = load(models[1].save(tmp_path / "m.safetensors"), network()).recall(X[parts[1]], y[parts[1]])
    joint = combine(models, gap=GAP)
    rows = np.concatenate(parts)
    whole = classifier(solver="dual").fit(X[rows], y[rows])
    assert list(joint.classes_) == ["high", "low", "middle"]
    torch.testing.assert_close(joint.logits(X), whole.logits(X), rtol=0, atol=2e-3)


def test_an_average_is_near_the_ensemble_and_says_how_near(tmp_path: Path) -> None:
    X, y, a, b = halves()
    mean, ensemble = combine([a, b], how="average"), combine([a, b], how="ensemble")
    worst = float((mean.logits(X) - ensemble.logits(X)).abs().max())
    assert f"at most {worst:.2g} from" in mean.how_["combined"]
    np.testing.assert_allclose(mean.w1_, (a.w1_ + b.w1_) / 2)
    assert mean.score(X, y) > 0.6
    assert ensemble.score(X, y) > 0.6
    torch.testing.assert_close(ensemble.logits(X), (a.logits(X) + b.logits(X)) / 2)
    torch.testing.assert_close(combine([a, copy.deepcopy(a)], how="average").logits(X), a.logits(X))
    torch.testing.assert_close(combine([a, b], how="average", weights=[1, 0]).logits(X), a.logits(X))
    again = load(mean.save(tmp_path / "m.safetensors"), network())
    torch.testing.assert_close(again.logits(X), mean.logits(X))
    with pytest.raises(ConfigurationError, match="recall"):
        _ = mean.loo_


def test_regressions() -> None:
    X, y = samples()
    a, b = (
        GradientFeatureRegressor(network(), **GIVEN).fit(X[rows], y[rows] + 5) for rows in (slice(30), slice(30, N))
    )
    whole = GradientFeatureRegressor(network(), **GIVEN).fit(X, y + 5)
    np.testing.assert_allclose(combine([a, b], gap=GAP).predict(X), whole.predict(X), atol=1e-3)
    np.testing.assert_allclose(combine([a, b], "ensemble").predict(X), (a.predict(X) + b.predict(X)) / 2)
    assert combine([a, b], "average").predict(X).shape == (N,)


def test_different_classes_side_by_side() -> None:
    X, y = samples()
    y, other = classes(y), np.where(X[:, 3] > 0, "up", "down")
    a, b = classifier().fit(X, y), classifier().fit(X, other)
    both = combine([a, b], "classes")
    assert list(both.classes_) == ["high", "low", "middle", "down", "up"]
    assert both.predict_proba(X).shape == (N, 5)
    own = both.logits(X)
    assert (own[:, :3].argmax(1) == a.logits(X).argmax(1)).all()
    assert (own[:, 3:].argmax(1) == b.logits(X).argmax(1)).all()
    assert set(both.predict(X)) <= set(both.classes_)
    with pytest.raises(ConfigurationError, match="several of these models have the class"):
        combine([a, a], "classes")
    with pytest.raises(ConfigurationError, match="different classes"):
        combine([a, b], "average")


def test_what_does_not_fit() -> None:
    X, y, a, b = halves()
    strange = GradientFeatureClassifier(network(1), **GIVEN).fit(X, y)
    for models, arguments, words in (
        ([a], {}, "two fitted"),
        ([a, "b"], {}, "two fitted"),
        ([a, b], {"how": "averag"}, "average"),
        ([a, b], {"weights": [1, 1]}, "weights are of"),
        ([a, strange], {}, "networks or weights"),
        ([a, classifier(mode="gradient").fit(X, y)], {}, "modes"),
        ([a, classifier(theta2="2").fit(X, y)], {}, "θ₂"),
        ([a, copy.deepcopy(b)], {}, "recall"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            combine(models, **arguments)
    for weights in ([1], [0, 0], [-1, 2], [float("nan"), 1]):
        with pytest.raises(DataError, match="weights must hold"):
            combine([a, b], "average", weights=weights)
    with pytest.warns(UserWarning, match="different penalties"):
        combine([a, classifier(penalty=(0.1, 0.1)).fit(X, y)])
