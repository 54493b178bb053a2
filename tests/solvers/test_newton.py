"""The minimum over a span against SciPy's trust-region Newton method in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, OneHotSquared, Squared
from gradfeat.solvers.newton import Combinations, Limits, Span

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
        seven = 7 * C * K  # so that few samples are looked at together
        limits = Limits(chunk=seven, most_kept=most_kept)
        parts = Span(known, y, loss, share, outputs=C, limits=limits).minimum(ridge)
        torch.testing.assert_close(parts.coefficients, whole.coefficients, rtol=1e-6, atol=0)
        torch.testing.assert_close(parts.bias.softmax(0), whole.bias.softmax(0), rtol=1e-6, atol=0)


def grid() -> Tensor:
    """Penalties of many problems, (q, K), from so heavy that nothing is left to so light that hardly anything is."""
    penalties = torch.tensor(RIDGES, dtype=torch.float64)
    return torch.cartesian_prod(penalties, penalties)[:, [0, 1, 1]]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1e-6, 1.0, 1e4)], ids=["alike", "of very different sizes"])
def test_problems_that_are_solved_together_have_their_own_minima(loss: Loss, sizes: tuple[float, ...]) -> None:
    known, y, share = data(loss)
    scaled = [size * z for size, z in zip(sizes, known, strict=True)]
    ridges = grid() * torch.tensor(sizes) ** 2  # so that the problem is the same, but for the coefficients' sizes
    found = Span(scaled, y, loss, share, outputs=C).minima(ridges)
    for i, ridge in enumerate(grid()):
        assert found[i].objective == pytest.approx(oracle(known, y, loss, share, ridge), rel=1e-8)
        alone = Span(known, y, loss, share, outputs=C).minimum(ridge)
        torch.testing.assert_close(
            found[i].coefficients * torch.tensor(sizes), alone.coefficients, rtol=1e-3, atol=1e-5
        )


def test_separable_samples_under_many_penalties_are_solved_together() -> None:
    loss = CrossEntropy()
    known, y, share = data(loss, separable=True)
    ridges = torch.tensor([1e-1, 1e-3, 1e-5, 1e-7], dtype=torch.float64)[:, None].expand(-1, K)
    span = Span(known, y, loss, share, outputs=C)
    found = span.minima(ridges)
    for i, ridge in enumerate(ridges):
        assert found[i].objective == pytest.approx(oracle(known, y, loss, share, ridge), rel=1e-2)
        assert found[i].objective == pytest.approx(span.minimum(ridge).objective, rel=1e-8)


@pytest.mark.parametrize(
    "limits", [Limits(most_curved=3 * (K + C) ** 2), Limits(chunk=40 * C * K, most_kept=0)], ids=["groups", "parts"]
)
def test_groups_of_problems_and_parts_of_samples_change_nothing(limits: Limits) -> None:
    loss = CrossEntropy()
    known, y, share = data(loss)
    whole, parts = (Span(known, y, loss, share, outputs=C, limits=some).minima(grid()) for some in (Limits(), limits))
    torch.testing.assert_close(parts.objective, whole.objective, rtol=1e-9, atol=0)
    torch.testing.assert_close(parts.coefficients, whole.coefficients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_many_directions_for_few_problems_have_their_minima(loss: Loss) -> None:
    """Products of two directions are shared by many problems, and formed for each of few."""
    _, y, share = data(loss)
    generator = torch.Generator().manual_seed(1)
    known = [torch.randn(N, C, dtype=torch.float64, generator=generator) for _ in range(20)]
    ridges = torch.logspace(0, -4, 9, dtype=torch.float64)[:, None].expand(-1, 20)
    span = Span(known, y, loss, share, outputs=C)
    together = span.minima(ridges)
    for i, ridge in enumerate(ridges):
        torch.testing.assert_close(span.minimum(ridge).coefficients, together.coefficients[i], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_minima_are_begun_from_those_of_a_smaller_span(loss: Loss) -> None:
    known, y, share = data(loss)
    smaller = Span(known[:-1], y, loss, share, outputs=C).minima(grid()[:, :-1])
    span = Span(known, y, loss, share, outputs=C)
    from_zero, begun = span.minima(grid()), span.minima(grid(), smaller)
    torch.testing.assert_close(begun.objective, from_zero.objective, rtol=1e-8, atol=0)
    again = span.minima(grid(), begun)
    torch.testing.assert_close(again.coefficients, begun.coefficients, rtol=1e-3, atol=1e-6)


def test_logits_of_several_combinations_are_those_of_each() -> None:
    known, _, _ = data(CrossEntropy())
    generator = torch.Generator().manual_seed(1)
    coefficients, bias = (torch.randn(5, size, dtype=torch.float64, generator=generator) for size in (K, C))
    points = Combinations(coefficients, bias, torch.zeros(5))
    rows = torch.arange(N).flip(0)[: N // 2]
    logits = points.logits(known, rows)
    for i in range(5):
        torch.testing.assert_close(logits[..., i], points[i].logits(known, rows))
    torch.testing.assert_close(
        Combinations(coefficients[:, :0], bias, torch.zeros(5)).logits([], rows), bias.T.expand(len(rows), -1, -1)
    )


def test_without_directions_the_bias_gives_the_frequencies() -> None:
    y = torch.tensor([0, 0, 0, 1])
    share = torch.full((4,), 0.25, dtype=torch.float64)
    found = Span([], y, CrossEntropy(), share, outputs=2).minimum(torch.zeros(0))
    frequencies = torch.tensor([0.75, 0.25], dtype=torch.float64)
    torch.testing.assert_close(found.bias.softmax(0), frequencies, rtol=1e-5, atol=0)
