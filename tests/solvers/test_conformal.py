"""Sets and intervals against refits without each sample, and integrals against quadrature, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from torch import Tensor

from gradfeat.errors import ConfigurationError, DataError
from gradfeat.losses import CrossEntropy, MultiLabelLogistic
from gradfeat.solvers.conformal import intervals, rank, sets
from gradfeat.solvers.predictive import integrated, mean_sigmoid, mean_softmax, temperature


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("coverage", "n"), [(0.5, 7), (0.8, 20), (0.9, 9), (0.95, 19)])
def test_intervals_are_those_of_the_sorted_ends(coverage: float, n: int) -> None:
    predictions, errors = normal(5, n), normal(n, seed=1).abs()
    k = int(np.ceil(round((n + 1) * coverage, 9)))
    for row, (low, high) in zip(predictions.tolist(), intervals(predictions, errors, coverage).tolist(), strict=True):
        below = sorted(p - e for p, e in zip(row, errors.tolist(), strict=True))
        above = sorted(p + e for p, e in zip(row, errors.tolist(), strict=True))
        assert (low, high) == pytest.approx((below[n - k], above[k - 1]))


def test_sets_are_those_of_the_definition() -> None:
    scores, own = normal(6, 15, 4), normal(15, seed=1)
    found = sets(scores, own, 0.8)
    for x in range(6):
        for y in range(4):
            worse = sum(bool(own[i] < scores[x, i, y]) for i in range(15))
            assert bool(found[x, y]) == (worse < 0.8 * 16)


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, float("nan"), "0.9", True, None])
def test_a_coverage_is_between_zero_and_one(coverage: object) -> None:
    with pytest.raises(ConfigurationError, match="coverage must be"):
        rank(10, coverage)  # type: ignore[arg-type]


def test_too_few_samples_say_how_many_are_needed() -> None:
    with pytest.raises(DataError, match=r"at least 9 training samples.* fitted to 8"):
        intervals(normal(2, 8), normal(8).abs(), 0.9)
    assert intervals(normal(2, 9), normal(9).abs(), 0.9).isfinite().all()


def test_a_label_by_itself_is_its_integral() -> None:
    for z, v in ((-2.0, 0.5), (0.3, 4.0), (3.0, 9.0), (1.0, 0.0)):
        expected = 1 / (1 + np.exp(-z))
        if v:
            expected = quad(
                lambda e, z=z, v=v: np.exp(-(e**2) / 2) / np.sqrt(2 * np.pi) / (1 + np.exp(-z - v**0.5 * e)), -12, 12
            )[0]
        assert float(mean_sigmoid(torch.tensor(z), torch.tensor(v))) == pytest.approx(expected, abs=1e-6)


def test_a_softmax_is_its_integral() -> None:
    logits, root = normal(3, 3), normal(3, 3, 2, seed=1)
    at, weight = np.polynomial.hermite_e.hermegauss(60)
    points = torch.from_numpy(np.stack(np.meshgrid(at, at, indexing="ij"), -1).reshape(-1, 2))
    weights = torch.from_numpy(np.outer(weight, weight).ravel() / weight.sum() ** 2)
    expected = torch.einsum("p,mpc->mc", weights, (logits[:, None] + points @ root.mT).softmax(2))
    torch.testing.assert_close(mean_softmax(logits, root @ root.mT), expected, rtol=0, atol=2e-3)
    two, cov = logits[:, :2], (root @ root.mT)[:, :2, :2]
    expected = torch.einsum("p,mpc->mc", weights, (two[:, None] + points @ root[:, :2].mT).softmax(2))
    torch.testing.assert_close(mean_softmax(two, cov), expected, rtol=0, atol=1e-6)


def test_probabilities_without_variance_are_as_they_were() -> None:
    logits, none = normal(4, 3), torch.zeros(4, 3, 3, dtype=torch.float64)
    for loss in (CrossEntropy(), MultiLabelLogistic()):
        torch.testing.assert_close(integrated(loss, logits, none), loss.predict_proba(logits))
    torch.testing.assert_close(mean_softmax(logits, none).sum(1), torch.ones(4, dtype=torch.float64))
    same = mean_softmax(logits, none + torch.eye(3))
    torch.testing.assert_close(mean_softmax(logits[1:2], none[:1] + torch.eye(3)), same[1:2])  # by itself


def test_a_temperature_is_the_minimum() -> None:
    logits, y = 3 * normal(50, 3), torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(1))
    share = torch.full((50,), 0.02, dtype=torch.float64)
    expected = minimize_scalar(
        lambda t: float(CrossEntropy().value(logits / np.exp(t), y)), bounds=(-3, 3), method="bounded"
    ).x
    assert np.log(temperature(CrossEntropy(), logits, y, share)) == pytest.approx(expected, abs=1e-4)
