"""The estimators as a user meets them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from gradfeat import GradientFeatureClassifier, GradientFeatureModel, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError, ConvergenceError, GradfeatWarning

MODES = ("activation", "gradient", "full", "finetune")


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    ).eval()


def mlp(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[1], 16), nn.Tanh(), nn.Linear(16, 8))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return (X / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)[:200], y[:200]


def fit(digits: tuple[np.ndarray, np.ndarray], **parameters: object) -> GradientFeatureClassifier:
    settings = {"solver": "adam", "epochs": 3, "random_state": 0, "cv": 2, **parameters}
    return GradientFeatureClassifier(convnet(), **settings).fit(*digits)


@pytest.mark.parametrize("mode", MODES)
def test_modes(digits: tuple[np.ndarray, np.ndarray], mode: str) -> None:
    X, y = digits
    model = fit(digits, mode=mode)
    assert model.classes_.tolist() == list(range(10))
    assert model.omega_.shape == model.w1_.shape == (64, 10)
    assert model.b_.shape == (10,)
    assert {name: value.shape for name, value in model.w2_.items()} == {
        name: value.shape for name, value in model.linearization_.theta2.items()
    }
    assert any(value.any() for value in model.w2_.values()) == (mode != "activation")
    probability = model.predict_proba(X)
    np.testing.assert_allclose(probability.sum(1), 1)
    assert (model.classes_[probability.argmax(1)] == model.predict(X)).all()
    assert (model.decision_function(X).argmax(1) == model.predict(X)).all()
    assert model.score(X, y) == (model.predict(X) == y).mean() > 0.5


def test_same_seed_same_weights(digits: tuple[np.ndarray, np.ndarray]) -> None:
    first, second, other = fit(digits), fit(digits), fit(digits, random_state=1)
    assert all(torch.equal(first.w2_[name], second.w2_[name]) for name in first.w2_)
    assert not all(torch.equal(first.w2_[name], other.w2_[name]) for name in first.w2_)


def test_scikit_learn_tools(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0].reshape(200, -1), digits[1]
    base = GradientFeatureClassifier(mlp, solver="adam", epochs=2, cv=2, random_state=0)
    assert clone(base).get_params().keys() == base.get_params().keys()
    search = GridSearchCV(make_pipeline(StandardScaler(), base), {"gradientfeatureclassifier__mode": MODES[:2]}, cv=2)
    assert search.fit(X, y).best_score_ > 0.5


def test_pickle_predicts_the_same(digits: tuple[np.ndarray, np.ndarray]) -> None:
    model = fit(digits)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict_proba(digits[0]), model.predict_proba(digits[0]), atol=1e-6)


def test_labels_of_any_kind(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    names = np.array(["even", "odd"])[y % 2]
    model = fit((X, names))
    assert set(model.predict(X)) <= {"even", "odd"}
    assert model.decision_function(X).shape == (200,)
    assert ((model.decision_function(X) > 0) == (model.predict(X) == "odd")).all()


def test_multilabel_with_ignored_entries(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    Y = np.stack([y % 2 == 0, y > 4, y == 3], axis=1).astype(float)
    hidden = Y.copy()
    hidden[:20, 1] = np.nan
    model = fit((X, hidden))
    flipped = np.where(np.isnan(hidden), 1 - Y, Y)  # what is ignored may be anything
    assert model.predict(X).shape == model.predict_proba(X).shape == (200, 3)
    assert set(np.unique(model.predict(X))) <= {0, 1}
    other = flipped.copy()
    other[:20, 1] = np.nan
    torch.testing.assert_close(fit((X, other)).w1_, model.w1_)
    whole = fit((X, Y))
    scores = whole.decision_function(X)
    step = np.mean([average_precision_score(Y[:, k], scores[:, k]) for k in range(3)])
    assert abs(whole.score(X, Y) - step) < 0.02  # the area under the envelope is a little more


def test_regression() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 5))
    y = np.sin(X[:, 0]) + X[:, 1]
    for mode in MODES:
        model = GradientFeatureRegressor(mlp, mode=mode, solver="adam", epochs=20, random_state=0).fit(X, y)
        assert model.predict(X).shape == (80,)
        assert model.score(X, y) > 0.5
    both = GradientFeatureRegressor(mlp, solver="adam", epochs=5, random_state=0).fit(X, np.stack([y, -y], axis=1))
    assert both.predict(X).shape == (80, 2)


def test_regressor_of_a_dataset_of_pairs() -> None:
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.normal(size=(60, 5))).float()
    pairs = TensorDataset(X, X[:, 0] - X[:, 1])
    model = GradientFeatureRegressor(mlp, solver="adam", epochs=2, random_state=0).fit(pairs)
    assert model.predict(X).shape == (60,)
    assert model.score(pairs) == model.score(X, (X[:, 0] - X[:, 1]).numpy()) > 0.5


def test_every_kind_of_input_gives_the_same_model(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    y = digits[1][:40]
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 8, 8, 1), dtype=np.uint8)
    X = (pixels.transpose(0, 3, 1, 2) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    paths = [tmp_path / f"{i:02}.png" for i in range(40)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image[:, :, 0]).save(path)
    scaling = {"size": (8, 8), "mean": (0.5,), "std": (0.5,), "channels": 1}
    expected = fit((X, y)).w1_
    for given in (torch.from_numpy(X), pixels, paths):
        torch.testing.assert_close(fit((given, y), preprocessing=scaling).w1_, expected)


class Noisy(Dataset):
    """Pairs whose x differs each time, as augmentation makes it."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y, self.reads = X, y, 0

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return torch.from_numpy(self.X[index]) + 0.01 * (self.reads % 3), int(self.y[index])


