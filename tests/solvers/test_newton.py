"""The minimum over a span against SciPy's trust-region Newton method in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, OneHotSquared, Squared
from gradfeat.solvers.newton import Span

N, C, K = 30, 4, 3
LOSSES = [CrossEntropy(), MultiLabelLogistic(), Squared(), OneHotSquared()]
RIDGES = [1.0, 1e-2, 1e-4, 1e-1, 1e-6]  # in no order, so that what is kept of one is of little use for the next


def data(loss: Loss, *, separable: bool = False) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    known = [torch.randn(N, C, dtype=torch.float64, generator=generator) for _ in range(K)]
    classes = torch.arange(N) % C
    if separable:
        known[0][torch.arange(N), classes] += 8
    y = classes
    if loss.task == "multilabel":
        y = torch.nn.functional.one_hot(classes, C).double()
        y[::5, 1] = torch.nan
    elif loss.task == "regression":
        y = torch.randn(N, C, dtype=torch.float64, generator=generator)
    share = torch.rand(N, dtype=torch.float64, generator=generator)
    return known, y, share / share.sum()


def oracle(known: list[Tensor], y: Tensor, loss: Loss, share: Tensor, ridge: Tensor) -> float:
    """Return the least objective, by derivatives of torch's own."""
    joined = torch.stack(known, 2)

    def objective(x: Tensor) -> Tensor:
        losses = loss.per_sample(joined @ x[:K] + x[K:], y)
        return (share * losses).sum() + 0.5 * (ridge * x[:K].square()).sum()

    def value(x: np.ndarray) -> float:
        return float(objective(torch.from_numpy(x)))

    def gradient(x: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(x).requires_grad_()
        return torch.autograd.grad(objective(leaf), leaf)[0].numpy()

    def hessian(x: np.ndarray) -> np.ndarray:
        return torch.autograd.functional.hessian(objective, torch.from_numpy(x)).numpy()

    options = {"gtol": 1e-9, "maxiter": 10000}
    found = scipy.optimize.minimize(
        value, np.zeros(K + C), jac=gradient, hess=hessian, method="trust-exact", options=options
    )
    return float(found.fun)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("warm", [False, True], ids=["from zero", "from the last"])
def test_every_penalty_of_a_path_has_its_minimum(loss: Loss, warm: bool) -> None:
    known, y, share = data(loss)
    span = Span(known, y, loss, share, outputs=C)
    found = None
    for penalty in RIDGES:
        ridge = penalty * torch.arange(1.0, K + 1)
        found = span.minimum(ridge, found if warm else None)
        assert found.objective == pytest.approx(oracle(known, y, loss, share, ridge), rel=1e-7)


@pytest.mark.parametrize("order", [1, -1], ids=["from heavy to light", "from light to heavy"])
def test_where_the_loss_vanishes_a_kept_hessian_does_no_harm(order: int) -> None:
    loss = CrossEntropy()
    known, y, share = data(loss, separable=True)
    span = Span(known, y, loss, share, outputs=C)
    found = None
    for penalty in (1e-1, 1e-3, 1e-5, 1e-7)[::order]:
        ridge = torch.full((K,), penalty)
        found = span.minimum(ridge, found)
        assert found.objective == pytest.approx(oracle(known, y, loss, share, ridge), rel=1e-2)


def test_parts_add_up() -> None:
    loss = CrossEntropy()
    known, y, share = data(loss)
    ridge = torch.full((K,), 1e-2)
    whole = Span(known, y, loss, share, outputs=C).minimum(ridge)
    for most_kept in (1 << 20, 0):
        seven = 7 * C * K  # samples at a time, the last part with 2
        parts = Span(known, y, loss, share, outputs=C, chunk=seven, most_kept=most_kept).minimum(ridge)
        torch.testing.assert_close(parts.coefficients, whole.coefficients, rtol=1e-6, atol=0)
        torch.testing.assert_close(parts.bias.softmax(0), whole.bias.softmax(0), rtol=1e-6, atol=0)


def test_without_directions_the_bias_gives_the_frequencies() -> None:
    y = torch.tensor([0, 0, 0, 1])
    share = torch.full((4,), 0.25, dtype=torch.float64)
    found = Span([], y, CrossEntropy(), share, outputs=2).minimum(torch.zeros(0))
    frequencies = torch.tensor([0.75, 0.25], dtype=torch.float64)
    torch.testing.assert_close(found.bias.softmax(0), frequencies, rtol=1e-5, atol=0)
