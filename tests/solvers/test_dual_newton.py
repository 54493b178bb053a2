"""Newton's method in the samples' space against dense solutions, scikit-learn and the subspace solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gradfeat.data import Inputs
from gradfeat.errors import ConvergenceError, DataError
from gradfeat.linearization import linearize
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.dual import Dual
from gradfeat.solvers.dual_newton import DualProblem, NewtonPoint, curvature_unit, newton_dual
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.kernel import gram
from gradfeat.solvers.subspace import Activations, Objective, Penalties, Subspace

N, C, D = 14, 3, 5
PAIR = (0.05, 0.02)
LOSSES: list[Loss] = [CrossEntropy(), MultiLabelLogistic(), Squared()]


def data(loss: Loss, *, n: int = N, rank: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradient features (n, c, rank), activations, targets and weights."""
    generator = torch.Generator().manual_seed(0)
    phi, f, y = (torch.randn(*shape, generator=generator).double() for shape in ((n, C, rank), (n, D), (n, C)))
    if isinstance(loss, CrossEntropy):
        y = torch.arange(n) % C
    elif isinstance(loss, MultiLabelLogistic):
        y = (y > 0).double()
        y[::5, 1] = math.nan
    return phi, f + 3, y, 0.2 + torch.rand(n, generator=generator).double()


def newton(
    phi: Tensor, f: Tensor | None, y: Tensor, loss: Loss, weight: Tensor, pair: tuple[float, float] = PAIR
) -> NewtonPoint:
    rows = phi.flatten(0, 1)
    return newton_dual(DualProblem(rows @ rows.T, f, y, loss, weight, C), *pair)


def weights(phi: Tensor, point: NewtonPoint) -> Tensor:
    return phi.flatten(0, 1).T @ point.a.flatten() / point.w2_penalty


def logits(phi: Tensor, f: Tensor | None, point: NewtonPoint) -> Tensor:
    moved = phi @ weights(phi, point) + point.bias
    return moved if f is None or point.w1 is None else moved + f @ point.w1


def dense(
    phi: Tensor, f: Tensor | None, y: Tensor, loss: Loss, weight: Tensor, pair: tuple[float, float]
) -> tuple[float, Tensor]:
    """Return the objective's minimum over every weight, and the logits there, by Newton's method."""
    rank = phi.shape[2]
    d = 0 if f is None else f.shape[1]
    share = weight / weight.sum()

    def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:rank], x[rank : rank + d * C].view(d, C), x[rank + d * C :]

    def predicted(x: Tensor) -> Tensor:
        w2, w1, b = split(x)
        return phi @ w2 + b + (0.0 if f is None else f @ w1)

    def objective(x: Tensor) -> Tensor:
        w2, w1, _ = split(x)
        norms = pair[1] * w2.square().sum() + pair[0] * w1.square().sum()
        return share @ loss.per_sample(predicted(x), y) + 0.5 * norms

    x = torch.zeros(rank + d * C + C, dtype=torch.float64)
    value, gradient, hessian = objective, torch.func.grad(objective), torch.func.hessian(objective)
    for _ in range(100):  # Newton's method; the least step where shifts of all logits are not seen
        slope = gradient(x)
        if float(slope.norm()) < 1e-11:
            break
        step = torch.linalg.pinv(hessian(x), hermitian=True) @ slope
        size, descent = 1.0, float(slope @ step)
        while value(x - size * step) > value(x) - 1e-4 * size * descent and size > 1e-8:
            size /= 2
        x = x - size * step
    return float(value(x)), predicted(x)


