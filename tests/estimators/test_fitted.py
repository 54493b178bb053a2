"""All that was fitted is one frozen value, of which an estimator's attributes are the parts."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, load
from gradfeat.errors import ConfigurationError
from gradfeat.estimators.fitted import BuiltFrom, Fitted
from gradfeat.fit import solve
from gradfeat.fit.steps import Rounds

X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
Y = np.array(["ant", "bee", "cat"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0)]
SETTINGS: dict[str, Any] = {"penalty": (0.1, 0.2), "random_state": 0}

ATTRIBUTES: dict[str, Callable[[Fitted], Any]] = {
    "omega_": lambda fitted: fitted.weights.omega,
    "w1_": lambda fitted: fitted.weights.w1,
    "b_": lambda fitted: fitted.weights.b,
    "w2_": lambda fitted: fitted.weights.w2,
    "theta2_": lambda fitted: fitted.weights.theta2,
    "modules_": lambda fitted: fitted.network.modules,
    "backbone_": lambda fitted: fitted.network.backbone,
    "example_": lambda fitted: fitted.network.example,
    "classes_": lambda fitted: fitted.targets.classes,
    "loss_": lambda fitted: fitted.targets.loss,
    "merged_head_": lambda fitted: fitted.merged_head,
    "probe_": lambda fitted: fitted.record.probe,
    "choice_": lambda fitted: fitted.record.choice,
    "solution_": lambda fitted: fitted.record.solution,
    "rounds_": lambda fitted: fitted.record.rounds,
    "selection_": lambda fitted: fitted.record.selection,
    "history_": lambda fitted: fitted.record.history,
    "how_": lambda fitted: fitted.record.how,
    "seconds_": lambda fitted: fitted.record.seconds,
    "depths_": lambda fitted: fitted.record.depths,
    "n_iter_": lambda fitted: fitted.record.n_iter,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU())


@pytest.fixture(scope="module")
def classifier() -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **SETTINGS).fit(X, Y)


@pytest.fixture(scope="module")
def regressor() -> GradientFeatureRegressor:
    return GradientFeatureRegressor(network(), **SETTINGS).fit(X, 1e6 + X[:, 0].astype(float) ** 2)


def parts(value: Any, name: str = "fitted") -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that can be compared, by their names; a network by its fingerprint."""
    if isinstance(value, nn.Module):
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if not isinstance(value, Rounds) or field.name != "point":  # a file has the point once, as the weights
                yield from parts(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        yield f"{name} (names)", list(value)
        for key, item in value.items():
            yield from parts(item, f"{name}.{key}")
    elif isinstance(value, torch.Tensor | np.ndarray):
        yield name, (str(value.dtype), np.asarray(value).tolist())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            yield from parts(item, f"{name}[{i}]")
    elif type(value).__module__.startswith("gradfeat.losses"):
        yield name, (value.name, None if getattr(value, "mean", None) is None else value.mean.tolist())
    else:
        yield name, value


def assert_equal(one: Fitted, other: Fitted, *, besides: tuple[str, ...] = ()) -> None:
    first, second = dict(parts(one)), dict(parts(other))
    assert len(first) > 50
    differing = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    assert [name for name in differing if not name.startswith(besides)] == []


# ---- attributes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_is_a_part_of_what_was_fitted(classifier: GradientFeatureClassifier, name: str) -> None:
    assert getattr(classifier, name) is ATTRIBUTES[name](classifier.fitted_)


@pytest.mark.parametrize("name", [*ATTRIBUTES, "fitted_", "class_names_"])
@pytest.mark.parametrize("cls", [GradientFeatureClassifier, GradientFeatureRegressor])
def test_there_is_none_before_a_fit(cls: Any, name: str) -> None:
    assert not hasattr(cls(network()), name)


def test_a_regression_has_no_classes(regressor: GradientFeatureRegressor) -> None:
    assert not hasattr(regressor, "classes_")
    assert regressor.fitted_.targets.classes is None
    assert regressor.fitted_.targets.one_output


def test_it_is_frozen(classifier: GradientFeatureClassifier) -> None:
    def frozen(value: Any) -> None:
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, None)

    fitted = classifier.fitted_
    for part in (fitted, fitted.settings, fitted.network, fitted.targets, fitted.columns, fitted.weights):
        frozen(part)
    frozen(fitted.record)
    with pytest.raises(AttributeError):
        classifier.w1_ = torch.zeros(5, 3)  # type: ignore[misc]


def test_names_of_classes_are_given_after_a_fit(classifier: GradientFeatureClassifier, tmp_path: Path) -> None:
    named = copy.copy(classifier)
    named.class_names_ = ["Ant", "Bee", "Cat"]
    assert named.fitted_.class_names == ["Ant", "Bee", "Cat"]
    assert classifier.class_names_ is None
    assert load(named.save(tmp_path / "m.safetensors"), network()).class_names_ == ["Ant", "Bee", "Cat"]
    assert named.fit(X, Y).class_names_ is None


