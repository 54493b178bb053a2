"""Fitted estimators for changed data against fits of the changed data from nothing; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, load
from gradfeat.errors import ConfigurationError, DataError
from gradfeat.fit.update import Certificate

GIVEN = {"theta2": "*", "rounds": 1, "precision": "float64", "random_state": 0, "penalty": (0.02, 0.05)}
N, GAP = 60, 1e-9


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


def exact(X: np.ndarray, y: Any, weight: Any = None, **settings: Any) -> GradientFeatureClassifier:
    """Return the optimum by another solver."""
    return classifier(solver="dual", **settings).fit(X, y, weight)


def same(one: Any, other: Any, X: np.ndarray, atol: float = 2e-3) -> None:
    torch.testing.assert_close(one.logits(X), other.logits(X), rtol=0, atol=atol)


@pytest.mark.parametrize("solver", ["subspace", "dual"])
def test_without_samples_it_is_the_fit_of_the_others(solver: str) -> None:
    X, y = samples()
    gone = [3, 7, 8, 59]
    model = classifier(solver=solver).fit(X, classes(y))
    before = model.logits(X)
    new, refit = model.update(remove=gone, gap=GAP), exact(np.delete(X, gone, 0), np.delete(classes(y), gone))
    assert new.solution_.gap <= GAP
    same(new, refit, X)
    assert (before - new.logits(X)).abs().max() > 0.05
    torch.testing.assert_close(model.logits(X), before, rtol=0, atol=0)  # as it was
    torch.testing.assert_close(new.loo_.logits, refit.loo_.logits, rtol=0, atol=2e-3)
    assert len(new.loo_.samples) == N - len(gone)


def test_the_default_gap_is_a_certificate() -> None:
    X, y = samples()
    new, refit = classifier().fit(X, classes(y)).update(remove=[0]), exact(X[1:], classes(y)[1:])
    assert new.solution_.converged
    assert new.solution_.gap <= 1e-4
    found = Certificate.of(new.solution_, new.model_)
    assert found is not None
    assert float(np.linalg.norm(new.w1_ - refit.w1_)) <= found.w1
    distance = sum(float((new.w2_[name] - refit.w2_[name]).square().sum()) for name in new.w2_) ** 0.5
    assert distance <= found.w2 + 1e-9


def test_removed_and_added_again_is_where_it_began() -> None:
    X, y = samples()
    model = exact(X, classes(y))
    back = model.update(remove=[3, 7], gap=GAP).update(add=(X[[3, 7]], classes(y)[[3, 7]]), gap=GAP)
    same(back, model, X)
    order = [*np.delete(np.arange(N), [3, 7]), 3, 7]
    torch.testing.assert_close(back.loo_.logits, model.loo_.logits[order], rtol=0, atol=3e-3)


def test_other_labels() -> None:
    X, y = samples()
    y = classes(y)
    model, changed = classifier().fit(X, y), y.copy()
    changed[4], changed[9] = "high", "low"
    same(model.update(relabel={4: "high", np.int64(9): np.str_("low")}, gap=GAP), exact(X, changed), X)


def test_a_new_class_and_the_end_of_one() -> None:
    X, y = samples()
    y, more = classes(y), X[:6] + 3
    model = classifier().fit(X, y)
    model.class_names_ = ["High", "Low", "Middle"]
    new = model.update(add=(more, ["new"] * 6), gap=GAP)
    assert list(new.classes_) == ["high", "low", "middle", "new"]
    assert new.class_names_ == ["High", "Low", "Middle", "new"]
    same(new, exact(np.r_[X, more], [*y, *["new"] * 6]), X)
    less = new.update(remove=np.flatnonzero(y == "low"), gap=GAP)
    assert list(less.classes_) == ["high", "middle", "new"]
    assert less.class_names_ == ["High", "Middle", "new"]
    same(less, exact(np.r_[X[y != "low"], more], [*y[y != "low"], *["new"] * 6]), X)
    same(less.update(relabel=dict.fromkeys(range(5), "middle"), gap=GAP), less, X, atol=20)
    with pytest.raises(ConfigurationError, match="no gradient term"):
        model.update(add=(more, ["new"] * 6), omega="keep")


def test_omega_may_be_kept() -> None:
    X, y = samples()
    model = classifier().fit(X, classes(y))
    kept = model.update(remove=[3, 7], omega="keep", gap=GAP)
    torch.testing.assert_close(kept.omega_, model.omega_)
    assert "ω̄ kept" in kept.how_["update"]
    assert kept.solution_.gap <= GAP
    assert not torch.equal(model.update(remove=[3, 7]).omega_, model.omega_)
    assert bool(torch.isfinite(kept.loo_.logits).all())


@pytest.mark.parametrize("several", [False, True])
def test_a_regression(several: bool) -> None:
    X, y = samples()
    target = np.stack([y, X[:, 0]], 1) if several else y
    changed, more = target.copy(), target[:2] + 5
    changed[0] = 3
    model = GradientFeatureRegressor(network(), **GIVEN).fit(X, target)
    label = [3.0, 3.0] if several else 3.0
    new = model.update(add=(X[:2] + 1, more), remove=[1], relabel={0: label}, gap=GAP)
    data = np.r_[np.delete(X, 1, 0), X[:2] + 1], np.r_[np.delete(changed, 1, 0), more]
    refit = GradientFeatureRegressor(network(), **GIVEN).fit(*data)
    np.testing.assert_allclose(new.predict(X), refit.predict(X), atol=1e-3)
    assert new.predict(X).shape == target.shape


def test_several_labels_with_some_to_ignore() -> None:
    X, y = samples()
    indicator = np.stack([y > 0, y > 0.5], 1).astype(float)
    indicator[0, 0] = np.nan
    model = classifier().fit(X, indicator)
    new = model.update(remove=[5], add=(X[:2] + 1, np.array([[1, 0], [np.nan, 1]])), gap=GAP)
    data = np.r_[np.delete(X, 5, 0), X[:2] + 1], np.r_[np.delete(indicator, 5, 0), [[1, 0], [np.nan, 1]]]
    same(new, exact(*data), X)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"low": 3.0}], ids=str)
def test_weights(class_weight: Any) -> None:
    X, y = samples()
    y, weight = classes(y), np.random.default_rng(2).uniform(0.2, 1, N)
    weight[0], weight[[2, 5]] = 1, 0  # the heaviest is one: weights of added samples count beside it
    model = classifier(class_weight=class_weight).fit(X, y, weight)
    new = model.update(remove=[1, 2], add=(X[:3] + 1, ["low", "low", "high"], [0.5, 0, 2]), gap=GAP)
    data = np.r_[np.delete(X, [1, 2], 0), X[:3] + 1], [*np.delete(y, [1, 2]), "low", "low", "high"]
    refit = exact(*data, [*np.delete(weight, [1, 2]), 0.5, 0, 2], class_weight=class_weight)
    same(new, refit, X)
    assert list(new.loo_.samples) == list(refit.loo_.samples)


def test_without_a_gradient_term() -> None:
    X, y = samples()
    model = classifier(mode="activation").fit(X, classes(y))
    same(model.update(remove=[0, 1]), classifier(mode="activation").fit(X[2:], classes(y)[2:]), X, 1e-6)


def test_gradients_alone() -> None:
    X, y = samples()
    model = classifier(mode="gradient").fit(X, classes(y))
    same(model.update(remove=[0, 1], gap=GAP), exact(X[2:], classes(y)[2:], mode="gradient"), X)


@pytest.mark.parametrize("metric", ["plain", "whitened"])
def test_chosen_penalties_are_kept(metric: str) -> None:
    X, y = samples(200)
    model = classifier(penalty="auto", metric=metric).fit(X, classes(y))
    new = model.update(remove=[0, 1, 2])
    assert new.solution_.penalties == model.solution_.penalties
    assert new.solution_.metric == model.solution_.metric
    assert new.choice_ == model.choice_
    y = classes(y)
    assert abs(new.score(X, y) - model.score(X, y)) < 0.05
    assert new.update(add=(X[:3], y[:3])).loo_.proba.shape == (200, 3)


def test_the_file_of_an_updated_model(tmp_path: Path) -> None:
    X, y = samples()
    new = classifier().fit(X, classes(y)).update(remove=[3])
    again = load(new.save(tmp_path / "m.safetensors"), network())
    same(again, new, X, 1e-12)
    assert again.how_["update"] == new.how_["update"]
    with pytest.raises(ConfigurationError, match="recall"):
        again.update(remove=[0])
    data = np.delete(X, 3, 0), np.delete(classes(y), 3)
    same(again.recall(*data).update(remove=[0], gap=GAP), exact(data[0][1:], data[1][1:]), X)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"remove": [N]}, "index 60"),
        ({"remove": [-1]}, "index -1"),
        ({"remove": [1, 1]}, "twice"),
        ({"remove": [0.5]}, "whole numbers"),
        ({"remove": [True]}, "whole numbers"),
        ({"remove": range(N)}, "two at least"),
        ({"remove": range(N - 1)}, "two at least"),
        ({"relabel": {N: "low"}}, "index 60"),
        ({"relabel": {0: "lwo"}}, "did you mean"),
        ({"relabel": [(0, "low")]}, "dict"),
        ({"relabel": {0: ["low"]}}, "no class"),
        ({"remove": [0], "relabel": {0: "low"}}, "say one"),
        ({"add": (np.zeros((2, 5)), ["low", "low"])}, "features"),
        ({"add": (np.zeros((2, 4)), ["low"])}, "2 samples"),
        ({"add": (np.zeros((2, 4)), np.zeros((2, 3)))}, "shape"),
        ({"add": (np.zeros((2, 4)), [1, 2])}, "different kinds"),
        ({"add": (np.zeros((2, 4)), [None, "low"])}, "missing"),
        ({"add": (np.full((2, 4), np.nan), ["low", "low"])}, "NaN"),
        ({"add": (np.zeros((2, 4)), ["low", "low"], [-1, 1])}, "negative"),
        ({"add": np.zeros((2, 4))}, "pair"),
    ],
    ids=str,
)
def test_bad_data(changes: dict[str, Any], words: str) -> None:
    X, y = samples()
    model = classifier().fit(X, classes(y))
    before = model.logits(X)
    with pytest.raises(DataError, match=f"(?i){words}"):
        model.update(**changes)
    torch.testing.assert_close(model.logits(X), before, rtol=0, atol=0)


def test_two_samples_left_and_one_class_left() -> None:
    X, y = samples()
    y = classes(y)
    model = classifier().fit(X, y)
    two = [int(np.flatnonzero(y == name)[0]) for name in ("low", "high")]
    new = model.update(remove=[i for i in range(N) if i not in two], gap=GAP)
    same(new, exact(X[sorted(two)], y[sorted(two)]), X)
    with pytest.raises(DataError, match="one class"):
        model.update(remove=np.flatnonzero(y != "low"))


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_what_cannot_be_updated_says_so() -> None:
    X, y = samples(120)
    model = classifier().fit(X, classes(y))
    for arguments, words in (
        ({}, "something"),
        ({"remove": [0], "omega": "kep"}, "keep"),
        ({"remove": [0], "gap": 0}, "gap"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            model.update(**arguments)
    for settings, words in (
        ({"mode": "finetune", "epochs": 1}, "no linear model"),
        ({"solver": "adam", "epochs": 1}, "optimum"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            classifier(**settings).fit(X, classes(y)).update(remove=[0])
    moved = classifier(rounds=2, penalty="auto", precision="auto").fit(X.astype(np.float32), classes(y))
    if moved.rounds_ is not None and moved.rounds_.chosen is not None:
        with pytest.raises(ConfigurationError, match="rounds=1"):
            moved.update(remove=[0])
