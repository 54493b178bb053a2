from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from gradfeat import GradientFeatureClassifier
from gradfeat.baselines import AllLayersProbe, all_layers
from gradfeat.baselines.all_layers import best_features
from gradfeat.baselines.layer_features import LayerFeatures, pooled
from gradfeat.errors import ConfigurationError, DataError, GradfeatError
from gradfeat.losses import CrossEntropy
from gradfeat.optional import require
from gradfeat.pretrain import ConvEncoder
from gradfeat.solvers.probe import fit_probe


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Residual(nn.Module):
    """A block that writes in place, and a head whose input is f(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)), inplace=True)
        return self.head((x + self.layer(x)).mean((2, 3)))


def test_features_are_those_of_a_forward_by_hand() -> None:
    network = Residual().double().train()
    network.norm.running_mean.normal_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    layers = LayerFeatures(network, "input:head", most=17)
    found = layers(x)
    with torch.no_grad():
        first = network.conv1(x)
        scale = network.norm.weight / (network.norm.running_var + network.norm.eps).sqrt()
        normal = (first - network.norm.running_mean[:, None, None]) * scale[:, None, None]
        z = (normal + network.norm.bias[:, None, None]).relu()
        inner = network.layer[0][0](z)
        f = (z + inner.relu()).mean((2, 3))
        grid = F.adaptive_avg_pool2d  # 17 features of 4 channels: 2 × 2 places
        parts = [grid(value, 2).flatten(1) for value in (first, inner, inner.relu())]
        expected = torch.cat([*parts, network.head(f), f], 1)
    assert (layers.layers, layers.sizes) == (["conv1", "layer.0.0", "layer.0", "head", "f(x)"], [16, 16, 16, 3, 4])
    torch.testing.assert_close(found, expected)
    assert network.training
    assert network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_an_encoder_has_its_convolutions_and_blocks_and_f_once() -> None:
    encoder = ConvEncoder(1, channels=(3, 5), strides=(1, 2))
    layers = LayerFeatures(encoder, most=5)
    x = torch.randn(4, 1, 6, 6)
    found = layers(x)
    # the container of the blocks hands on the last block's output; its average is f(x)
    assert layers.layers == ["blocks.0.0", "blocks.0", "blocks.1.0", "blocks.1"]
    torch.testing.assert_close(found[:, -5:], encoder.eval()(x))


def test_where_the_channels_are() -> None:
    class Tokens(nn.Module):
        """(n, channels, places) -> (n, places, channels), as transformers do."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv1d(2, 6, 1)
            self.block = nn.Sequential(nn.Linear(6, 6), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.embed(x).mT).mean(1)

    network = Tokens()
    x = torch.randn(3, 2, 4)
    layers = LayerFeatures(network, most=6)
    found = layers(x)
    z = network.embed(x).mT
    inner = network.block[0](z)
    assert layers.layers == ["embed", "block.0", "block"]
    torch.testing.assert_close(found, torch.cat([value.mean(1) for value in (z, inner, F.gelu(inner))], 1))


def test_pooling_leaves_no_more_than_it_is_allowed() -> None:
    value = torch.randn(2, 3, 7, 5)
    for most in (1, 2, 3, 11, 12, 27, 200):
        assert pooled(value, 1, most).shape[1] <= most
    torch.testing.assert_close(pooled(value, 1, 12), F.adaptive_avg_pool2d(value, 2).flatten(1))
    torch.testing.assert_close(pooled(value, 1, 1)[:, 0], value.mean((1, 2, 3)))
    torch.testing.assert_close(pooled(value.movedim(1, 3), 3, 12), pooled(value, 1, 12))
    torch.testing.assert_close(pooled(value, 1, 1000), value.flatten(1)[:, : 3 * 35])


def blind_network() -> nn.Sequential:
    """The first block has |x₀|, among others; the second hands on noise of the input that has nothing of it."""
    network = nn.Sequential(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), nn.Sequential(nn.Linear(12, 24), nn.Tanh()))
    with torch.no_grad():
        first = network[0][0]
        first.weight.zero_()
        first.bias.zero_()
        first.weight[0, 0], first.weight[1, 0] = 1.0, -1.0
        first.weight[2:7, 1:] = torch.eye(5)
        first.weight[7:, 1:] = -torch.eye(5)
        network[1][0].weight[:, :2] = 0
    return network


@pytest.mark.parametrize("one_split_from", [100, 1000], ids=["many samples", "few samples"])
def test_the_layer_that_carries_the_label_is_found(one_split_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_layers, "ONE_SPLIT_FROM", one_split_from)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 6)).astype(np.float32)
    y = np.where(np.abs(X[:, 0]) > 0.7, "far", "near")
    network = blind_network()
    model = AllLayersProbe(network, random_state=0).fit(X[:200], y[:200])
    assert model.score(X[200:], y[200:]) > 0.93
    probe = GradientFeatureClassifier(network, mode="activation", random_state=0).fit(X[:200], y[:200])
    assert probe.score(X[200:], y[200:]) < 0.7
    kept = {name: count for name, _, count in model.layers_}
    assert [name for name, _, _ in model.layers_] == ["0.0", "0", "1.0", "1"]
    # ‖W_i‖ is largest for the two features whose sum is |x₀|: they are the first of the block's 12, after 12 of "0.0"
    f = scaled_features(LayerFeatures(network), torch.from_numpy(X[:200]))
    probe_of_all = fit_probe(f, codes(y[:200]), CrossEntropy(), random_state=0)
    assert set(best_features(probe_of_all, 2 / 72).tolist()) == {12, 13}
    assert kept["0"] >= 2
    assert model.fraction_ < 1
    assert min(loss for _, loss in model.path_) == dict(model.path_)[model.fraction_]


