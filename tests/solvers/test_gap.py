"""`converged` means that the objective is at most 1e-4 above its minimum, and `gap` bounds how far it is."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils import compute_sample_weight
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import GradfeatWarning
from gradfeat.losses import Loss
from gradfeat.solvers.dual import relative_gap
from gradfeat.solvers.subspace import GAP

N, C = 24, 3
PENALTIES = ((1e-4, 1e-3), (0.1, 0.02), (1e-3, 1e-5))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N, 1, 2, 4)).astype(np.float32)
    a, b = X[:, 0, 0, 0] * X[:, 0, 1, 1], X[:, 0, 0, 2]
    if kind == "squared":
        return X, np.stack([a + 5, b, rng.normal(size=N)], 1)
    if kind == "logistic":
        y = np.stack([a > 0, b > 0.5, rng.normal(size=N) > 0], 1).astype(float)
        y[::5, 1] = np.nan
        return X, y
    return X, np.digitize(a + 0.3 * b, [-0.8, 0.4])


def fitted(kind: str, pair: tuple[float, float], mode: str, weights: str, **settings: Any) -> tuple[Any, Tensor]:
    """Return a fitted model, and the share of each sample in its loss."""
    X, y = data(kind)
    weight = np.random.default_rng(2).gamma(0.5, size=N) + 0.01 if weights == "given" else None
    settings = {"theta2": "*", "penalty": pair, "mode": mode, "random_state": 0, **settings}
    share = np.ones(N) if weight is None else weight
    if kind == "squared":
        model: Any = GradientFeatureRegressor(network(), **settings)
    else:
        balanced = "balanced" if weights == "balanced" and y.ndim == 1 else None
        loss = kind if kind == "one_hot_squared" else "auto"
        model = GradientFeatureClassifier(network(), class_weight=balanced, loss=loss, **settings)
        share = share * compute_sample_weight(balanced, y) if balanced else share
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        model.fit(X, y, sample_weight=weight)
    return model, torch.as_tensor(share / share.sum(), dtype=torch.float64)


def true_gap(model: Any, kind: str, pair: tuple[float, float], share: Tensor) -> float:
    """Return by how much the objective of a model's weights exceeds its minimum, both by dense double precision."""
    X, labels = data(kind)
    y = torch.as_tensor(labels)
    images = torch.as_tensor(X).double()
    if model.augment == "mirror":
        images, y, share = torch.cat([images, images.flip(-1)]), torch.cat([y, y]), torch.cat([share, share]) / 2
    y = y - model.loss_.mean if kind == "squared" else y
    exact = network().double()
    theta2 = dict(exact.named_parameters())
    names = list(model.w2_)
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(exact, p, (images,)))(theta2)
    f = exact(images).detach()
    omega = model.omega_.double()
    phi = torch.einsum("ndp,dk->nkp", torch.cat([jacobian[name].flatten(2) for name in names], 2).detach(), omega)
    blocks, ridge = [phi], [torch.full((phi.shape[2],), pair[1])]
    parts = [torch.cat([model.w2_[name].flatten() for name in names])]
    if model.mode == "full":
        blocks.append(torch.einsum("nd,kl->nkdl", f, torch.eye(C).double()).flatten(2))
        ridge.append(torch.full((blocks[1].shape[2],), pair[0]))
        parts.append(model.w1_.flatten())
    blocks.append(torch.eye(C).double().expand(len(f), C, C))
    design, penalty = torch.cat(blocks, 2), torch.cat([*ridge, torch.zeros(C)]).double()
    b = model.b_.double() - (model.loss_.mean if kind == "squared" else 0)
    own = torch.cat([*(part.double() for part in parts), b])
    objective = _objective(design, penalty, y, model.loss_, share)
    return float(objective(own) / _minimum(objective, design.shape[2]) - 1)


def _objective(design: Tensor, penalty: Tensor, y: Tensor, loss: Loss, share: Tensor) -> Any:
    def objective(weights: Tensor) -> Tensor:
        return share @ loss.per_sample(design @ weights, y) + 0.5 * penalty @ weights.square()

    return objective


