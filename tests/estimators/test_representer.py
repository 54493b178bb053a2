"""Newton's method in the dual through the estimators: the same problem as the subspace solver's, solved exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, linearize, load
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, GradfeatWarning
from gradfeat.fit import Plan, prepare, solve
from gradfeat.fit.dual import MOST, DualSolver
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic

PAIR = (0.01, 0.002)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 10), nn.Tanh())


def data(n: int = 60, *, labels: str = "classes", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    if labels == "classes":
        return X, (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 0.8)
    Y = np.stack([X[:, 0] * X[:, 1] > 0, X[:, 2] > 0, X[:, 3] + X[:, 4] > 0], 1).astype(float)
    Y[::9, 1] = np.nan
    return X, Y


def classifier(**settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{"theta2": "*", "random_state": 0, "solver": "dual", **settings})


def objective(model: Any, X: np.ndarray, y: np.ndarray, loss: Loss) -> float:
    logits = torch.from_numpy(model.decision_function(X))
    w2 = sum(float(value.double().square().sum()) for value in model.w2_.values())
    w1 = float(model.w1_.double().square().sum()) if model.mode == "full" else 0.0
    return float(loss.value(logits, torch.as_tensor(y))) + 0.5 * (PAIR[0] * w1 + PAIR[1] * w2)


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("labels", ["classes", "indicator"])
def test_lower_than_the_subspace_solver_and_close(labels: str, mode: str) -> None:
    X, y = data(labels=labels)
    loss = CrossEntropy() if labels == "classes" else MultiLabelLogistic()
    settings = {"penalty": PAIR, "precision": "float64", "mode": mode}
    dual, subspace = (classifier(solver=solver, **settings).fit(X, y) for solver in ("dual", "subspace"))
    assert (dual.solution_.solver, dual.solution_.converged, dual.choice_) == ("dual", True, None)
    assert dual.solution_.gradient <= 1e-9
    own, other = objective(dual, X, y, loss), objective(subspace, X, y, loss)
    assert dual.solution_.objective == [pytest.approx(own, rel=1e-9)]
    assert own <= other * (1 + 1e-12)
    assert own == pytest.approx(other, rel=1e-3)  # where the subspace solver stops by itself
    assert other <= own * (1 + subspace.solution_.gap)
    assert subspace.solution_.gap < 0.01


@pytest.mark.parametrize("penalty", [1e-3, 1e-5], ids=str)
def test_light_penalties_are_those_in_force_in_single_precision_too(penalty: float) -> None:
    X, y = data(100)

    def explicit(model: GradientFeatureClassifier) -> float:
        logits = torch.from_numpy(model.decision_function(X))
        norms = sum(float(v.double().square().sum()) for v in (model.w1_, *model.w2_.values()))
        return float(CrossEntropy().value(logits, torch.as_tensor(y))) + 0.5 * penalty * norms

    single, double = (classifier(penalty=penalty, precision=name).fit(X, y) for name in ("float32", "float64"))
    assert explicit(double) == pytest.approx(double.solution_.objective[-1], rel=1e-9)
    assert explicit(single) == pytest.approx(explicit(double), rel=1e-3)
    assert single.solution_.objective[-1] == pytest.approx(explicit(double), rel=1e-3)
    subspace = classifier(penalty=penalty, solver="subspace").fit(X, y)
    assert explicit(subspace) == pytest.approx(explicit(double), rel=0.03)
    assert explicit(subspace) <= explicit(double) * (1 + subspace.solution_.gap)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_penalty_below_rounding_is_raised_and_said(precision: str) -> None:
    with pytest.warns(GradfeatWarning, match="λ₂ = 1e-14 is below what can be told from rounding, and .* was taken$"):
        classifier(penalty=(0.01, 1e-14), precision=precision).fit(*data())


def test_the_same_penalties_are_chosen_as_by_the_subspace_solver() -> None:
    X, y = data(150)
    dual, subspace = (classifier(solver=solver, metric="plain").fit(X, y) for solver in ("dual", "subspace"))
    assert str(dual.choice_) == str(subspace.choice_)
    assert dual.choice_.gradients
    X_test, y_test = data(500, seed=1)
    probe = classifier(mode="activation", solver="auto").fit(X, y)
    assert dual.score(X_test, y_test) > probe.score(X_test, y_test) + 0.05
    assert "Newton steps for 150 samples × 3 outputs, gradient" in str(dual.solution_)


def test_saved_merged_weighted_and_mirrored(tmp_path: Any) -> None:
    X, y = data()
    weight = np.where(np.arange(60) < 45, 1.0 + np.arange(60) % 2, 0.0)
    twice = np.r_[np.arange(45), np.flatnonzero(weight == 2)]
    settings = {"penalty": PAIR, "precision": "float64"}
    model, repeated = classifier(**settings).fit(X, y, weight), classifier(**settings).fit(X[twice], y[twice])
    np.testing.assert_allclose(model.predict_proba(X), repeated.predict_proba(X), atol=1e-6)
    again = load(model.save(tmp_path / "model.safetensors"), backbone=network())
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=1e-5)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(24, 1, 6, 6)).astype(np.float32)
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mirrored = GradientFeatureClassifier(backbone, augment="mirror", solver="dual", penalty=PAIR, random_state=0)
    mirrored.fit(images, (images.mean((1, 2, 3)) > 0).astype(int))
    assert mirrored.solution_.converged
    assert "48 samples" not in str(mirrored.solution_)  # versions are not samples


def test_a_problem_too_large_is_refused() -> None:
    n = MOST // 3 + 1
    X, y = data(n)
    torch.manual_seed(0)
    lin = linearize(nn.Linear(6, 2).double(), torch.from_numpy(X[:3]), "*")
    problem = prepare(lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=0.1)
    plan = Plan(solver="dual")
    with pytest.raises(
        ConfigurationError, match=rf"up to {MOST:,} samples × outputs of cross_entropy loss, not {n:,} × 3: take "
    ):
        solve(problem, plan)
    refusal = DualSolver().refusal(problem.subset(torch.arange(n - 1)), plan)
    assert refusal is None or "more than is free" in refusal
