"""Ridge regression and its leave-one-out residuals against refits."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.solvers.ridge import PENALTIES, ridge_by_leave_one_out


def data(n: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    f, noise, centre = (
        torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((n, d), (n, 2), (d, 2))
    )
    share = torch.rand(n, dtype=torch.float64, generator=generator) + 0.1
    y = (f + 3) @ torch.randn(d, 2, dtype=torch.float64, generator=generator) + 0.5 * noise + 7
    return f + 3, y, share / share.sum(), centre


def refit(f: Tensor, y: Tensor, share: Tensor, penalty: float, centre: Tensor) -> tuple[Tensor, Tensor]:
    found = SklearnRidge(penalty).fit(f, y - f @ centre, sample_weight=share)
    return torch.from_numpy(found.coef_).T + centre, torch.from_numpy(found.intercept_)


@pytest.mark.parametrize(("n", "d"), [(30, 5), (12, 20)], ids=["more samples", "more features"])
@pytest.mark.parametrize("pulled", [False, True], ids=["to zero", "to a centre"])
def test_the_choice_is_that_of_refits_without_each_sample(n: int, d: int, pulled: bool) -> None:
    f, y, share, centre = data(n, d)
    if not pulled:
        centre = torch.zeros_like(centre)
    found = ridge_by_leave_one_out(f, y, share, centre if pulled else None)
    unit = float(share @ (f - share @ f).square().sum(1))
    errors = {}
    for factor in PENALTIES:
        total = 0.0
        for i in range(n):
            others = torch.arange(n) != i
            weight, bias = refit(f[others], y[others], share[others], factor * unit, centre)
            total += float(share[i] * (f[i] @ weight + bias - y[i]).square().sum()) / 2
        errors[factor * unit] = total
    # light penalties of more features than samples are all alike
    assert found.error == pytest.approx(min(errors.values()), rel=1e-5)
    assert found.error == pytest.approx(
        min(errors.items(), key=lambda tried: abs(tried[0] - found.penalty))[1], rel=1e-5
    )
    weight, bias = refit(f, y, share, found.penalty, centre)
    torch.testing.assert_close(found.weight, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.bias, bias, rtol=1e-5, atol=1e-6)


def test_features_without_spread_leave_the_mean() -> None:
    y = torch.randn(6, 2, dtype=torch.float64)
    found = ridge_by_leave_one_out(torch.ones(6, 3), y, torch.full((6,), 1 / 6))
    torch.testing.assert_close(found.bias + found.weight.sum(0), y.mean(0))


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConvergenceError, match="not finite"):
        ridge_by_leave_one_out(torch.full((3, 1), torch.inf), torch.zeros(3, 1), torch.full((3,), 1 / 3))
