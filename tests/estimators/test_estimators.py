"""The estimators as a user meets them."""

from __future__ import annotations

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
from torch.utils.data import Dataset

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError, GradfeatWarning, Theta2Error
from gradfeat.validation import NotFittedError

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
    settings = {"epochs": 3, "random_state": 0, "cv": 2, **parameters}
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
    base = GradientFeatureClassifier(mlp, epochs=2, cv=2, random_state=0)
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
        model = GradientFeatureRegressor(mlp, mode=mode, epochs=20, random_state=0).fit(X, y)
        assert model.predict(X).shape == (80,)
        assert model.score(X, y) > 0.5
    both = GradientFeatureRegressor(mlp, epochs=5, random_state=0).fit(X, np.stack([y, -y], axis=1))
    assert both.predict(X).shape == (80, 2)


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
    model = GradientFeatureClassifier(convnet(), epochs=4, cv=2, random_state=0).fit(data)
    assert data.reads >= 5 * 60  # once for the probe, and in each epoch
    assert model.score(digits[0][:60], digits[1][:60]) > 0.5
    with pytest.raises(ConfigurationError, match="freeze"):
        GradientFeatureClassifier(convnet(), cache="z0").fit(data)


def test_weights_equal_repetition(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:50], digits[1][:50]
    weight = np.arange(50) % 3
    repeated = np.repeat(np.arange(50), weight)
    for mode, tolerance in (("activation", 1e-4), ("full", 1e-2)):
        settings = {"mode": mode, "penalty": 0.1, "batch_size": 1000, "precision": "float64", "random_state": 0}
        weighted = GradientFeatureClassifier(convnet().double(), epochs=5, **settings).fit(X, y, sample_weight=weight)
        plain = GradientFeatureClassifier(convnet().double(), epochs=5, **settings).fit(X[repeated], y[repeated])
        np.testing.assert_allclose(weighted.decision_function(X), plain.decision_function(X), atol=tolerance)


def test_class_weight_moves_predictions(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0], (digits[1] == 3).astype(int)
    plain, balanced = fit((X, y), penalty=1.0), fit((X, y), penalty=1.0, class_weight="balanced")
    assert balanced.predict(X).sum() > plain.predict(X).sum()


@pytest.mark.parametrize(
    "change", [{"solver": "sgd"}, {"clip_norm": 1e-3}, {"batch_size": 16}, {"epochs": 4}, {"parametrization": "ntk"}]
)
def test_settings_have_an_effect(digits: tuple[np.ndarray, np.ndarray], change: dict[str, object]) -> None:
    name = "3.weight"
    assert not torch.allclose(fit(digits, **change).w2_[name], fit(digits).w2_[name], rtol=1e-3, atol=0)


def test_bfloat16_is_close(digits: tuple[np.ndarray, np.ndarray]) -> None:
    half, single = fit(digits, precision="bfloat16"), fit(digits)
    assert (half.predict(digits[0]) == single.predict(digits[0])).mean() > 0.9


def test_training_mode_is_said_and_left(digits: tuple[np.ndarray, np.ndarray]) -> None:
    network = convnet().train()
    with pytest.warns(GradfeatWarning, match="evaluation mode"):
        GradientFeatureClassifier(network, epochs=1, random_state=0).fit(*digits)
    assert network.training
    assert all(module.training for module in network.modules())


def test_interruption_keeps_finished_epochs(
    digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradfeat.losses import CrossEntropy

    whole = fit(digits, epochs=2, penalty=0.1)
    calls = {"n": 0}
    original = CrossEntropy.value

    def interrupted(self: CrossEntropy, logits: torch.Tensor, *rest: object) -> torch.Tensor:
        if logits.dtype == torch.float32 and logits.requires_grad:
            calls["n"] += 1
            if calls["n"] == 10:  # 4 minibatches an epoch: in the middle of the third
                raise KeyboardInterrupt
        return original(self, logits, *rest)

    monkeypatch.setattr(CrossEntropy, "value", interrupted)
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


BAD_DATA = {
    "one class": (lambda X, y: (X, y * 0), "one class only"),
    "missing labels": (lambda X, y: (X, np.where(y == 3, np.nan, y)), "missing labels"),
    "nan": (lambda X, y: (np.where(X[5, 0, 3, 3] == X, np.nan, X), y), "NaN"),
    "lengths": (lambda X, y: (X, y[:-1]), "200 samples and y has 199"),
    "not an indicator": (lambda X, y: (X, np.stack([y, y], 1)), "0 and 1"),
    "no labels": (lambda X, y: (X, None), "requires y"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(digits: tuple[np.ndarray, np.ndarray], case: str) -> None:
    change, message = BAD_DATA[case]
    with pytest.raises(DataError, match=message):
        fit(change(*digits))


def test_bad_arguments_are_reported_together(digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ConfigurationError, match=r"(?s)mode must.*solver must.*cache must.*penalty must.*epochs must"):
        fit(digits, mode="ful", solver="lbfgss", cache="disk", penalty=-1, epochs=0)
    with pytest.raises(ConfigurationError, match="rounds must be 1"):
        fit(digits, rounds=3)
    with pytest.raises(Theta2Error, match=r"Did you mean 3.weight"):
        fit(digits, theta2="3.wieght")
    with pytest.raises(ConfigurationError, match="does not fit these labels"):
        fit(digits, loss="squared")


def test_bad_weights(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    model = GradientFeatureClassifier(convnet())
    with pytest.raises(DataError, match="negative"):
        model.fit(X, y, sample_weight=-np.ones(200))
    with pytest.raises(DataError, match="at least one non-zero"):
        model.fit(X, y, sample_weight=np.zeros(200))


def test_wrong_shapes(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    with pytest.raises(ConfigurationError, match=r"cannot take an input of shape \(3, 2, 8, 8\)"):
        fit((np.concatenate([X, X], axis=1), y))
    model = fit(digits, epochs=1)
    with pytest.raises(DataError, match="fitted to samples of shape"):
        model.predict(X[:, :, :6])


def test_predict_before_fit(digits: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(NotFittedError, match="not fitted"):
        GradientFeatureClassifier(convnet()).predict(digits[0])


def test_merge_of_an_estimator(digits: tuple[np.ndarray, np.ndarray]) -> None:
    model = fit(digits, mode="finetune")
    merged = model.merge()
    logits = merged(torch.from_numpy(digits[0])).detach().numpy()
    np.testing.assert_allclose(logits, model.decision_function(digits[0]), atol=1e-4)
