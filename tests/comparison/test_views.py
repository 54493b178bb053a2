"""Predictions averaged over random crops of each test image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn import metrics
from torch import nn

from gradfeat import compare
from gradfeat.data import Crops, Inputs, Preprocessing
from gradfeat.errors import ConfigurationError
from gradfeat.losses import CrossEntropy, MultiLabelLogistic, OneHotSquared, Squared
from gradfeat.metrics.evaluation import mean_of_views
from gradfeat.optional import require

PREPROCESSING = {"size": [6, 6], "crop_pct": 0.75, "mean": [0.5], "std": [0.5], "channels": 1}
SETTINGS: dict[str, Any] = {
    "preprocessing": PREPROCESSING,
    "penalty": 0.1,
    "epochs": 2,
    "random_state": 3,
    "modes": ["activation", "full"],
}
CROPS = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """60 grey images (8, 8); the brighter half of each class's images is told by an indicator of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = rng.integers(0, 120, (60, 8, 8, 1)) + 60 * y[:, None, None, None]
    return X.astype(np.uint8), y


def seen(X: np.ndarray) -> np.ndarray:
    """The crops as the network gets them, (n · crops, 1, 6, 6)."""
    return Crops(Inputs(X, Preprocessing.from_dict(PREPROCESSING)), CROPS, 3).batch(range(CROPS * len(X))).numpy()


def test_the_table_averages_probabilities(images: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = images
    result = compare(network(), X[:30], y[:30], X[30:], y[30:], crops=CROPS, **SETTINGS)
    assert result.n_test == 30
    assert "predictions are the mean over 4 random crops of each test image" in result.notes
    for row in result.rows:
        estimator = result.estimators[row.mode]
        single = estimator.predict_proba(seen(X[30:])).reshape(30, CROPS, 3)
        assert single.std(1).max() > 1e-3
        averaged = single.mean(1)
        np.testing.assert_allclose(estimator.predict_proba(X[30:], crops=CROPS), averaged, atol=1e-6)
        assert row.metrics["log_loss"] == pytest.approx(metrics.log_loss(y[30:], averaged), abs=1e-5)
        assert row.metrics["accuracy"] == metrics.accuracy_score(y[30:], averaged.argmax(1))


def test_multilabel(images: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = images
    indicator = np.stack([y == 1, y > 0], axis=1).astype(int)
    result = compare(network(), X[:30], indicator[:30], X[30:], indicator[30:], crops=CROPS, **SETTINGS)
    for row in result.rows:
        single = expit(result.estimators[row.mode].decision_function(seen(X[30:]))).reshape(30, CROPS, 2)
        losses = [metrics.log_loss(indicator[30:, c], single.mean(1)[:, c]) for c in range(2)]
        assert row.metrics["log_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_centre_crop_is_what_it_was(images: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = images
    arguments = (X[:30], y[:30], X[30:], y[30:])
    one, without = (compare(network(), *arguments, **SETTINGS, **more) for more in ({"crops": 1}, {}))
    assert [row.metrics for row in one.rows] == [row.metrics for row in without.rows]
    assert one.notes == without.notes


def test_only_images(images: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = images
    floats = (X[:, None, :6, :6, 0] / 255).astype(np.float32)
    with pytest.raises(ConfigurationError, match="random crops are for images"):
        compare(network(), X[:30], y[:30], floats[30:], y[30:], crops=CROPS, **SETTINGS)
    with pytest.raises(ConfigurationError, match="crops must be a whole number from 1"):
        compare(network(), X[:30], y[:30], X[30:], y[30:], crops=0, **SETTINGS)


def test_mean_of_views_is_the_mean_prediction() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (5 * 4, 3))
    parts = logits.reshape(5, 4, 3)
    given = torch.from_numpy(logits)
    for loss in (CrossEntropy(), OneHotSquared()):
        found = softmax(mean_of_views(given, 4, loss).numpy(), 1)
        np.testing.assert_allclose(found, softmax(parts, 2).mean(1), rtol=1e-12)
    found = expit(mean_of_views(given, 4, MultiLabelLogistic()).numpy())
    np.testing.assert_allclose(found, expit(parts).mean(1), rtol=1e-12)
    np.testing.assert_allclose(mean_of_views(given, 4, Squared()).numpy(), parts.mean(1), rtol=1e-12)
    assert mean_of_views(given, 1, CrossEntropy()) is given


def test_sure_predictions_keep_their_order() -> None:
    # 1 - p is (e⁻⁸⁰⁰ + e⁻⁹⁰⁰) / 2, far below what a float64 next to 1 can tell: log odds of 800 + log 2
    found = mean_of_views(torch.tensor([[800.0], [900.0], [-900.0], [-800.0]]), 2, MultiLabelLogistic())
    np.testing.assert_allclose(found.numpy(), [[800 + np.log(2)], [-800 - np.log(2)]], rtol=1e-12)


def test_an_image_size_leaves_room_for_crops(images: tuple[np.ndarray, np.ndarray]) -> None:
    timm = require("timm", extra="vision")
    network = timm.create_model("test_resnet", num_classes=0).eval()
    X, y = np.repeat(images[0], 3, axis=-1), images[1]
    own = network.pretrained_cfg["crop_pct"]
    for crops, expected in ((1, 1.0), (2, own)):
        result = compare(
            network, X[:30], y[:30], X[30:], y[30:], crops=crops, image_size=32, penalty=0.1, modes=["activation"]
        )
        treatment = result.estimators["activation"].backbone_.preprocessing
        assert (treatment.crop_pct, own < 1) == (expected, True)
        assert f"images: {treatment.describe()}" in result.notes