def test_dataset_is_read_anew_in_every_epoch(digits: tuple[np.ndarray, np.ndarray]) -> None:
    data = Noisy(digits[0][:60], digits[1][:60])
    model = GradientFeatureClassifier(convnet(), solver="adam", epochs=4, cv=2, random_state=0).fit(data)
    assert data.reads >= 5 * 60  # once for the probe, and in each epoch
    assert model.score(digits[0][:60], digits[1][:60]) > 0.5
    with pytest.raises(ConfigurationError, match="freeze"):
        GradientFeatureClassifier(convnet(), cache="z0").fit(data)


@pytest.mark.parametrize(("mode", "tolerance"), [("activation", 1e-5), ("gradient", 1e-3), ("full", 1e-3)])
def test_weights_equal_repetition(digits: tuple[np.ndarray, np.ndarray], mode: str, tolerance: float) -> None:
    X, y = digits[0][:50], digits[1][:50]
    weight = np.arange(50) % 3
    repeated = np.repeat(np.arange(50), weight)
    settings = {"mode": mode, "penalty": 0.1, "batch_size": 1000, "precision": "float64", "solver": "adam", "epochs": 5}
    weighted = GradientFeatureClassifier(convnet(), random_state=0, **settings).fit(X, y, sample_weight=weight)
    plain = GradientFeatureClassifier(convnet(), random_state=0, **settings).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.decision_function(X), plain.decision_function(X), atol=tolerance)


def test_samples_of_weight_zero_are_absent(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:80], digits[1][:80]
    settings = {"solver": "adam", "epochs": 2, "cv": 2, "random_state": 0}
    present = y != 9
    garbage = np.where(present[:, None, None, None], X, 100.0).astype(np.float32)
    weighted = GradientFeatureClassifier(convnet(), **settings).fit(garbage, y, sample_weight=present * 1.0)
    by_class = GradientFeatureClassifier(convnet(), class_weight={9: 0}, **settings).fit(garbage, y)
    expected = GradientFeatureClassifier(convnet(), **settings).fit(X[present], y[present])
    for model in (weighted, by_class):
        assert model.classes_.tolist() == list(range(9))
        np.testing.assert_allclose(model.predict_proba(X), expected.predict_proba(X), atol=1e-4)