def scaled_features(layers: LayerFeatures, x: Tensor) -> Tensor:
    """Return the features of all layers, of mean 0 and, on average over each layer, variance 1."""
    f = layers(x)
    parts = [part - part.mean(0) for part in f.split(layers.sizes, dim=1)]
    return torch.cat([part / part.square().mean().sqrt() for part in parts], 1)


def codes(y: np.ndarray) -> Tensor:
    return torch.from_numpy(np.unique(y, return_inverse=True)[1])


def test_all_features_are_an_ordinary_probe_of_scaled_layers() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 6)), np.arange(90) % 3
    X[:, 1] += y
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    model = AllLayersProbe(network, fractions=[1.0], random_state=0, batch_size=7).fit(X, y)
    with torch.no_grad():
        first = network[0](torch.from_numpy(X))
        parts = [first, network[2](first.tanh())]
    parts = [part - part.mean(0) for part in parts]
    f = torch.cat([part / part.square().mean().sqrt() for part in parts], 1)
    expected = fit_probe(f, torch.from_numpy(y), CrossEntropy(), random_state=0)
    assert model.path_ == []
    assert model.probe_.penalty == pytest.approx(expected.penalty)
    logits = f @ expected.omega + expected.bias
    np.testing.assert_allclose(model.decision_function(X), logits, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), logits.softmax(1), atol=1e-5)


def test_a_constant_layer_is_harmless_and_a_name_is_resolved() -> None:
    require("timm", extra="vision")
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    images = (rng.integers(0, 128, (24, 32, 32, 3)) + 128 * y[:, None, None, None]).astype(np.uint8)
    settings = {"weights": "random", "image_size": 32, "features_per_layer": 32, "fractions": [0.1, 1.0]}
    model = AllLayersProbe("timm/test_resnet", random_state=0, **settings).fit(images, y)
    assert model.score(images, y) == 1.0
    assert max(size for _, size, _ in model.layers_) <= 32

    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    nn.init.zeros_(network[0].weight)
    X = rng.normal(size=(20, 2)).astype(np.float32)
    assert np.isfinite(AllLayersProbe(network).fit(X, X[:, 0] > 0).predict_proba(X)).all()


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_samples(count: int) -> None:
    X, y = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32), np.arange(count) % 2
    assert np.isfinite(AllLayersProbe(blind_network(), random_state=0).fit(X, y).predict_proba(X)).all()


@pytest.mark.parametrize(
    ("y", "settings", "error", "message"),
    [
        ([0, 0, 0, 0], {}, DataError, "one class only"),
        ([0, 1], {}, DataError, "4"),
        ([0, 1, 0, 1], {"fractions": []}, ConfigurationError, "above 0"),
        ([0, 1, 0, 1], {"fractions": [0.0, 1.0]}, ConfigurationError, "above 0"),
        ([0, 1, 0, 1], {"features_per_layer": 0}, ConfigurationError, "features_per_layer"),
        ([0, 1, 0, 1], {"device": "cube"}, ConfigurationError, "device"),
    ],
)
def test_bad_input(y: list, settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        AllLayersProbe(blind_network(), **settings).fit(np.eye(4, 6, dtype=np.float32), y)


def test_not_fitted() -> None:
    with pytest.raises(GradfeatError, match="not fitted"):
        AllLayersProbe(blind_network()).predict(np.eye(6, dtype=np.float32))


def test_several_labels_are_a_logistic_probe_on_what_is_kept() -> None:
    """All features are kept, so the model is that of scikit-learn's logistic regression for each label."""
    x = torch.randn(80, 2, 8, 8)
    network = Residual().eval()
    layers = LayerFeatures(network)
    f = layers(x)
    y = np.stack([f[:, 0].numpy() > 0, f[:, -1].numpy() + np.random.default_rng(0).normal(size=80) > 0.5], 1) * 1.0
    y[0, 1] = np.nan
    model = AllLayersProbe(network, fractions=[1.0], random_state=0).fit(x, y)
    scaled = scaled_features(layers, x).double().numpy()
    for label in range(2):
        known = ~np.isnan(y[:, label])
        # the loss is the mean over samples and the two labels; what does not count adds nothing
        reference = LogisticRegression(C=1 / (2 * model.probe_.penalty * len(y)), tol=1e-8, max_iter=10_000)
        reference.fit(scaled[known], y[known, label])
        expected = reference.predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(model.predict_proba(x)[:, label], expected, atol=5e-3)
    np.testing.assert_array_equal(model.predict(x), model.predict_proba(x) > 0.5)
