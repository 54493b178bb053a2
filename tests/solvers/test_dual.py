"""The closed form of the squared loss against dense solutions, refits without a sample, and the subspace solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor, nn

from gradfeat import tangent_kernel
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.linearization import Linearization, linearize
from gradfeat.losses import Squared
from gradfeat.samples.store import SampleStore
from gradfeat.solvers.dual import Dual
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.kernel import gram
from gradfeat.solvers.subspace import Activations, Objective, Penalties, Subspace

N, C, D = 14, 3, 5
PAIR = (0.05, 0.02)


def network(kind: str) -> tuple[Linearization, Tensor]:
    torch.manual_seed(0)
    if kind == "convolution":
        made = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1, groups=2)
        )
        made = nn.Sequential(made, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, D))
        x = torch.randn(N, 2, 6, 6).double()
    else:
        made = nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, D))
        x = torch.randn(N, 4).double()
    return linearize(made.double(), x[:3], "*"), x


def jacobian(lin: Linearization, omega: Tensor, x: Tensor) -> Tensor:
    """Return Φ as a matrix, (n · c, |θ₂|), by autograd of the network itself."""
    z0 = lin.bottom(x)

    def outputs(theta2: dict[str, Tensor]) -> Tensor:
        return lin.network(theta2, z0) @ omega

    parts = torch.func.jacrev(outputs)(dict(lin.theta2))
    return torch.cat([parts[name].flatten(2) for name in lin.theta2], 2).flatten(0, 1).detach()


def data(seed: int = 0, *, rank: int = 30, n: int = N, c: int = C) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradient features (n, c, rank), activations, targets and weights."""
    generator = torch.Generator().manual_seed(seed)
    phi, f, y = (torch.randn(*shape, generator=generator).double() for shape in ((n, c, rank), (n, D), (n, c)))
    return phi, f + 3, y + 1, 0.2 + torch.rand(n, generator=generator).double()