def _minimum(objective: Any, size: int) -> Tensor:
    """Return the minimum by Newton's method with halved steps, to the last digit."""
    point = torch.zeros(size, dtype=torch.float64)
    best = objective(point)
    for _ in range(100):
        hessian = torch.func.hessian(objective)(point)
        step = torch.linalg.lstsq(hessian, torch.func.grad(objective)(point)[:, None], driver="gelsd").solution[:, 0]
        lengths = (objective(point - 0.5**k * step) for k in range(30))
        k, found = next(((k, value) for k, value in enumerate(lengths) if value < best), (0, best))
        if not found < best:
            break
        point, gain, best = point - 0.5**k * step, best - found, found
        if gain < 1e-15 * best:
            break
    return best


CASES = [
    *itertools.product(["squared", "cross_entropy"], PENALTIES, ["full", "gradient"], ["given"], ["subspace"]),
    *itertools.product(["squared", "cross_entropy"], PENALTIES[:2], ["full", "gradient"], ["given"], ["dual"]),
    *itertools.product(["logistic"], PENALTIES[:1], ["full"], ["given"], ["subspace", "dual"]),
    *itertools.product(["one_hot_squared"], PENALTIES[1:2], ["full"], ["given"], ["subspace", "dual"]),
    *itertools.product(["cross_entropy"], PENALTIES, ["full"], ["balanced"], ["subspace"]),
]


@pytest.mark.parametrize(("kind", "pair", "mode", "weights", "solver"), CASES)
def test_the_gap_bounds_how_far_the_optimum_is(kind: str, pair: Any, mode: str, weights: str, solver: str) -> None:
    model, share = fitted(kind, pair, mode, weights, solver=solver)
    solution, true = model.solution_, true_gap(model, kind, pair, share)
    assert solution.converged == (solution.gap <= GAP)
    assert true <= solution.gap * (1 + 1e-3) + 2e-5  # weights and features are in single precision
    if pair != PENALTIES[2]:
        assert solution.converged
        assert true <= 1e-4


@pytest.mark.parametrize(("solver", "mode"), [("subspace", "full"), ("dual", "gradient")])
def test_mirror_images_count_in_the_gap(solver: str, mode: str) -> None:
    pair = PENALTIES[0]
    model, share = fitted("cross_entropy", pair, mode, "given", solver=solver, augment="mirror", precision="float64")
    assert model.solution_.converged
    assert -1e-9 <= true_gap(model, "cross_entropy", pair, share) <= model.solution_.gap + 1e-9


@pytest.mark.parametrize("solver", ["subspace", "dual"])
def test_in_double_precision_the_bound_holds_to_the_digit(solver: str) -> None:
    for kind, pair in itertools.product(["squared", "cross_entropy"], PENALTIES):
        model, share = fitted(kind, pair, "full", "given", solver=solver, precision="float64")
        assert model.solution_.converged
        assert -1e-9 <= true_gap(model, kind, pair, share) <= model.solution_.gap + 1e-9


def test_what_has_not_converged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.fit.subspace.GIVEN_ITERATIONS", 3)
    X, y = data("squared")
    settings: dict[str, Any] = {"theta2": "*", "random_state": 0, "solver": "subspace", "penalty": (1e-4, 1e-3)}
    with pytest.warns(GradfeatWarning, match="not converged: subspace: 3 iterations"):
        solution = GradientFeatureRegressor(network(), **settings).fit(X, y).solution_
    assert not solution.converged
    assert solution.gap > GAP


def test_a_raised_penalty_is_not_the_one_that_was_asked_for() -> None:
    """The gap is that of the penalties given; with others in force the objective is far above its minimum."""
    model, share = fitted("squared", (1e-4, 1e-9), "full", "none", solver="dual")
    assert not model.solution_.converged
    assert true_gap(model, "squared", (1e-4, 1e-9), share) > 1e-2
    raised, share = fitted("squared", (1e-4, 5e-7), "full", "none", solver="dual")
    assert raised.solution_.gap >= true_gap(raised, "squared", (1e-4, 5e-7), share) * (1 - 1e-3) - 2e-5


def test_a_relative_gap() -> None:
    assert relative_gap(0.5, 1.5) == pytest.approx(0.5)
    assert relative_gap(-1e-20, 0.0) == relative_gap(0.0, 1.0) == 0.0
    assert relative_gap(1.0, 1.0) == relative_gap(math.inf, 1.0) == math.inf
