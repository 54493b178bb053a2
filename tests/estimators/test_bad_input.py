"""What an estimator refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError, GradfeatError, Theta2Error

N = 24
QUICK: dict[str, Any] = {"epochs": 1, "penalty": 0.1, "random_state": 0}


def mlp(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[1], 8), nn.Tanh())


def convnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, 4)), np.arange(N) % 3


def with_nan(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    X[5, 2] = np.nan
    return X


BAD_DATA = {
    "one class": (lambda X, y: (X, y * 0), r"one class only \(0\)"),
    "NaN labels": (lambda X, y: (X, np.where(y == 2, np.nan, y)), "missing labels: 8 of 24, first in sample 2"),
    "None among labels": (lambda X, y: (X, np.array([None, "a", "b"] * 8, dtype=object)), "missing labels: 8 of 24"),
    "labels of two kinds": (lambda X, y: (X, np.array([1, "a"] * 12, dtype=object)), "labels of different kinds"),
    "continuous labels": (lambda X, y: (X, y + 0.5), "continuous"),
    "ragged labels": (lambda X, y: (X, [[1, 2], [3]] * 12), "one row for each sample"),
    "labels with three axes": (lambda X, y: (X, np.zeros((N, 2, 2))), r"not of shape \(24, 2, 2\)"),
    "a number as labels": (lambda X, y: (X, 3), r"not of shape \(\)"),
    "no labels": (lambda X, y: (X, None), "requires y"),
    "a matrix that is no indicator": (lambda X, y: (X, np.stack([y, y], 1)), "values besides 0 and 1"),
    "a matrix of names": (lambda X, y: (X, np.full((N, 2), "cat")), "multi-label indicator"),
    "lengths": (lambda X, y: (X, y[:-1]), "24 samples and y has 23"),
    "NaN in a table": (lambda X, y: (with_nan(X), y), "NaN"),
    "NaN in a tensor": (lambda X, y: (torch.from_numpy(with_nan(X)).float(), y), "NaN"),
    "names in a table": (lambda X, y: (np.full((N, 2), "cat"), y), "could not convert"),
    "one feature without its axis": (lambda X, y: (X[:, 0], y), "Expected 2D array"),
    "no samples": (lambda X, y: (X[:0], y[:0]), "0 sample"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(table: tuple[np.ndarray, np.ndarray], case: str) -> None:
    change, message = BAD_DATA[case]
    with pytest.raises(DataError, match=message):
        GradientFeatureClassifier(mlp, **QUICK).fit(*change(*table))


BAD_TARGETS = {
    "NaN": (np.where(np.arange(N) == 3, np.nan, 1.0), "NaN or infinite"),
    "names": (np.full(N, "cat"), "numbers"),
    "three axes": (np.zeros((N, 2, 2)), "not of shape"),
    "length": (np.zeros(N - 1), "24 samples and y has 23"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_bad_targets_of_a_regression(table: tuple[np.ndarray, np.ndarray], case: str) -> None:
    y, message = BAD_TARGETS[case]
    with pytest.raises(DataError, match=message):
        GradientFeatureRegressor(mlp, **QUICK).fit(table[0], y)


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "mode": ({"mode": "ful"}, "mode must be one of .*Did you mean full"),
    "mode of another type": ({"mode": ["full"]}, "mode must be one of"),
    "theta2 of another type": ({"theta2": 3}, "theta2 must be"),
    "theta2 of nothing": ({"theta2": []}, "theta2 must be"),
    "penalty below zero": ({"penalty": -1.0}, "penalty must be"),
    "penalty without end": ({"penalty": np.inf}, "penalty must be"),
    "penalty by name": ({"penalty": "large"}, "penalty must be"),
    "one fold": ({"cv": 1}, "cv must be"),
    "cv by name": ({"cv": "loo"}, "cv must be"),
    "rounds": ({"rounds": 0}, "rounds must be None, 'auto' or a whole number from 1"),
    "rounds of gradient": ({"rounds": 3, "mode": "gradient"}, "rounds other than 1 are of mode='full'"),
    "rounds of adam": ({"rounds": "auto", "solver": "adam"}, "rounds other than 1 are of mode='full'"),
    "rounds in bfloat16": ({"rounds": "auto", "precision": "bfloat16"}, "take another precision"),
    "rounds with a penalty": ({"rounds": 2, "penalty": 1.0}, "penalty must be 'auto' with rounds"),
    "augment": ({"augment": "rotate"}, "augment must be 'auto', 'mirror' or None"),
    "batch_size": ({"batch_size": 0}, "batch_size must be"),
    "batch_size as a truth value": ({"batch_size": True}, "batch_size must be"),
    "epochs": ({"epochs": 2.5}, "epochs must be"),
    "clip_norm": ({"clip_norm": 0}, "clip_norm must be"),
    "random_state": ({"random_state": "seed"}, "random_state must be"),
    "device": ({"device": "abacus"}, "device must be .*'abacus'"),
    "loss": ({"loss": "squared"}, "does not fit these labels"),
    "class_weight by name": ({"class_weight": "fair"}, "class_weight must be"),
    "class_weight below zero": ({"class_weight": {2: -1}}, "numbers from 0"),
    "class_weight of no class": ({"class_weight": {7: 1}}, "y has not: 7"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_argument(table: tuple[np.ndarray, np.ndarray], case: str) -> None:
    change, message = BAD_ARGUMENTS[case]
    with pytest.raises(ConfigurationError, match=message):
        GradientFeatureClassifier(mlp, **{**QUICK, **change}).fit(*table)


def test_bad_arguments_are_reported_together(table: tuple[np.ndarray, np.ndarray]) -> None:
    model = GradientFeatureClassifier(
        mlp,
        mode="ful",
        solver="lbfgss",
        parametrization="ntk_fan",
        precision="half",
        cache="disk",
        memory="2 XB",
        penalty=-1,
        epochs=0,
    )
    with pytest.raises(ConfigurationError) as caught:
        model.fit(*table)
    lines = str(caught.value).splitlines()
    names = ["mode", "solver", "parametrization", "precision", "cache", "penalty", "epochs", "memory"]
    assert [line.split()[0] for line in lines] == names


def test_theta2_that_is_not_there(table: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(Theta2Error, match=r"Did you mean 0\.weight"):
        GradientFeatureClassifier(mlp, theta2="0.wieght", **QUICK).fit(*table)


def test_loss_of_a_regression(table: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ConfigurationError, match="'squared'"):
        GradientFeatureRegressor(mlp, loss="logistic", **QUICK).fit(table[0], table[0][:, 0])


BAD_WEIGHTS = {
    "negative": (-np.ones(N), "negative"),
    "all zero": (np.zeros(N), "non-zero|zero"),
    "NaN": (np.full(N, np.nan), "NaN"),
    "length": (np.ones(3), "sample_weight"),
    "matrix": (np.ones((N, 2)), "1D"),
    "names": (["heavy"] * N, "sample_weight"),
    "one class left": (
        (np.arange(N) % 3 == 0) * 1.0,
        r"one class only \(0\) among the samples with a weight above zero",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights(table: tuple[np.ndarray, np.ndarray], case: str) -> None:
    weight, message = BAD_WEIGHTS[case]
    with pytest.raises(DataError, match=message):
        GradientFeatureClassifier(mlp, **QUICK).fit(*table, sample_weight=weight)


def test_all_classes_of_weight_zero(table: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="all samples have weight zero"):
        GradientFeatureClassifier(mlp, class_weight=dict.fromkeys(range(3), 0), **QUICK).fit(*table)


BAD_PAIRS = {
    "none": ([], "no pairs"),
    "beyond the samples": ([(np.arange(12), np.arange(12, 40))], "below 24"),
    "nothing held out": ([(np.arange(12), np.arange(0))], "empty part"),
    "no pairs": ([3, 4], "pairs of indices"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_of_cv(table: tuple[np.ndarray, np.ndarray], case: str) -> None:
    pairs, message = BAD_PAIRS[case]
    with pytest.raises(DataError, match=message):
        GradientFeatureClassifier(mlp, epochs=1, cv=pairs).fit(*table)


def test_multilabel_takes_no_weights_of_classes_or_scores(table: tuple[np.ndarray, np.ndarray]) -> None:
    X, Y = table[0], np.eye(3)[table[1]]
    with pytest.raises(ConfigurationError, match="multi-class labels"):
        GradientFeatureClassifier(mlp, class_weight="balanced", **QUICK).fit(X, Y)
    model = GradientFeatureClassifier(mlp, mode="activation", **QUICK).fit(X, Y)
    with pytest.raises(ConfigurationError, match="takes no sample_weight"):
        model.score(X, Y, sample_weight=np.ones(N))
    with pytest.raises(DataError, match="one shape"):
        model.score(X, Y[:, :2])


def test_shapes_that_the_network_does_not_take() -> None:
    X, y = np.zeros((N, 2, 8, 8), dtype=np.float32), np.arange(N) % 3
    with pytest.raises(GradfeatError, match=r"cannot take an input of shape \(3, 2, 8, 8\)"):
        GradientFeatureClassifier(convnet(), **QUICK).fit(X, y)


def test_other_samples_than_in_fit(table: tuple[np.ndarray, np.ndarray]) -> None:
    model = GradientFeatureClassifier(mlp, mode="activation", **QUICK).fit(*table)
    with pytest.raises(DataError, match="3 features, but GradientFeatureClassifier is expecting 4"):
        model.predict(table[0][:, :3])
    with pytest.raises(DataError, match=r"samples of shape \(3,\); the model was fitted to samples of shape \(4,\)"):
        model.predict(torch.zeros(5, 3))
    with pytest.raises(DataError, match="24 samples and y has 23"):
        model.score(table[0], table[1][:-1])


def test_paths_that_are_not_there() -> None:
    model = GradientFeatureClassifier(convnet(), preprocessing={"size": (8, 8), "mean": (0.5,), "std": (0.5,)}, **QUICK)
    for paths in (["nowhere.png"] * N, np.array(["nowhere.png"] * N)):
        with pytest.raises(ConfigurationError, match=r"no files, as 'nowhere\.png'"):
            model.fit(paths, np.arange(N) % 3)


def test_a_fit_that_fails_leaves_the_one_before(table: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = table
    model = GradientFeatureClassifier(mlp((N, 4)), theta2="*", penalty=0.1, random_state=0)
    with pytest.raises(DataError):
        model.fit(with_nan(X), y)
    assert not hasattr(model, "classes_")
    before = model.fit(X, y).predict_proba(X)
    for bad in (lambda: model.fit(with_nan(X), y + 100), lambda: model.fit(X[:, :2], y + 100)):
        with pytest.raises(GradfeatError):
            bad()
        assert model.classes_.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("solver", ["subspace", "dual"])
def test_features_too_large_for_their_precision(table: tuple[np.ndarray, np.ndarray], solver: str) -> None:
    class Large(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * self.scale

    def model(scale: float) -> GradientFeatureClassifier:
        torch.manual_seed(0)
        return GradientFeatureClassifier(Large(scale), theta2="layer", solver=solver, random_state=0)

    assert np.isfinite(model(1e28).fit(*table).predict_proba(table[0])).all()
    with pytest.raises(ConvergenceError, match=r"finite|too large"):
        model(1e39).fit(*table)


def test_weights_are_shares_however_large(table: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = table
    weight = np.linspace(0.5, 2, N)
    torch.manual_seed(0)
    network = mlp((N, 4))
    small, large = (
        GradientFeatureClassifier(network, theta2="*", mode="activation", random_state=0).fit(
            X, y, sample_weight=scale * weight
        )
        for scale in (1.0, 2.0**900)
    )
    np.testing.assert_array_equal(small.predict_proba(X), large.predict_proba(X))


@pytest.mark.parametrize("call", ["predict", "predict_proba", "decision_function", "score", "save", "merge"])
def test_before_fit(table: tuple[np.ndarray, np.ndarray], call: str) -> None:
    model = GradientFeatureClassifier(mlp)
    arguments = {"score": table, "save": ("model.safetensors",), "merge": ()}.get(call, table[:1])
    with pytest.raises(GradfeatError, match="not fitted yet") as caught:
        getattr(model, call)(*arguments)
    assert isinstance(caught.value, SklearnNotFittedError)