def dense(
    phi: Tensor, f: Tensor | None, y: Tensor, share: Tensor, w1: float, w2: float
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return w₁, b and w₂ of the objective by least squares over every weight."""
    n, c, rank = phi.shape
    d = 0 if f is None else f.shape[1]
    eye = torch.eye(c).double()
    parts = [phi, eye.expand(n, c, c)]
    if f is not None:
        parts.insert(1, torch.einsum("nd,kl->nkdl", f, eye).reshape(n, c, d * c))
    design = torch.cat(parts, 2).reshape(n * c, -1) * share.sqrt().repeat_interleave(c)[:, None]
    ridge = torch.tensor([w2] * rank + [w1] * (d * c) + [0.0] * c, dtype=torch.float64).sqrt()
    joined = torch.cat([design, ridge.diag()])
    right = torch.cat([(share.sqrt()[:, None] * y).flatten(), torch.zeros(len(ridge)).double()])
    x = torch.linalg.lstsq(joined, right[:, None], driver="gelsd").solution[:, 0]
    head = None if f is None else x[rank : rank + d * c].view(d, c)
    return head, x[rank + d * c :], x[:rank]


def dual_of(phi: Tensor, f: Tensor | None, y: Tensor, weight: Tensor, **settings: int) -> Dual:
    rows = phi.flatten(0, 1)
    return Dual(rows @ rows.T, f, y, weight, **settings)


# ---- the kernel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_kernel_is_that_of_the_dense_jacobian(kind: str) -> None:
    lin, x = network(kind)
    omega = torch.randn(D, C).double()
    phi = jacobian(lin, omega, x)
    torch.testing.assert_close(tangent_kernel(lin, omega, x), phi @ phi.T, rtol=1e-10, atol=1e-12)
    between = tangent_kernel(lin, omega, x[:5], x[5:])
    torch.testing.assert_close(between, (phi @ phi.T)[: 5 * C, 5 * C :], rtol=1e-10, atol=1e-12)


def test_kernel_is_symmetric_and_positive_in_single_precision_too() -> None:
    lin, x = network("convolution")
    omega = torch.randn(D, C)
    kernel = tangent_kernel(lin.to(dtype=torch.float32), omega, x.float())
    assert kernel.dtype == torch.float64
    assert torch.equal(kernel, kernel.T)
    values = torch.linalg.eigvalsh(kernel)
    assert float(values[0]) > -1e-14 * len(values) * float(values[-1])


@pytest.mark.parametrize("samples", [1, 4, 5])
def test_kernel_in_blocks_of_a_small_memory(samples: int) -> None:
    lin, x = network("linear")
    features = GradientFeatures(
        SampleStore(lin, Inputs(x), cache="z0"), torch.randn(D, C).double(), parametrization="ntk_fan_in", batch_size=3
    )
    row = 4 * sum(value.numel() for value in lin.theta2.values())
    whole = gram(features)
    torch.testing.assert_close(gram(features, budget=2 * samples * C * row), whole, rtol=1e-13, atol=1e-13)
    phi = torch.stack([features.forward(_unit(lin, i), torch.arange(N)).flatten() for i in range(row // 4)], 1)
    torch.testing.assert_close(whole, phi @ phi.T, rtol=1e-10, atol=1e-12)


def _unit(lin: Linearization, place: int) -> dict[str, Tensor]:
    flat = torch.zeros(sum(value.numel() for value in lin.theta2.values())).double()
    flat[place] = 1
    parts = flat.split([value.numel() for value in lin.theta2.values()])
    return {name: part.view(value.shape) for part, (name, value) in zip(parts, lin.theta2.items(), strict=True)}


def test_kernel_refuses_what_does_not_fit() -> None:
    lin, x = network("linear")
    with pytest.raises(ConfigurationError, match=r"omega must be of shape \(5, c\)"):
        tangent_kernel(lin, torch.ones(D + 1, C), x)
    with pytest.raises(ConvergenceError, match="not finite"):
        tangent_kernel(lin, torch.full((D, C), math.inf), x)


# ---- the solution ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("rank", [6, 30, 90], ids=lambda rank: f"rank-{rank}")
@pytest.mark.parametrize("pair", [PAIR, (1e-4, 10.0), (3.0, 1e-5)])
def test_solution_is_the_dense_one(pair: tuple[float, float], rank: int, mode: str) -> None:
    phi, f, y, weight = data(rank=rank)
    own = f if mode == "full" else None
    share = weight / weight.sum()
    w1, b, w2 = dense(phi, own, y, share, *pair)
    point = dual_of(phi, own, y, weight).at(pair[0]).solve(pair[1])
    torch.testing.assert_close(phi.flatten(0, 1).T @ point.a.flatten() / point.w2_penalty, w2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(point.bias, b, rtol=1e-9, atol=1e-9)
    predicted = phi @ w2 + b
    if w1 is not None:
        assert point.w1 is not None
        torch.testing.assert_close(point.w1, w1, rtol=1e-9, atol=1e-9)
        predicted = predicted + f @ w1
    penalized = pair[1] * w2.square().sum() + (0.0 if w1 is None else pair[0] * w1.square().sum())
    objective = 0.5 * ((share @ (predicted - y).square()).sum() + penalized)
    assert point.objective == pytest.approx(float(objective), rel=1e-8)


@pytest.mark.parametrize("mode", ["full", "gradient"])
def test_subspace_solver_reaches_the_same_objective(mode: str) -> None:
    lin, x = network("convolution")
    store, omega, y = SampleStore(lin, Inputs(x)), torch.randn(D, C).double(), data()[2]
    weight, features = data()[3], GradientFeatures(store, omega, parametrization="ntk_fan_in")
    f = store.features if mode == "full" else None
    subspace = Subspace(
        features,
        None if f is None else Activations(f, torch.arange(N), weight),
        Objective(y, Squared(), torch.arange(N), weight),
        start=store.features @ omega,
        generator=torch.Generator().manual_seed(0),
    )
    found, solution = subspace.solve(Penalties(*PAIR), tolerance=1e-9, iterations=200)
    assert solution.converged
    dual = Dual(gram(features), f, y, weight)
    point = dual.at(PAIR[0]).solve(PAIR[1])
    assert point.objective == pytest.approx(found.objective, rel=1e-7)
    assert point.objective <= found.objective * (1 + 1e-12)
    assert dual.unit == pytest.approx(subspace.unit, rel=0.6)  # which estimates the trace by random signs


def test_ridge_of_scikit_learn_without_the_gradient_term() -> None:
    _, f, y, weight = data()
    model = Ridge(alpha=PAIR[0] * float(weight.sum())).fit(f.numpy(), y.numpy(), sample_weight=weight.numpy())
    point = dual_of(data()[0], f, y, weight).at(PAIR[0]).solve(math.inf)
    assert point.w1 is not None
    np.testing.assert_allclose(point.w1.numpy(), model.coef_.T, rtol=1e-9)
    np.testing.assert_allclose(point.bias.numpy(), model.intercept_, rtol=1e-9)


# ---- leave-one-out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("pair", [PAIR, (1e-3, 5.0), (1.0, 1e-4), (0.1, math.inf)])
@pytest.mark.parametrize("n", [2, N])
def test_leave_one_out_is_a_refit_without_the_sample(n: int, pair: tuple[float, float], mode: str) -> None:
    phi, f, y, weight = data(n=n)
    share = weight / weight.sum()
    own = f if mode == "full" else None
    found = dual_of(phi, own, y, weight).at(pair[0]).leave_one_out(pair[1])
    if pair[1] == math.inf:
        phi, pair = phi * 0, (pair[0], 1.0)
    for i in range(n):
        keep = torch.arange(n) != i
        w1, b, w2 = dense(phi[keep], None if own is None else own[keep], y[keep], share[keep], *pair)
        predicted = phi[i] @ w2 + b + (0.0 if w1 is None else f[i] @ w1)
        torch.testing.assert_close(found[i], y[i] - predicted, rtol=1e-8, atol=1e-8)


def test_leave_one_out_of_scikit_learn() -> None:
    _, f, y, _ = data()
    alphas = [0.01, 0.3, 5.0]
    model = RidgeCV(alphas, store_cv_results=True).fit(f.numpy(), y.numpy())
    dual = dual_of(data()[0], f, y, torch.ones(N))
    for j, alpha in enumerate(alphas):
        errors = dual.at(alpha / N).leave_one_out(math.inf)
        np.testing.assert_allclose(errors.square().numpy(), model.cv_results_[:, :, j], rtol=1e-7)


def test_versions_of_a_sample_are_left_out_together() -> None:
    phi, f, y, weight = data()
    y[N // 2 :], weight[N // 2 :] = y[: N // 2], weight[: N // 2]
    share = weight / weight.sum()
    found = dual_of(phi, f, y, weight, views=2).at(PAIR[0]).leave_one_out(PAIR[1])
    for i in range(N):
        keep = torch.arange(N) % (N // 2) != i % (N // 2)
        w1, b, w2 = dense(phi[keep], f[keep], y[keep], share[keep], *PAIR)
        assert w1 is not None
        torch.testing.assert_close(found[i], y[i] - (phi[i] @ w2 + b + f[i] @ w1), rtol=1e-8, atol=1e-8)


# ---- where a matrix is singular -------------------------------------------------------------------------------------


def test_duplicates() -> None:
    phi, f, y, weight = data()
    point = dual_of(phi, f, y, weight).at(PAIR[0]).solve(PAIR[1])
    twice = [torch.cat([value, value]) for value in (phi, f, y, weight)]
    doubled = dual_of(*twice).at(PAIR[0])
    same = doubled.solve(PAIR[1])
    assert same.objective == pytest.approx(point.objective, rel=1e-10)
    torch.testing.assert_close(same.w1, point.w1, rtol=1e-8, atol=1e-9)
    assert bool(torch.isfinite(doubled.leave_one_out(PAIR[1])).all())


@pytest.mark.parametrize("mode", ["full", "gradient"])
def test_no_penalty_is_the_least_norm_of_all_that_fit(mode: str) -> None:
    phi, f, y, weight = data(rank=90)
    own = f if mode == "full" else None
    path = dual_of(phi, own, y, weight).at(0.0)
    point = path.solve(0.0)
    w2 = phi.flatten(0, 1).T @ point.a.flatten() / point.w2_penalty
    predicted = phi @ w2 + point.bias + (0.0 if point.w1 is None else f @ point.w1)
    torch.testing.assert_close(predicted, y, rtol=0, atol=1e-5)
    if mode == "gradient":  # least norm: in the span of the centred rows
        centred = (phi - (weight / weight.sum() @ phi.flatten(1)).view(C, -1)).flatten(0, 1)
        target = (y - (weight / weight.sum()) @ y).flatten()
        torch.testing.assert_close(w2, torch.linalg.pinv(centred, rtol=1e-10) @ target, rtol=0, atol=1e-5)
    assert bool(torch.isfinite(path.leave_one_out(0.0)).all())


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_constant_features_predict_the_mean(penalty: float) -> None:
    phi, f, y, weight = data()
    phi, f = phi[:1].expand_as(phi), f[:1].expand_as(f)
    path = dual_of(phi, f, y, weight).at(penalty)
    point = path.solve(penalty)
    assert point.w1 is not None
    predicted = phi @ (phi.flatten(0, 1).T @ point.a.flatten() / point.w2_penalty) + f @ point.w1 + point.bias
    share = weight / weight.sum()
    torch.testing.assert_close(predicted, (share @ y).expand(N, C), rtol=1e-6, atol=1e-6)
    others = (share @ y - share[:, None] * y) / (1 - share[:, None])
    torch.testing.assert_close(path.leave_one_out(penalty), y - others, rtol=1e-6, atol=1e-6)


def test_one_sample_has_nothing_to_be_predicted_from() -> None:
    phi, f, y, weight = data(n=1)
    path = dual_of(phi, f, y, weight).at(PAIR[0])
    point = path.solve(PAIR[1])
    assert point.objective == pytest.approx(0, abs=1e-12)
    assert not bool(torch.isfinite(path.leave_one_out(PAIR[1])).any())


def test_refuses_shapes_and_weights_that_do_not_fit() -> None:
    phi, f, y, weight = data()
    with pytest.raises(DataError, match=r"kernel must be of shape \(42, 42\)"):
        Dual(torch.eye(N), f, y, weight)
    with pytest.raises(DataError, match="finite weights above zero"):
        dual_of(phi, f, y, weight * (torch.arange(N) > 0))