def test_scikit_learn_knows_whether_it_is_fitted(classifier: GradientFeatureClassifier) -> None:
    check_is_fitted(classifier)
    again = clone(classifier)
    assert again.get_params()["penalty"] == (0.1, 0.2)
    with pytest.raises(NotFittedError):
        check_is_fitted(again)
    with pytest.raises(NotFittedError):
        again.predict(X)


# ---- one model is made from it ----------------------------------------------------------------------------------


def test_it_knows_what_a_table_and_a_callable_were(classifier: GradientFeatureClassifier) -> None:
    assert classifier.fitted_.columns.count == 3 == classifier.n_features_in_
    assert classifier.fitted_.network.built_from == BuiltFrom((30, 3), 0)
    assert dataclasses.asdict(classifier.fitted_.settings) == {
        "mode": "full",
        "parametrization": "standard",
        "precision": "auto",
        "loss": "auto",
        "effort": "auto",
        "rounds": None,
        "augment": None,
    }


def test_the_model_that_is_made_from_it_is_the_one_that_was_fitted(regressor: GradientFeatureRegressor) -> None:
    fitted = regressor.fitted_
    assert fitted.weights.b.dtype == torch.float64
    assert abs(float(fitted.weights.b) - 1e6) < 1e3  # the mean of the targets is in it, and not in the model's
    made = fitted.model(fitted.network.linearization("cpu", "auto"))
    assert float(made.b.detach().abs()) < 1e3
    for name, value in regressor.model_.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


# ---- copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"mode": "activation"},
        {"mode": "gradient", "penalty": "auto"},
        {"mode": "finetune", "epochs": 1},
        {"theta2": "search", "penalty": "auto", "rounds": 30},
    ],
    ids=["activation", "gradient", "finetune", "rounds"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_file_and_a_pickle_hold_all_of_it(tmp_path: Path, parameters: dict[str, Any]) -> None:
    model = GradientFeatureClassifier(network(), **{**SETTINGS, **parameters}).fit(X, Y)
    assert_equal(model.fitted_, pickle.loads(pickle.dumps(model)).fitted_)
    assert_equal(model.fitted_, copy.deepcopy(model).fitted_)
    loaded = load(model.save(tmp_path / "m.safetensors"), network())
    # samples of the same shape stand for the example, and a search is not repeated
    assert_equal(model.fitted_, loaded.fitted_, besides=("fitted.network.example",))
    assert loaded.fitted_.network.example.shape == model.fitted_.network.example.shape


def test_a_regression_is_kept_to_the_last_bit(regressor: GradientFeatureRegressor, tmp_path: Path) -> None:
    loaded = load(regressor.save(tmp_path / "m.safetensors"), network())
    assert_equal(regressor.fitted_, loaded.fitted_, besides=("fitted.network.example",))
    np.testing.assert_array_equal(loaded.predict(X), regressor.predict(X))


def test_a_failed_fit_leaves_it_as_it_was(classifier: GradientFeatureClassifier) -> None:
    model = copy.copy(classifier)
    before = model.fitted_
    with pytest.raises(ConfigurationError):
        model.set_params(mode="ful").fit(X[:, :2], Y)
    assert model.fitted_ is before
    assert model.n_features_in_ == 3


# ---- several models of the same data ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_compare_makes_one_for_each_mode() -> None:
    modes = ("activation", "gradient", "full")
    table = compare(network(), X, Y, X, Y, modes=modes, **SETTINGS)
    for mode in modes:
        alone = GradientFeatureClassifier(network(), mode=mode, **SETTINGS).fit(X, Y)
        together = table.estimators[mode]
        assert together.fitted_.settings.mode == mode
        assert_equal(
            alone.fitted_,
            together.fitted_,
            besides=("fitted.record.seconds", "fitted.record.solution.seconds", "fitted.record.history.seconds"),
        )
        assert together.n_features_in_ == 3
    networks = {id(estimator.fitted_.network) for estimator in table.estimators.values()}
    assert len(networks) == 1


def test_what_is_prepared_once_serves_another_estimator(classifier: GradientFeatureClassifier) -> None:
    prepared = clone(classifier).prepare(clone(classifier).read(X, Y))
    other = GradientFeatureClassifier(network(), **{**SETTINGS, "mode": "activation"})
    other.adopt(prepared, solve(prepared.problem, other.plan(prepared.problem.n)))
    assert other.predict(X).tolist() == (
        GradientFeatureClassifier(network(), **{**SETTINGS, "mode": "activation"}).fit(X, Y).predict(X).tolist()
    )
    assert other.fitted_.network is prepared.network
