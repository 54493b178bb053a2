"""effort: how deep θ₂ goes and whether θ̄₂ moves, by a look at some samples: what is decided, for whom, and kept."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

import gradfeat
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare
from gradfeat.errors import ConfigurationError
from gradfeat.estimators import preparing
from gradfeat.fit import Plan, select_solver
from gradfeat.fit.look import FEWEST
from gradfeat.losses import CrossEntropy

sys.path.insert(0, str(Path(__file__).parent))
from effort_cases import classifier, far, losses_of, near, network, prepared, refuse, samples, top_of


@pytest.fixture(scope="module")
def moved() -> GradientFeatureClassifier:
    return classifier().fit(*far())


# ---- what is decided ------------------------------------------------------------------------------------------------


def test_where_the_task_needs_the_lowest_block_theta2_goes_down_to_it_and_moves(
    moved: GradientFeatureClassifier,
) -> None:
    assert moved.modules_ == ["1", "0"]
    assert moved.rounds_ is not None
    assert moved.theta2_ is not None
    column = moved.theta2_["0.weight"][:, 0]
    assert column.abs().max() > 0.01  # it sees the first input now
    one, two = moved.depths_
    assert two.loss < 0.95 * one.loss
    assert [depth.parameters for depth in moved.depths_] == [30, 60]
    assert isinstance(moved.depths_, list)
    assert moved.seconds_["look at depths"] >= sum(depth.seconds for depth in moved.depths_)
    X, y = far(1000, seed=1)
    assert classifier(effort="low").fit(*far()).score(X, y) < 0.6  # nothing else could see it
    assert moved.score(X, y) > 0.75


def test_the_fit_is_that_of_the_depth_by_name_in_rounds(moved: GradientFeatureClassifier) -> None:
    X, y = far()
    named = classifier(theta2=moved.modules_, rounds="auto").fit(X, y)
    np.testing.assert_array_equal(moved.decision_function(X), named.decision_function(X))
    assert "effort" not in named.how_
    assert "θ̄₂ moves, down to 0" in moved.how_["effort"]


def test_a_near_task_has_one_linearization_of_the_topmost_block() -> None:
    X, y = near()
    found, low = classifier().fit(X, y), classifier(effort="low").fit(X, y)
    assert (found.modules_, list(found.w2_)) == ("auto", top_of(2))
    assert (found.rounds_, found.theta2_) == (None, None)
    assert "the topmost block, where it is" in found.how_["effort"]
    assert len(found.depths_) == 2
    np.testing.assert_array_equal(found.decision_function(X), low.decision_function(X))


def test_labels_by_chance_have_one_linearization_too() -> None:
    for seed in range(3):
        found = prepared(samples(), np.random.default_rng(seed).integers(2, size=200), random_state=seed)
        assert found.look is not None
        assert found.look.modules is None
        assert found.decided(Plan()).rounds == 1
        assert list(found.problem.linearization.theta2) == top_of(2)


def test_a_regression_is_looked_at_too() -> None:
    X = samples()
    estimator = GradientFeatureRegressor(network(), random_state=0)
    found = estimator.prepare(estimator.read(X, np.sign(X[:, 0])))
    assert found.look is not None
    assert found.look.modules == ("1", "0")


def test_several_labels_a_sample_are_looked_at_too() -> None:
    X, y = far()
    several = np.stack([y, X[:, 1] > 0], axis=1).astype(float)
    several[::7, 1] = np.nan
    found = prepared(X, several)
    assert found.look is not None
    assert found.look.modules == ("1", "0")
    assert found.decided(Plan()).rounds == "auto"
    assert found.decided(Plan(mode="gradient")).rounds == 1


def test_samples_of_weight_zero_are_not_there(moved: GradientFeatureClassifier) -> None:
    X, y = far()
    more, wrong = np.concatenate([X, X]), np.concatenate([y, 1 - y])
    weighted = prepared(more, wrong, np.repeat([2.0, 0.0], len(y)))
    assert losses_of(weighted) == pytest.approx(losses_of(moved), rel=1e-4)
    few = prepared(more, wrong, np.r_[np.ones(FEWEST - 1), np.zeros(2 * len(y) - FEWEST + 1)])
    assert few.look is None


def test_weights_count() -> None:
    """Where all weight is on labels by chance, no move pays, and where it is on the others it does."""
    X, y = far()
    by_chance = np.random.default_rng(0).integers(2, size=len(y))
    X, y = np.concatenate([X, samples(len(y), seed=4)]), np.concatenate([y, by_chance])
    light = np.repeat([1e-6, 1.0], len(by_chance))
    for weight, modules in ((light, None), (light[::-1], ("1", "0"))):
        found = prepared(X, y, weight)
        assert found.look is not None
        assert found.look.modules == modules


# ---- who is looked at -----------------------------------------------------------------------------------------------


def test_fewer_samples_are_fitted_as_with_low_effort() -> None:
    found = prepared(*far(FEWEST - 1))
    assert (found.look, list(found.depths), found.decided(Plan()).rounds) == (None, [], 1)
    assert list(found.problem.linearization.theta2) == top_of(2)
    assert prepared(*far(FEWEST)).look is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"theta2": "1"},
        {"theta2": "top"},
        {"theta2": ["auto"]},
        {"effort": "low"},
        {"penalty": 0.1},
        {"solver": "subspace"},
        {"metric": "plain"},
        {"parametrization": "ntk_fan_in"},
        {"rounds": 1},
        {"precision": "bfloat16"},
        {"mode": "gradient"},
        {"mode": "activation"},
        {"mode": "finetune"},
    ],
    ids=str,
)
def test_who_names_theta2_or_asks_for_one_linearization_has_it(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "look", refuse)
    found = prepared(*far(120), **settings)
    assert (found.look, list(found.depths)) == (None, [])
    assert found.decided(classifier(**settings).plan(120)).rounds == 1
    assert list(found.problem.linearization.theta2) == top_of(2)


class Changing(Dataset[Any]):
    def __init__(self) -> None:
        self.X, self.y = far(120)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.X[i]), int(self.y[i])


def test_samples_that_may_change_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "look", refuse)
    found = prepared(Changing())
    assert select_solver(found.problem, found.decided(Plan()))[0] == "adam"
    assert list(found.problem.linearization.theta2) == top_of(2)


def test_rounds_that_are_asked_for_stay() -> None:
    for data, modules in ((near(), None), (far(), ("1", "0"))):
        found = prepared(*data, rounds=3)
        assert found.look is not None
        assert found.look.modules == modules
        assert found.decided(classifier(rounds=3).plan(200)).rounds == 3


def test_an_effort_that_there_is_not() -> None:
    X, y = far(20)
    with pytest.raises(
        ConfigurationError, match=r"effort must be one of low, auto, high, not 'hihg'\. Did you mean high"
    ):
        classifier(effort="hihg").fit(X, y)
    with pytest.raises(ConfigurationError, match="Did you mean high"):
        classifier(effort="max").fit(X, y)


# ---- beside it ------------------------------------------------------------------------------------------------------


def test_a_look_that_is_interrupted_before_it_knows_anything_leaves_the_estimator_as_it_was(
    moved: GradientFeatureClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pickle.loads(pickle.dumps(moved))
    X, y = far(150, seed=3)
    before = model.decision_function(X)

    def interrupt(*args: Any) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(CrossEntropy, "per_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    monkeypatch.undo()
    assert losses_of(model) == losses_of(moved)
    np.testing.assert_array_equal(model.decision_function(X), before)


def test_file_and_pickle_keep_what_was_decided(moved: GradientFeatureClassifier, tmp_path: Path) -> None:
    X, _ = far()
    loaded = gradfeat.load(moved.save(tmp_path / "model.safetensors"), network())
    for other in (loaded, pickle.loads(pickle.dumps(moved))):
        np.testing.assert_array_equal(other.predict_proba(X), moved.predict_proba(X))
        assert other.how_["effort"] == moved.how_["effort"]
        assert other.effort == moved.effort
        assert other.rounds is None
    assert loaded.theta2 == moved.modules_
    asked = classifier(effort="high", mode="activation").fit(*far(40))
    assert gradfeat.load(asked.save(tmp_path / "asked.safetensors"), network()).effort == "high"


def test_a_checkpoint_keeps_the_look(
    moved: GradientFeatureClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = far()
    kept = prepared(X, y, checkpoint=tmp_path)
    monkeypatch.setattr(preparing, "look", refuse)
    again = classifier(checkpoint=tmp_path).fit(X, y)
    assert losses_of(kept) == losses_of(again) == losses_of(moved)
    assert kept.look is not None
    assert str(kept.look) == again.how_["effort"] == moved.how_["effort"]
    np.testing.assert_array_equal(again.decision_function(X), moved.decision_function(X))
    last = X.copy()
    last[-1] += 1
    with pytest.raises(ConfigurationError, match="another fit: other samples"):
        prepared(last, y, checkpoint=tmp_path)
    with pytest.raises(ConfigurationError, match="effort auto there, high now"):
        prepared(X, y, checkpoint=tmp_path, effort="high")


def test_compare_shares_the_theta2_that_full_is_looked_at_for(moved: GradientFeatureClassifier) -> None:
    X, y = far()
    test = far(50, seed=1)
    table = compare(network(), X, y, *test, modes=("activation", "gradient", "full"), random_state=0)
    full = table.estimators["full"]
    assert losses_of(full) == losses_of(moved)  # of training samples alone
    np.testing.assert_array_equal(full.decision_function(X), moved.decision_function(X))
    assert set(table.estimators["gradient"].w2_) == set(full.w2_)
    assert table.estimators["gradient"].rounds_ is None
    assert any(note.startswith("θ₂ down to 0 (60 parameters)") for note in table.notes)


def test_compare_without_full_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "look", refuse)
    X, y = far()
    table = compare(network(), X, y, X[:50], y[:50], modes=("activation", "gradient"), random_state=0)
    assert list(table.theta2) == top_of(2)
