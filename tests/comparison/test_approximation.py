"""The approximation's figures against cases whose value is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, compare, linearize
from gradfeat.comparison.approximation import approximation
from gradfeat.data import Inputs
from gradfeat.fit.merge import MergedHead
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, Squared
from gradfeat.metrics.evaluation import agreement
from gradfeat.model import GradientFeatureModel
from gradfeat.samples.store import SampleStore

X = np.random.default_rng(0).normal(size=(30, 4))


def model_of(network: nn.Module, size: float) -> tuple[GradientFeatureModel, SampleStore]:
    lin = linearize(network.double(), torch.from_numpy(X[:3]), ["0"])
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(lin.primal(lin.bottom(torch.from_numpy(X)))[0].shape[1], 3, generator=generator).double()
    model = GradientFeatureModel(lin, omega)
    w2 = {
        name: size * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in lin.theta2.items()
    }
    model.set_weights(w1=omega, b=torch.zeros(3), w2=w2)
    return model, SampleStore(lin, Inputs(X, None))


def test_network_linear_in_theta2_has_no_remainder_and_merges_exactly() -> None:
    model, store = model_of(nn.Sequential(nn.Linear(4, 5)), 1.0)
    assert approximation(model, store, CrossEntropy()).merged_agreement is None
    found = approximation(model, store, CrossEntropy(), head=MergedHead(1.0, model.w1, model.b, None))
    assert max(error for _, error in found.remainder) < 1e-12
    assert found.merged_agreement == 1
    length = torch.cat([value.flatten() for value in model.w2.values()]).norm().detach()
    assert found.w2_norm == pytest.approx(float(length), rel=1e-12)


def test_remainder_of_a_square_is_known() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    network = nn.Sequential(nn.Linear(4, 2, bias=False), Square())
    torch.nn.init.eye_(network[0].weight)
    model, store = model_of(network, 1.0)
    # f = (θ z)²: the step is 2 r (θz)(wz), and what is left is r² (wz)²
    z, w = torch.from_numpy(X), model.w2["0.weight"]
    step, left = (2 * (z[:, :2]) * (z @ w.T)) @ model.omega, (z @ w.T).square() @ model.omega
    ratio = float((left.norm() / step.norm()).detach())
    for r, error in approximation(model, store, CrossEntropy()).remainder:
        assert error == pytest.approx(r * ratio, rel=1e-9)


def test_agreement_by_hand() -> None:
    a, b = torch.tensor([[1.0, -1.0], [1.0, 2.0]]), torch.tensor([[3.0, 1.0], [5.0, 1.0]])
    assert agreement(a, b, CrossEntropy()) == 0.5
    assert agreement(a, b, MultiLabelLogistic()) == 0.75
    values = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]])
    assert agreement(values, 1 - 2 * values, Squared()) == pytest.approx(1)
    assert agreement(values[:, :1], values[[1, 0, 2], :1], Squared()) == pytest.approx(1 / 49, rel=1e-5)


@pytest.fixture(scope="module")
def fitted() -> tuple[GradientFeatureClassifier, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(200, 4)).astype(np.float32)
    y = (samples[:, 0] * samples[:, 1] > 0).astype(int)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
    return GradientFeatureClassifier(network, theta2="*", random_state=0).fit(samples, y), samples, y


def test_merge_reports_on_held_out_data(fitted: tuple[GradientFeatureClassifier, np.ndarray, np.ndarray]) -> None:
    classifier, samples, y = fitted
    assert classifier.merge().report is None
    network = classifier.merge(samples, y)
    report = network.report
    assert report is not None
    with torch.no_grad():
        decisions = network(torch.from_numpy(samples)).argmax(1).numpy()
    assert report.agreement == pytest.approx(float((decisions == classifier.predict(samples)).mean()))
    assert report.linear["accuracy"] == pytest.approx(classifier.score(samples, y))
    assert report.merged["accuracy"] == pytest.approx(float((decisions == y).mean()))
    assert "agrees with the linear model" in str(report)
    unlabelled = classifier.merge(samples).report
    assert unlabelled is not None
    assert unlabelled.linear == {}


def test_compare_says_how_good_the_approximation_is(
    fitted: tuple[GradientFeatureClassifier, np.ndarray, np.ndarray], tmp_path: object
) -> None:
    classifier, samples, y = fitted
    table = compare(
        classifier.backbone, samples[:150], y[:150], samples[150:], y[150:], theta2="*", random_state=0, epochs=2,
        solver="subspace",
    )  # fmt: skip
    found = table.approximation
    assert found is not None
    full, tuned = (table.estimators[mode].predict(samples[150:]) for mode in ("full", "finetune"))
    assert found.finetune_agreement == pytest.approx(float((full == tuned).mean()))
    assert any(remark.startswith("approximation: ") for remark in table.remarks())
    assert table.to_dict()["approximation"]["w2_norm"] == found.w2_norm
    pictures = table.plot_more(str(tmp_path))
    assert {picture.name for picture in pictures} == {"penalty_gradient.png", "penalty_full.png", "remainder.png"}
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
