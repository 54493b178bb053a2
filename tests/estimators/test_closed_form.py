"""The closed form through the estimators: when it is taken, what it chooses, and that its model is an ordinary one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, linearize, load
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, GradfeatWarning
from gradfeat.fit import Plan, Problem, prepare, select_solver, solve
from gradfeat.fit.table import FEW, MANY_OUTPUTS
from gradfeat.losses import Squared


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh())


def data(n: int = 60, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    return X, X[:, 0] * X[:, 1]


SETTINGS: dict[str, Any] = {"theta2": "*", "random_state": 0}


def regressor(**settings: Any) -> GradientFeatureRegressor:
    return GradientFeatureRegressor(network(), **{**SETTINGS, **settings})


def classifier(**settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{**SETTINGS, "loss": "one_hot_squared", **settings})


def objective(model: Any, X: np.ndarray, y: np.ndarray, pair: tuple[float, float]) -> float:
    w2 = sum(float(value.double().square().sum()) for value in model.w2_.values())
    norms = pair[0] * float(model.w1_.double().square().sum()) + pair[1] * w2
    return 0.5 * (float(np.mean(np.sum((model.predict(X).reshape(len(y), -1) - y) ** 2, 1))) + norms)


@pytest.mark.parametrize("outputs", [None, 1, 3])
def test_the_same_optimum_as_the_subspace_solver(outputs: int | None) -> None:
    X, y = data()
    target = y if outputs is None else np.stack([y, X[:, 2], y * X[:, 3]], 1)[:, :outputs]
    pair = (0.05, 0.1)
    dual, subspace = (
        regressor(solver=solver, penalty=pair, precision="float64").fit(X, target) for solver in ("dual", "subspace")
    )
    assert dual.predict(X).shape == target.shape
    assert dual.solution_.solver == "dual"
    assert dual.choice_ is None
    rows = target.reshape(len(X), -1)
    own, other = objective(dual, X, rows, pair), objective(subspace, X, rows, pair)
    assert dual.solution_.objective == [pytest.approx(own, rel=1e-9)]
    assert own <= other * (1 + 1e-12)
    assert own == pytest.approx(other, rel=0.03)  # where the subspace solver stops by itself


@pytest.mark.parametrize("parametrization", ["standard", "ntk_fan_in"])
def test_the_same_predictions_in_another_parametrization(parametrization: str) -> None:
    X, y = data()
    settings = {"penalty": (0.05, 0.001), "precision": "float64", "parametrization": parametrization}
    dual, subspace = (regressor(solver=solver, **settings).fit(X, y) for solver in ("dual", "subspace"))
    np.testing.assert_allclose(dual.predict(X), subspace.predict(X), atol=0.1)
    assert dual.score(X, y) > 0.5  # by the gradients: the product of two inputs is not linear


def problem_of(n: int, outputs: int = 1) -> Problem:
    """Return a problem of a squared loss, its penalty given, in a network of a few weights."""
    X, y = data(n)
    torch.manual_seed(0)
    lin = linearize(nn.Linear(6, 2).double(), torch.from_numpy(X[:3]), "*")
    targets = torch.from_numpy(y)[:, None].expand(-1, outputs)
    return prepare(lin, Inputs(X), targets, Squared(), penalty=0.1, cache="none")


def test_auto_takes_it_for_few_samples_of_a_squared_loss() -> None:
    X, y = data()
    few = regressor().fit(X, y)
    assert few.solution_.solver == "dual"
    assert "closed form of 60 samples × 1 outputs" in str(few.solution_)
    classes = (y > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        assert classifier(loss="cross_entropy", penalty=0.01).fit(X, classes).solution_.solver == "subspace"
        assert regressor(rounds=2).fit(X, y).solution_.solver != "dual"
    for n, outputs, expected in (
        (FEW, 1, "dual"),
        (FEW + 1, 1, "subspace"),
        (FEW // 2, 2, "dual"),
        (FEW // 2 + 1, 2, "subspace"),
        (MANY_OUTPUTS // 100, 10, "dual"),
        (MANY_OUTPUTS // 100 + 1, 10, "subspace"),
    ):
        assert select_solver(problem_of(n, outputs), Plan())[0] == expected, (n, outputs)


def test_leave_one_out_chooses_gradients_where_they_help() -> None:
    X, y = data(150)
    X_test, y_test = data(400, seed=1)
    full, probe = regressor().fit(X, y), regressor(mode="activation").fit(X, y)
    assert full.choice_.gradients
    assert full.score(X_test, y_test) > probe.score(X_test, y_test) + 0.1
    without = min(tried.loss for tried in full.choice_.path if not tried.gradients)
    assert full.choice_.loss < without


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_gradients_gain_nothing_where_labels_are_chance() -> None:
    gains = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(36, 40)), rng.integers(0, 4, size=36)
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 40), nn.ReLU())
        model = GradientFeatureClassifier(backbone, solver="dual", **SETTINGS, loss="one_hot_squared").fit(X, y)
        losses = [[tried.loss for tried in model.choice_.path if tried.gradients == with_] for with_ in (0, 1)]
        gains.append(1 - min(losses[1]) / min(losses[0]))
        if not model.choice_.gradients:
            assert model.solution_ is None
            assert all(not value.any() for value in model.w2_.values())
    # an ω̄ that has seen the label which it is judged by gains three in a hundred
    assert abs(np.mean(gains)) < 0.02


def test_saved_merged_and_repeated(tmp_path: Any) -> None:
    X, y = data()
    one, two = regressor(precision="float64").fit(X, y), regressor(precision="float64").fit(X, y)
    assert all(torch.equal(one.w2_[name], two.w2_[name]) for name in one.w2_)
    path = one.save(tmp_path / "model.safetensors")
    np.testing.assert_allclose(load(path, backbone=network()).predict(X), one.predict(X), atol=1e-5)
    assert one.merge(X, y).report is not None


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("augment", [None, "mirror"])
def test_images_and_their_mirror_images(mode: str, augment: str | None) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 1, 6, 6)).astype(np.float32)
    y = X[:, 0, :3].mean((1, 2))
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = GradientFeatureRegressor(backbone, mode=mode, augment=augment, solver="dual", random_state=0).fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    assert model.choice_.loss < 0.5 * np.var(y)


def test_compare_says_which_solver_it_was() -> None:
    X, y = data(40)
    table = compare(network(), X, y, X, y, modes=["full"], task="regression", theta2="*", random_state=0)
    assert "dual: closed form of 40 samples × 1 outputs" in table.rows[0].note


# ---- small and degenerate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.repeat(data(10)[0], 4, 0), np.repeat(data(10)[1], 4)),
        (data(1)[0], np.array([1.0])),
        (data(2)[0], np.array([0.0, 1.0])),
        (data(3)[0], np.array([0.0, 1.0, 5.0])),
        (np.ones((20, 6)), np.arange(20.0)),
        (data(20)[0], np.ones(20)),
        (data(4)[0], np.random.default_rng(0).normal(size=(4, 9))),
    ],
    ids=["duplicates", "one", "two", "three", "constant-features", "constant-targets", "more-outputs-than-samples"],
)
@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_small_and_degenerate_data(X: np.ndarray, y: np.ndarray, mode: str) -> None:
    for penalty in ("auto", 0.0):
        model = regressor(mode=mode, solver="dual", penalty=penalty).fit(X, y)
        assert np.isfinite(model.predict(X)).all()
        assert all(torch.isfinite(value).all() for value in model.w2_.values())


@pytest.mark.parametrize("per_class", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_many_classes_with_few_samples(per_class: int) -> None:
    y = np.repeat(np.arange(8), per_class)
    X = np.random.default_rng(0).normal(size=(len(y), 6)) + y[:, None] / 3
    model = classifier().fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


def test_a_penalty_below_rounding_is_raised_and_said() -> None:
    X, y = data()
    said = "λ₂ = 1e-12 is below what can be told from rounding, and .* was taken"
    with pytest.warns(GradfeatWarning, match=f"{said}; precision='float64' goes further"):
        regressor(penalty=(1e-3, 1e-12), precision="float32").fit(X, y)
    with pytest.warns(GradfeatWarning, match=f"{said}$"):
        regressor(penalty=(1e-3, 1e-12), precision="float64").fit(X, y)


def test_no_penalty_fits_the_data() -> None:
    X, y = data(20)
    model = regressor(solver="dual", penalty=0.0, precision="float64").fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=1e-4)


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_weights_of_zero_are_as_good_as_absent() -> None:
    X, y = data(45)
    weight = np.where(np.arange(45) < 30, 1.0 + np.arange(45) % 2, 0.0)
    whole = regressor(solver="dual").fit(X, y, sample_weight=weight)
    part = regressor(solver="dual").fit(X[:30], y[:30], sample_weight=weight[:30])
    np.testing.assert_allclose(whole.predict(X), part.predict(X), atol=1e-6)
    twice = np.r_[np.arange(30), np.flatnonzero(weight == 2)]
    given = {"solver": "dual", "penalty": (0.1, 0.2), "precision": "float64"}
    repeated = regressor(**given).fit(X[twice], y[twice])
    np.testing.assert_allclose(regressor(**given).fit(X, y, weight).predict(X), repeated.predict(X), atol=1e-6)


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_rounds_are_of_the_subspace_solver() -> None:
    with pytest.raises(ConfigurationError, match="rounds other than 1 are of mode='full' with solver='subspace'"):
        regressor(solver="dual", rounds=2).fit(*data(20))


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    problem = problem_of(50_000, 10)  # its kernel takes terabytes
    with pytest.raises(ConfigurationError, match="more than is free: take solver='subspace'"):
        solve(problem, Plan(solver="dual"))