def test_pairs_of_cv_count_all_samples(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:100], digits[1][:100] % 2
    present = np.arange(100) % 3 > 0
    cut = [(np.arange(60), np.arange(60, 100))]
    among = [(np.arange(40), np.arange(40, 66))]  # the same samples, counted among those present
    settings = {"mode": "activation", "random_state": 0}
    whole = GradientFeatureClassifier(convnet(), cv=cut, **settings).fit(X, y, sample_weight=present)
    part = GradientFeatureClassifier(convnet(), cv=among, **settings).fit(X[present], y[present])
    assert whole.probe_.penalty == pytest.approx(part.probe_.penalty)
    np.testing.assert_allclose(whole.probe_.path, part.probe_.path, rtol=1e-4)


def test_balanced_is_the_inverse_frequency(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:60], (digits[1][:60] == 3).astype(int)
    settings = {"penalty": 0.1, "solver": "adam", "epochs": 2, "random_state": 0}
    balanced = GradientFeatureClassifier(convnet(), class_weight="balanced", **settings).fit(X, y)
    weight = 60 / (2 * np.bincount(y))
    by_sample = GradientFeatureClassifier(convnet(), **settings).fit(X, y, sample_weight=weight[y])
    np.testing.assert_allclose(balanced.predict_proba(X), by_sample.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("cache", ["residuals", "z0", "none"])
def test_what_is_kept_changes_nothing(digits: tuple[np.ndarray, np.ndarray], cache: str) -> None:
    X, y = digits[0][:60], digits[1][:60]
    settings = {"solver": "adam", "epochs": 2, "penalty": 0.1, "random_state": 0}
    expected = GradientFeatureClassifier(convnet(), **settings).fit(X, y)
    model = GradientFeatureClassifier(convnet(), cache=cache, **settings).fit(X, y)
    torch.testing.assert_close(model.w1_, expected.w1_)
    torch.testing.assert_close(model.w2_, expected.w2_)


def test_full_and_finetune_start_as_the_probe(digits: tuple[np.ndarray, np.ndarray]) -> None:
    probe = fit(digits, mode="activation")
    start = probe.decision_function(digits[0])
    for mode in ("full", "finetune"):
        model = GradientFeatureModel(probe.linearization_, probe.omega_, mode=mode, bias=probe.probe_.bias)
        with torch.no_grad():
            logits = model(torch.from_numpy(digits[0])).numpy()
        np.testing.assert_allclose(logits, start, atol=1e-4)
    np.testing.assert_array_equal(probe.w1_, fit(digits, mode="full").omega_)


def test_class_weight_moves_predictions(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0], (digits[1] == 3).astype(int)
    plain, balanced = fit((X, y), penalty=1.0), fit((X, y), penalty=1.0, class_weight="balanced")
    assert balanced.predict(X).sum() > plain.predict(X).sum()


@pytest.mark.parametrize(
    "change",
    [
        {"solver": "sgd"},
        {"clip_norm": 1e-3},
        {"batch_size": 16},
        {"epochs": 4},
        {"parametrization": "ntk_fan_in"},
        {"parametrization": "ntk_fan_out"},
    ],
)
def test_settings_have_an_effect(digits: tuple[np.ndarray, np.ndarray], change: dict[str, object]) -> None:
    name = "3.weight"
    assert not torch.allclose(fit(digits, **change).w2_[name], fit(digits).w2_[name], rtol=1e-3, atol=0)


def test_a_network_in_half_precision_is_taken_in_single(digits: tuple[np.ndarray, np.ndarray]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    X, y = digits[0].reshape(len(digits[0]), -1)[:120], digits[1][:120]
    half = copy.deepcopy(network).bfloat16()
    rounded = copy.deepcopy(half).float()
    settings = {"theta2": "3", "penalty": 0.1, "random_state": 0}
    found, expected = (GradientFeatureClassifier(net, **settings).fit(X, y) for net in (half, rounded))
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), atol=1e-5)
    assert next(half.parameters()).dtype == torch.bfloat16  # the user's own network stays as it is
    assert found.merge(X, y).report.agreement > 0.3