@pytest.mark.parametrize("pair", [PAIR, (1e-3, 3.0), (2.0, 1e-3)])
@pytest.mark.parametrize("rank", [6, 90], ids=lambda rank: f"rank-{rank}")
@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_solution_is_the_dense_one(loss: Loss, mode: str, rank: int, pair: tuple[float, float]) -> None:
    phi, f, y, weight = data(loss, rank=rank)
    own = f if mode == "full" else None
    point = newton(phi, own, y, loss, weight, pair)
    optimum, expected = dense(phi, own, y, loss, weight, pair)
    assert point.converged
    assert point.objective == pytest.approx(optimum, rel=1e-9)
    found = logits(phi, own, point)
    if isinstance(loss, CrossEntropy):  # which does not see a shift of all logits
        found, expected = (value - value.mean(1, keepdim=True) for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_certificate_is_the_gradient_in_all_weights() -> None:
    loss = CrossEntropy()
    phi, f, y, weight = data(loss)
    share, rows = weight / weight.sum(), phi.flatten(0, 1)
    for iterations in (0, 1, 2):
        point = newton_dual(DualProblem(rows @ rows.T, f, y, loss, weight, C), *PAIR, iterations=iterations)
        assert point.w1 is not None
        leaves = [weights(phi, point), point.w1, point.bias]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        w2, w1, b = leaves
        # centred features: b is then the logits' mean, as the certificate takes it
        centred = (phi - (share @ phi.flatten(1)).view(C, -1)) @ w2 + (f - share @ f) @ w1
        shift = (share @ phi.flatten(1)).view(C, -1) @ w2.detach() + share @ f @ w1.detach()
        value = share @ loss.per_sample(centred + shift + b, y)
        value = value + 0.5 * (PAIR[1] * w2.square().sum() + PAIR[0] * w1.square().sum())
        value.backward()
        norm = math.sqrt(sum(float(leaf.grad.square().sum()) for leaf in leaves if leaf.grad is not None))
        scale = math.sqrt(1 + float(share @ (f.square().sum(1) + phi.square().sum((1, 2)))))
        assert point.gradient == pytest.approx(norm / scale, rel=1e-9)
        assert not point.converged


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_subspace_solver_reaches_the_same_objective(loss: Loss, mode: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(N, 2, 6, 6).double()
    store = SampleStore(linearize(network.double(), x[:3], "*"), Inputs(x))
    omega = torch.randn(6, C).double()
    features = GradientFeatures(store, omega, parametrization="ntk_fan_in")
    y, weight = data(loss)[2:]
    f = store.features if mode == "full" else None
    start = store.features @ omega
    subspace = Subspace(
        features,
        None if f is None else Activations(f, torch.arange(N), weight),
        Objective(y, loss, torch.arange(N), weight),
        start=start,
        generator=torch.Generator().manual_seed(0),
    )
    found, solution = subspace.solve(Penalties(*PAIR), tolerance=1e-9, iterations=200)
    assert solution.converged
    kernel = gram(features)
    point = newton_dual(DualProblem(kernel, f, y, loss, weight, C), *PAIR)
    assert point.objective == pytest.approx(found.objective, rel=1e-6)
    assert point.objective <= found.objective * (1 + 1e-12)
    # the other estimates the trace by random signs
    assert curvature_unit(kernel, start, y, loss, weight) == pytest.approx(subspace.unit, rel=0.6)


def test_logistic_regression_of_scikit_learn() -> None:
    loss = CrossEntropy()
    phi, f, y, weight = data(loss)
    point = newton(phi * 0, f, y, loss, weight)
    model = LogisticRegression(C=1 / (PAIR[0] * float(weight.sum())), tol=1e-12, max_iter=5000)
    model.fit(f.numpy(), y.numpy(), sample_weight=weight.numpy())
    found, expected = logits(phi * 0, f, point).softmax(1).numpy(), model.predict_proba(f.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_closed_form_of_a_squared_loss() -> None:
    phi, f, y, weight = data(Squared())
    rows = phi.flatten(0, 1)
    point, closed = newton(phi, f, y, Squared(), weight), Dual(rows @ rows.T, f, y, weight).at(PAIR[0]).solve(PAIR[1])
    assert point.iterations <= 2  # a quadratic takes one step, and perhaps one for the rounding
    torch.testing.assert_close(point.a, closed.a, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(point.bias, closed.bias, rtol=1e-8, atol=1e-8)
    unit = curvature_unit(rows @ rows.T, f[:, :C], y, Squared(), weight)
    assert unit == pytest.approx(Dual(rows @ rows.T, f, y, weight).unit, rel=1e-12)


# ---- where a matrix is singular -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_duplicates_are_as_good_as_weights(loss: Loss) -> None:
    phi, f, y, weight = data(loss)
    point = newton(phi, f, y, loss, weight)
    same = newton(*(torch.cat([value, value]) for value in (phi, f, y)), loss, torch.cat([weight, weight]))
    assert same.converged
    assert same.objective == pytest.approx(point.objective, rel=1e-10)
    torch.testing.assert_close(weights(torch.cat([phi, phi]), same), weights(phi, point), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_constant_features_predict_the_class_shares(penalty: float) -> None:
    loss = CrossEntropy()
    phi, f, y, weight = data(loss)
    phi, f = phi[:1].expand_as(phi), f[:1].expand_as(f)
    point = newton(phi, f, y, loss, weight, (penalty, penalty))
    shares = torch.zeros(C).double().index_add(0, y, weight / weight.sum())
    torch.testing.assert_close(logits(phi, f, point).softmax(1), shares.expand(N, C), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_a_kernel_of_zeros(loss: Loss, penalty: float) -> None:
    phi, _, y, weight = data(loss)
    point = newton(phi * 0, None, y, loss, weight, (penalty, penalty))
    assert point.converged
    assert bool((weights(phi * 0, point) == 0).all())
    probabilities = loss.predict_proba(point.bias[None])[0]
    known = ~y.isnan() if y.ndim == 2 else None
    targets = nn.functional.one_hot(y, C).double() if known is None else y.nan_to_num()
    counted = weight[:, None] * (torch.ones(N, C) if known is None else known)
    torch.testing.assert_close(probabilities, (counted * targets).sum(0) / counted.sum(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
def test_no_penalty_on_data_that_can_be_fitted_stays_finite(loss: Loss) -> None:
    phi, f, y, weight = data(loss, rank=90)
    point = newton(phi, f, y, loss, weight, (0.0, 0.0))
    assert point.objective < 1e-3
    assert bool(torch.isfinite(weights(phi, point)).all())
    assert bool(torch.isfinite(point.bias).all())


def test_labels_that_are_all_alike_or_all_ignored() -> None:
    loss = MultiLabelLogistic()
    phi, f, y, weight = data(loss)
    y[:, 0], y[:, 1] = 1.0, math.nan
    point = newton(phi, f, y, loss, weight)
    found = logits(phi, f, point)
    assert bool(torch.isfinite(found).all())
    assert float(found[:, 0].sigmoid().min()) > 0.99


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_one_sample(loss: Loss) -> None:
    phi, f, y, weight = data(loss, n=1)
    y = torch.nan_to_num(y)
    point = newton(phi, f, y, loss, weight)
    assert bool(torch.isfinite(logits(phi, f, point)).all())


def test_rounding_that_is_worth_more_than_the_penalty() -> None:
    loss = CrossEntropy()
    phi, f, y, weight = data(loss, rank=2)
    rows = phi.flatten(0, 1)
    kernel = rows @ rows.T - 1e-4 * torch.eye(N * C).double()  # as of a low precision: not positive
    point = newton_dual(DualProblem(kernel, f, y, loss, weight, C), 0.1, 1e-9)
    assert math.isfinite(point.objective)
    assert bool(torch.isfinite(point.a).all())


def test_refuses_what_does_not_fit() -> None:
    phi, f, y, weight = data(CrossEntropy())
    with pytest.raises(DataError, match=r"kernel must be of shape \(42, 42\)"):
        DualProblem(torch.eye(N), f, y, CrossEntropy(), weight, C)
    with pytest.raises(DataError, match="finite weights above zero"):
        newton(phi, f, y, CrossEntropy(), weight * (torch.arange(N) > 0))
    with pytest.raises(ConvergenceError, match="the tangent kernel is not finite"):
        newton(phi * math.nan, f, y, CrossEntropy(), weight)
