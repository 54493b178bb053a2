"""Leverages and fits without a sample, against refits of the same convex problem in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.solvers.coordinates import Coordinates
from gradfeat.solvers.leverage import Hessian, Removed, Rows, curvature_root, remove_each
from gradfeat.solvers.subspace import Penalties

N, C, R, K = 30, 3, 4, 7
PENALTIES = Penalties(0.03, 0.05)


def rows(seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    f, along = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((N, R), (N, C, K)))
    zeros = torch.zeros(N, C, C, dtype=torch.float64)
    return Rows(f, zeros[:, 0, 0], Coordinates(along, zeros))


def targets(name: str) -> tuple[Loss, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "squared":
        return Squared(), torch.randn(N, C, generator=generator, dtype=torch.float64)
    if name == "logistic":
        y = torch.randint(0, 2, (N, C), generator=generator).double()
        y[0, 1] = torch.nan
        return MultiLabelLogistic(), y
    return CrossEntropy(), torch.randint(0, C, (N,), generator=generator)


def fitted(found: Rows, loss: Loss, y: Tensor, share: Tensor) -> Tensor:
    """Return θ of the optimum, (size,)."""
    ridge = torch.full((found.size,), PENALTIES.lambda2, dtype=torch.float64)
    ridge[: R * C], ridge[R * C : (R + 1) * C] = PENALTIES.lambda1, 0

    def objective(theta: Tensor) -> Tensor:
        return share @ loss.per_sample(found.logits(theta), y) + 0.5 * ridge @ theta.square()

    def both(point: object) -> tuple[float, object]:
        theta = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = objective(theta)
        (slope,) = torch.autograd.grad(value, theta)
        return float(value), slope.numpy()

    theta = torch.from_numpy(minimize(both, torch.zeros(found.size).numpy(), jac=True, tol=1e-10).x)
    for _ in range(3):  # to the end of the precision
        slope = torch.func.grad(objective)(theta)
        theta = theta - torch.linalg.pinv(torch.func.hessian(objective)(theta), hermitian=True) @ slope
    return theta


def own_slope_removed(hessian: Hessian, found: Rows, pull: Tensor) -> Removed:
    whitened = hessian.whitened(found)
    return remove_each(whitened, hessian.root, (whitened.mT @ pull[:, :, None])[:, :, 0])


@pytest.mark.parametrize("name", ["squared", "logistic", "cross_entropy"])
def test_the_fit_without_each_sample(name: str) -> None:
    (loss, y), found = targets(name), rows()
    share = torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.5
    share /= share.sum()
    theta = fitted(found, loss, y, share)
    logits = found.logits(theta)
    hessian = Hessian(found, logits, y, loss, share, PENALTIES)
    pull = share[:, None] * loss.slope(logits, y)
    removed = own_slope_removed(hessian, found, pull)
    moves, predicted = [], []
    for i in range(N):
        others = share.clone()
        others[i] = 0
        refit = found.logits(fitted(found, loss, y, others))
        moves.append(refit - logits)
        predicted.append(found.logits(hessian.other_half(removed.half[i][:, None])[:, 0]))
        torch.testing.assert_close(predicted[-1][i], removed.own[i], rtol=1e-6, atol=1e-9)
    actual, step = torch.stack(moves), torch.stack(predicted)
    if name == "cross_entropy":  # which does not see a shift of all logits
        actual, step = actual - actual.mean(2, keepdim=True), step - step.mean(2, keepdim=True)
    if name == "squared":
        torch.testing.assert_close(step, actual, rtol=1e-5, atol=1e-7)
    else:
        own = torch.arange(N)
        for a, b in ((actual, step), (actual[own, own], step[own, own])):
            assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99
            assert float((a - b).norm() / a.norm()) < 0.2


def test_covariances_are_those_of_the_inverse_hessian() -> None:
    (loss, y), found = targets("cross_entropy"), rows()
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    logits = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    hessian = Hessian(found, logits, y, loss, share, PENALTIES)
    x = found.times(torch.eye(C, dtype=torch.float64).expand(N, -1, -1))
    root = curvature_root(loss, logits, y)
    torch.testing.assert_close(
        root @ root.mT, torch.stack([p.diag() - p[:, None] * p for p in logits.softmax(1)]), rtol=1e-9, atol=1e-12
    )
    dense = torch.einsum("n,nap,nab,nbq->pq", share, x, root @ root.mT, x)
    ridge = torch.full((found.size,), PENALTIES.lambda2, dtype=torch.float64)
    ridge[: R * C], ridge[R * C : (R + 1) * C] = PENALTIES.lambda1, 0
    exact = x @ torch.linalg.pinv(dense + ridge.diag(), hermitian=True, rtol=1e-12) @ x.mT
    shift = torch.eye(C, dtype=torch.float64) - 1 / C
    torch.testing.assert_close(shift @ hessian.covariances(found) @ shift, shift @ exact @ shift, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["squared", "cross_entropy"])
def test_what_is_left_of_a_sample_is_as_a_feature_that_no_other_has(name: str) -> None:
    (loss, y), found = targets(name), rows()
    own = 0.7 * torch.randn(N, C, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    apart = torch.zeros(N, C, 2 * N, dtype=torch.float64)
    for i in range(N):
        apart[i, :, 2 * i : 2 * i + 2] = own[i]
    whole = replace(found, gradients=Coordinates(torch.cat([found.gradients.along, apart], 2), found.gradients.rest))
    brief = replace(found, gradients=Coordinates(found.gradients.along, own @ own.mT))
    share = torch.full((N,), 1 / N, dtype=torch.float64)
    logits = torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pull = share[:, None] * loss.slope(logits, y)
    one, other = (
        own_slope_removed(h, r, pull).own + (h.rest(r) @ pull[:, :, None])[:, :, 0]
        for r in (whole, brief)
        for h in [Hessian(r, logits, y, loss, share, PENALTIES)]
    )
    centred = 0 if name == "squared" else 1
    torch.testing.assert_close(
        one - centred * one.mean(1, keepdim=True), other - centred * other.mean(1, keepdim=True), rtol=1e-6, atol=1e-9
    )


def test_a_sample_that_alone_decides_its_logits_gives_finite_ones() -> None:
    loss, found = CrossEntropy(), rows()
    found = replace(found, f=1e8 * found.f)
    y, share = torch.arange(N) % C, torch.full((N,), 1 / N, dtype=torch.float64)
    logits = 40 * torch.nn.functional.one_hot(y, C).double()
    hessian = Hessian(found, logits, y, loss, share, PENALTIES)
    pull = share[:, None] * loss.slope(logits, y)
    assert bool(torch.isfinite(own_slope_removed(hessian, found, pull).own).all())