def test_bfloat16_is_close(digits: tuple[np.ndarray, np.ndarray]) -> None:
    half, single = fit(digits, precision="bfloat16"), fit(digits)
    assert (half.predict(digits[0]) == single.predict(digits[0])).mean() > 0.9


@pytest.mark.parametrize("mode", ["activation", "full"])
def test_what_bfloat16_rounds_is_not_lost_in_merging(digits: tuple[np.ndarray, np.ndarray], mode: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh())
    X, y = digits[0].reshape(len(digits[0]), -1)[:200], digits[1][:200]
    found = GradientFeatureClassifier(network, theta2="3", mode=mode, precision="bfloat16", random_state=0).fit(X, y)
    merged = found.merge()
    for name, value in network.state_dict().items():
        w2 = found.w2_.get(name, torch.zeros(()))
        expected = value + found.merged_head_.step * w2.float()
        torch.testing.assert_close(merged.backbone.state_dict()[name], expected, rtol=1e-6, atol=1e-7)
    inputs = torch.from_numpy(X)
    f = merged.backbone(inputs)
    torch.testing.assert_close(merged(inputs), f @ found.merged_head_.weight + found.merged_head_.bias)


def test_training_mode_is_said_and_left(digits: tuple[np.ndarray, np.ndarray]) -> None:
    network = convnet().train()
    with pytest.warns(GradfeatWarning, match="evaluation mode"):
        GradientFeatureClassifier(network, solver="adam", epochs=1, random_state=0).fit(*digits)
    assert network.training
    assert all(module.training for module in network.modules())


def test_interruption_keeps_finished_epochs(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfeat.losses import CrossEntropy

    whole = fit(digits, epochs=2, penalty=0.1)
    calls = {"n": 0}
    original = CrossEntropy.per_sample

    def interrupted(self: CrossEntropy, logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if logits.dtype == torch.float32 and logits.requires_grad:
            calls["n"] += 1
            if calls["n"] == 10:  # 4 minibatches an epoch: in the middle of the third
                raise KeyboardInterrupt
        return original(self, logits, *rest)

    monkeypatch.setattr(CrossEntropy, "per_sample", interrupted)
    with pytest.warns(GradfeatWarning, match="interrupted after 2 epochs"):
        model = fit(digits, epochs=4, penalty=0.1)
    # two epochs at the learning rate of the longer schedule: not the shorter fit, but as finite and as good
    assert model.n_iter_ == 2
    assert model.score(*digits) > whole.score(*digits) - 0.1


def test_network_that_overflows_is_refused(digits: tuple[np.ndarray, np.ndarray]) -> None:
    network = convnet()
    with torch.no_grad():
        network[3].weight.fill_(float("nan"))
    with pytest.raises(ConvergenceError, match="not finite"):
        GradientFeatureClassifier(network).fit(*digits)


def test_merge_of_an_estimator(digits: tuple[np.ndarray, np.ndarray]) -> None:
    model = fit(digits, mode="finetune")
    merged = model.merge()
    logits = merged(torch.from_numpy(digits[0])).detach().numpy()
    np.testing.assert_allclose(logits, model.decision_function(digits[0]), rtol=1e-5, atol=1e-3)


def test_a_merged_network_of_float64_has_a_head_of_float64() -> None:
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    model = GradientFeatureClassifier(network, penalty=0.1, precision="float64", random_state=0).fit(X, y)
    merged = model.merge(X, y)
    assert merged(torch.from_numpy(X)).dtype == torch.float64
    assert merged.report is not None
