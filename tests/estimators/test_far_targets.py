"""Targets far from zero beside their spread: the same model as of the targets less their mean."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from gradfeat import GradientFeatureRegressor, compare, load
from gradfeat.errors import DataError, GradfeatWarning

FAR = 2.0**27  # 1.3e8: single precision has steps of 16 there, and adding it to such targets rounds by 1e-8
SOLVED: dict[str, dict[str, Any]] = {
    "activation": {"mode": "activation"},
    "gradient-dual": {"mode": "gradient", "solver": "dual"},
    "full-dual": {"mode": "full", "solver": "dual"},
    "full-subspace": {"mode": "full", "solver": "subspace", "penalty": 0.02},
    "gradient-subspace": {"mode": "gradient", "solver": "subspace", "penalty": 0.02},
    "full-adam": {"mode": "full", "solver": "adam", "epochs": 3},
    "gradient-sgd": {"mode": "gradient", "solver": "sgd", "epochs": 2},
    "finetune": {"mode": "finetune", "epochs": 2},
    "rounds": {"mode": "full", "rounds": 30},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())


def data(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and targets that adding `FAR` does not round; nor, of a power of two of them, the mean."""
    X = np.random.default_rng(0).normal(size=(n, 4))
    return X, np.round((X[:, 0] * X[:, 1] + X[:, 2]) * 2**16) / 2**16


def regressor(**settings: Any) -> GradientFeatureRegressor:
    return GradientFeatureRegressor(network(), **{"theta2": "*", "random_state": 0, **settings})


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
@pytest.mark.parametrize("settings", SOLVED.values(), ids=SOLVED)
def test_a_shift_of_the_targets_shifts_the_predictions(settings: dict[str, Any], tmp_path: Path) -> None:
    X, y = data()
    near, far = regressor(**settings).fit(X, y), regressor(**settings).fit(X, y + FAR)
    np.testing.assert_allclose(far.predict(X) - FAR, near.predict(X), atol=1e-6)
    assert far.score(X, y + FAR) == pytest.approx(near.score(X, y), abs=1e-6)
    assert far.b_.dtype == torch.float64
    loaded = load(far.save(tmp_path / "far.safetensors"), network())
    for same in (loaded, pickle.loads(pickle.dumps(far))):
        np.testing.assert_array_equal(same.predict(X), far.predict(X))
        assert torch.equal(same.b_, far.b_)


def test_weights_are_those_of_the_values() -> None:
    """w₁ᵀf + b is the prediction, with the mean in b; and the probe's likewise."""
    X, y = data()
    model = regressor(mode="activation", penalty=0.1).fit(X, y + FAR)
    f = model.backbone_.network(torch.from_numpy(X).float()).detach().double()
    for weight, bias in ((model.w1_, model.b_), (model.probe_.omega, model.probe_.bias)):
        np.testing.assert_allclose((f @ weight.double() + bias)[:, 0], model.predict(X), atol=1e-6)


@pytest.mark.parametrize("solver", ["dual", "subspace"])
def test_several_targets_with_weights(solver: str) -> None:
    X, y = data(50)
    shift = np.array([FAR, -FAR / 4, 0.0])
    targets = np.stack([y, X[:, 3].round(2), X[:, 0].round(2)], 1)
    weight = np.where(np.arange(50) % 3 == 0, 0.0, 1.0 + np.arange(50) % 2)
    far = targets + shift
    far[weight == 0] = 7e11  # which do not count, in the mean either
    settings = {"solver": solver, "penalty": 0.05}
    near = regressor(**settings).fit(X, targets, sample_weight=weight).predict(X)
    found = regressor(**settings).fit(X, far, sample_weight=weight).predict(X)
    np.testing.assert_allclose(found - shift, near, atol=2e-3)


def test_ordinary_targets_are_those_of_an_oracle() -> None:
    """Ridge regression on the activations in double precision, whatever the mean."""
    X, y = data()
    for mean in (0.0, 3.0, 1e10):
        model = regressor(mode="activation", penalty=0.1, precision="float64").fit(X, y + mean)
        f = model.backbone_.network(torch.from_numpy(X).float()).detach().double().numpy()
        centred = f - f.mean(0)
        w = np.linalg.solve(centred.T @ centred / len(f) + 0.1 * np.eye(8), centred.T @ (y - y.mean()) / len(f))
        np.testing.assert_allclose(model.predict(X) - mean, centred @ w + y.mean(), atol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1e8 + 1 / 3, -1e300])
def test_a_constant_is_met_exactly(value: float) -> None:
    X, _ = data(20)
    model = regressor(mode="activation", penalty=0.1).fit(X, np.full(20, value))
    assert (model.predict(X) == value).all()


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_compare_judges_values() -> None:
    X, y = data()
    near, far = (
        compare(network(), X[:40], y[:40] + mean, X[40:], y[40:] + mean, modes=["activation", "full"],
                task="regression", theta2="*", random_state=0, penalty=0.05)
        for mean in (0.0, FAR)
    )  # fmt: skip
    for one, other in zip(near.rows, far.rows, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-5)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_a_merged_network_says_what_its_precision_cannot_hold() -> None:
    X, y = data()
    with pytest.warns(GradfeatWarning, match="values near 1.34e.08 are 16 apart"):
        merged = regressor(mode="activation", penalty=0.1).fit(X, y + FAR).merge(X, y + FAR)
    assert merged.report is not None
    assert merged.report.merged["r2"] < 0.5 < merged.report.linear["r2"] + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradfeatWarning)
        model = regressor(mode="activation", penalty=0.1).fit(X, y + 1000)
        merged = model.merge(X, y + 1000)
    values = merged(torch.from_numpy(X).float()).detach().double()[:, 0]
    np.testing.assert_allclose(values, model.predict(X), atol=2e-4)
    assert r2_score(y + 1000, values) == pytest.approx(merged.report.merged["r2"], abs=1e-3)  # type: ignore[union-attr]


def test_targets_of_any_size() -> None:
    X, y = data()
    whole = regressor(mode="full", solver="dual").fit(X, y).score(X, y)
    for size in (1e-10, 1e10):
        assert regressor(mode="full", solver="dual").fit(X, y * size).score(X, y * size) == pytest.approx(
            whole, abs=1e-3
        )
    with pytest.warns(GradfeatWarning, match="divide y"):
        regressor(mode="activation").fit(X, y * 1e-20)
    with pytest.raises(DataError, match="single precision does not hold: divide y"):
        regressor(mode="activation").fit(X, y * 1e160)


def test_targets_that_are_further_apart_than_numbers_go() -> None:
    X, y = data()
    with pytest.raises(DataError, match="further apart"):
        regressor(mode="activation").fit(X, np.where(y > 0, 1.7e308, -1.7e308))
