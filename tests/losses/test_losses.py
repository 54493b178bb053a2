from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch

from gradfeat.errors import ConfigurationError
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, OneHotSquared, Squared, loss_for

LOGITS = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ALL = [CrossEntropy(), MultiLabelLogistic(), Squared(), OneHotSquared()]
WEIGHT = torch.arange(9, dtype=torch.float64)


def test_cross_entropy_is_log_loss() -> None:
    y = torch.arange(9) % 4
    loss = CrossEntropy()
    for weight in (None, WEIGHT):
        expected = sklearn.metrics.log_loss(y, loss.predict_proba(LOGITS), sample_weight=weight)
        assert float(loss.value(LOGITS, y, weight)) == pytest.approx(expected, rel=1e-12)
    assert loss.n_outputs(y) == 4


def test_logistic_is_the_mean_over_labels() -> None:
    y = (LOGITS.roll(1) > 0).double()
    loss = MultiLabelLogistic()
    columns = [sklearn.metrics.log_loss(y[:, k], LOGITS[:, k].sigmoid(), labels=[0, 1]) for k in range(4)]
    assert float(loss.value(LOGITS, y)) == pytest.approx(np.mean(columns), rel=1e-12)


def test_ignored_labels_count_for_nothing() -> None:
    y = torch.ones(9, 4, dtype=torch.float64)
    y[:, 2] = float("nan")
    logits = LOGITS.clone().requires_grad_()
    loss = MultiLabelLogistic().value(logits, y)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, 2].any()
    assert torch.isfinite(gradient).all()
    known = MultiLabelLogistic().value(LOGITS[:, [0, 1, 3]], y[:, [0, 1, 3]])
    assert loss.item() == pytest.approx(known.item() * 3 / 4)


def test_squared_is_half_the_distance() -> None:
    y = LOGITS.flip(0)
    expected = 0.5 * ((LOGITS - y) ** 2).sum(1)
    assert float(Squared().value(LOGITS, y)) == pytest.approx(float(expected.mean()))
    weighted = float((WEIGHT * expected).sum() / WEIGHT.sum())
    assert float(Squared().value(LOGITS, y, WEIGHT)) == pytest.approx(weighted)


@pytest.mark.parametrize("loss", ALL)
def test_losses_are_convex_along_a_segment(loss: CrossEntropy) -> None:
    y = torch.arange(9) % 4 if loss.task == "multiclass" else (LOGITS.roll(1) > 0).double()
    ends = loss.value(LOGITS, y), loss.value(-LOGITS.flip(0), y)
    for t in (0.25, 0.5, 0.75):
        between = loss.value((1 - t) * LOGITS - t * LOGITS.flip(0), y)
        assert between <= (1 - t) * ends[0] + t * ends[1] + 1e-12


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_curvature_is_the_diagonal_of_the_hessian(loss: CrossEntropy) -> None:
    y = torch.arange(9) % 4 if loss.task == "multiclass" else (LOGITS.roll(1) > 0).double()
    for row in range(3):
        hessian = torch.autograd.functional.hessian(
            lambda z, y=y[row : row + 1]: loss.per_sample(z[None], y)[0], LOGITS[row]
        )
        torch.testing.assert_close(loss.curvature(LOGITS)[row], hessian.diagonal(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_slope_is_the_derivative_in_the_logits(loss: Loss) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = torch.tensor([0, 2, 1, 1, 2]) if loss.task == "multiclass" else (logits.detach() > 0.3).double()
    if isinstance(loss, MultiLabelLogistic):
        y[1, 2] = float("nan")
    (expected,) = torch.autograd.grad(loss.per_sample(logits, y).sum(), logits)
    torch.testing.assert_close(loss.slope(logits.detach(), y), expected, rtol=1e-12, atol=1e-14)


def test_loss_for() -> None:
    assert isinstance(loss_for("auto", "multilabel"), MultiLabelLogistic)
    assert isinstance(loss_for("squared", "regression"), Squared)
    assert isinstance(loss_for("auto", "multiclass"), CrossEntropy)
    assert isinstance(loss_for("one_hot_squared", "multiclass"), OneHotSquared)
    with pytest.raises(ConfigurationError, match="Did you mean squared"):
        loss_for("square", "regression")
    with pytest.raises(ConfigurationError, match="is for regression targets"):
        loss_for("squared", "multiclass")
    with pytest.raises(ConfigurationError, match="task must be"):
        loss_for("auto", "ranking")


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_curvature_is_the_hessian_in_the_logits(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.tensor([0, 2, 1, 1]) if loss.task == "multiclass" else (logits > 0.3).double()
    if isinstance(loss, MultiLabelLogistic):
        y[1, 2] = float("nan")
    directions = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    product = loss.curvature_product(logits, y, directions)
    for i in range(4):
        hessian = torch.func.hessian(lambda row, i=i: loss.per_sample(row[None], y[i : i + 1])[0])(logits[i])
        torch.testing.assert_close(product[i], hessian @ directions[i])
        root = torch.stack(
            [loss.curvature_root(logits[i : i + 1], y[i : i + 1], unit[None])[0] for unit in torch.eye(3).double()], 1
        )
        torch.testing.assert_close(root @ root.T, hessian)
    torch.testing.assert_close(loss.curvature_product(logits, y, directions[..., 0]), product[..., 0])
    share = torch.rand(4, dtype=torch.float64, generator=generator)
    whole = loss.curvature_product(
        logits, y, torch.eye(logits.shape[1], dtype=logits.dtype).expand(len(logits), -1, -1)
    )
    torch.testing.assert_close(loss.curvature_sum(logits, y, share), (share[:, None, None] * whole).sum(0))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_several_logits_of_the_same_samples_are_taken_one_by_one(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    y = torch.tensor([0, 2, 1, 1]) if loss.task == "multiclass" else (logits[..., 0] > 0.3).double()
    if isinstance(loss, MultiLabelLogistic):
        y[1, 2] = float("nan")
    weight = torch.rand(4, dtype=torch.float64, generator=generator)
    losses, slopes = loss.derivatives(logits, y)
    diagonal, root = loss.curvature_parts(logits, y)
    for i in range(5):
        one = logits[..., i]
        torch.testing.assert_close(losses[:, i], loss.per_sample(one, y))
        torch.testing.assert_close(loss.per_sample(logits, y)[:, i], loss.per_sample(one, y))
        torch.testing.assert_close(slopes[..., i], loss.slope(one, y))
        torch.testing.assert_close(loss.slope(logits, y)[..., i], loss.slope(one, y))
        assert float(loss.value(logits, y, weight)[i]) == pytest.approx(float(loss.value(one, y, weight)), rel=1e-12)
        hessian = diagonal[..., i].diag_embed()
        if root is not None:
            hessian = hessian - root[..., i, None] * root[..., None, :, i]
        torch.testing.assert_close(hessian, loss.curvature_product(one, y, torch.eye(3).double().expand(4, -1, -1)))
