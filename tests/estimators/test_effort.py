"""effort: how deep θ₂ goes and whether θ̄₂ moves, by a look at some samples."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import gradfeat
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare
from gradfeat.backbones import resolve
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, LinearizationError, Theta2Error
from gradfeat.estimators import preparing
from gradfeat.estimators.looking import drawn
from gradfeat.estimators.preparing import Prepared
from gradfeat.fit import Plan, Problem, prepare, select_solver
from gradfeat.fit.linearize import backbone_candidates, linearize_backbone
from gradfeat.fit.look import FEWEST, MOST, Look, look
from gradfeat.fit.plan import RATES
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.fit.steps import Rounds
from gradfeat.losses import CrossEntropy
from gradfeat.progress import Progress
from gradfeat.solvers.probe import Probe


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


def network(blocks: int = 2, *, blind: bool = True) -> nn.Module:
    """Return residual blocks; a blind network's lowest layer does not see the first input, unless it learns to."""
    torch.manual_seed(0)
    lowest = nn.Linear(5, 5)
    if blind:
        with torch.no_grad():
            lowest.weight[:, 0] = 0
    return nn.Sequential(lowest, *(Block() for _ in range(blocks - 1))).eval()


def samples(n: int = 200, seed: int = 0) -> np.ndarray:
    """Return samples whose first input is large, so that small steps of its weights show."""
    return (np.random.default_rng(seed).normal(size=(n, 5)) * [10, 1, 1, 1, 1]).astype(np.float32)


def far(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples whose labels hang on what the blind layer does not see."""
    X = samples(n, seed)
    return X, (X[:, 0] > 0).astype(int)


def near(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples whose labels are by chance, but for what a linear model on the features says."""
    X = samples(n, seed)
    with torch.no_grad():
        logits = 2 * network()(torch.from_numpy(X))[:, 0].numpy()
    return X, (np.random.default_rng(seed).random(n) < 1 / (1 + np.exp(-logits))).astype(int)


def classifier(backbone: nn.Module | None = None, **settings: Any) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network() if backbone is None else backbone, **{"random_state": 0, **settings})


def top_of(blocks: int) -> list[str]:
    return [f"{blocks - 1}.layer.weight", f"{blocks - 1}.layer.bias"]


def prepared(X: Any, y: Any = None, weight: Any = None, **settings: Any) -> Prepared:
    """Return what an estimator of some settings fits a model to."""
    estimator = classifier(**settings)
    return estimator.prepare(estimator.read(X, y, weight))


def losses_of(found: Prepared | GradientFeatureClassifier) -> list[float]:
    return [depth.loss for depth in (found.depths if isinstance(found, Prepared) else found.depths_)]


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


def refuse(*args: Any, **settings: Any) -> Look:
    raise AssertionError("there was a look")


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


# ---- how it looks ---------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_result(moved: GradientFeatureClassifier) -> None:
    X, y = far()
    assert losses_of(prepared(X, y)) == losses_of(moved)
    assert losses_of(prepared(X, y, random_state=1)) != losses_of(moved)


class Idle(Block):
    """A block that does nothing, and whose weights do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.layer(x)


def test_without_a_seed_all_depths_hold_out_the_same_samples() -> None:
    """A block without gradients makes no difference to the loss, other held-out samples do."""
    X, y = near()
    torch.manual_seed(0)
    backbone = nn.Sequential(Block(), Idle(), Block()).eval()
    one, two = losses_of(prepared(X, y, backbone=backbone, random_state=None))[:2]
    assert two == pytest.approx(one, rel=1e-4)


def looked(
    losses: Sequence[float | Exception],
    monkeypatch: pytest.MonkeyPatch,
    *,
    probe: float = 1.0,
    linear: float = 2.0,
    all_depths: bool = False,
    y: Tensor | None = None,
) -> Look:
    """Return what a look decides where 1, 2, 4 ... of six blocks have these losses, or cannot be built."""
    given = iter(losses)
    y = torch.arange(100) % 2 if y is None else y

    def build(modules: Sequence[str], known: Probe | None) -> Any:
        loss = next(given)
        if isinstance(loss, Exception):
            raise loss
        lin = SimpleNamespace(device=torch.device("cpu"), theta2={name: torch.zeros(3) for name in modules})
        return SimpleNamespace(probe=None, linearization=lin, n=len(y), y=y, loss=loss)

    def search(problem: Any, plan: Plan, run: Any) -> Any:
        assert (plan.rounds, plan.rates) == ("auto", RATES[:1])
        trial = SimpleNamespace(loss=problem.loss)
        chosen = trial if problem.loss < probe else None
        return SimpleNamespace(start=probe, trials=[trial], chosen=chosen, passes=8, interrupted=False)

    def choose(*_: Any) -> Any:
        return SimpleNamespace(loss=linear, passes=4), None

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", search)
    monkeypatch.setattr("gradfeat.fit.look.choose", choose)
    X = torch.from_numpy(samples(3))
    candidates = backbone_candidates(resolve(network(6)), X)
    return look(candidates, build, Plan(seed=0), Progress(False), all_depths=all_depths)


@pytest.mark.parametrize(
    ("losses", "tried", "taken"),
    [
        ([0.9, 0.8, 0.8, 0.1], 3, 2),  # no fall: none deeper is tried
        ([0.9, 0.8, 0.795, 0.7], 4, 6),  # a fall that is not worth the depth, but the next is
        ([0.9, 0.8, 0.795, 0.794], 4, 2),
        ([1.2, 1.1, 1.0, 0.9], 4, 6),  # a fall that begins above the probe
        ([1.2, 1.1, 1.05, 0.995], 4, None),  # not worth it beside the probe
        ([1.1, 1.2, 0.1, 0.1], 2, None),
        ([float("inf"), 0.1, 0.1, 0.1], 1, None),  # training diverges
        ([0.9, LinearizationError("no"), 0.5, 0.6], 3, 4),  # left out
        ([LinearizationError("no"), 0.9, 0.8, 0.9], 3, 4),
        ([0.9, 0.5, Theta2Error("no"), Theta2Error("no")], 2, 2),
        ([0.9, MemoryError(), 0.1, 0.1], 1, 1),
    ],
)
def test_what_a_look_decides(
    losses: list[float | Exception], tried: int, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = looked(losses, monkeypatch)
    assert len(found.tried) == tried
    assert found.modules == (None if taken is None else ("5", "4", "3", "2", "1", "0")[:taken])
    assert [depth.parameters for depth in found.tried] == [3 * len(depth.modules) for depth in found.tried]
    assert len(found.notes) == sum(isinstance(loss, Exception) for loss in losses[: tried + 2])
    assert all(note in str(found) for note in found.notes)


def test_high_effort_looks_at_all_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked([1.1, 1.2, 0.8, 0.9], monkeypatch, all_depths=True)
    assert (len(found.tried), found.modules) == (4, ("5", "4", "3", "2"))


def test_there_is_nothing_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LinearizationError, match="first"):
        looked([LinearizationError("first"), *[LinearizationError("other")] * 3], monkeypatch)
    with pytest.raises(MemoryError):
        looked([MemoryError()], monkeypatch)
    with pytest.raises(Theta2Error, match="no layer with a weight"):
        look([], lambda modules, probe: pytest.fail("nothing can be built"), Plan(seed=0), Progress(False))


def test_classes_of_one_sample_cannot_be_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked([0.5], monkeypatch, y=torch.arange(100))
    assert (found.tried, found.modules, len(found.notes)) == ([], None, 1)


def test_a_deeper_one_is_looked_at_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.fit.look.available_memory", lambda device: 2 * 8 * 4 * 60)  # for sixty parameters
    found = looked([0.9, 0.8, 0.7, 0.6], monkeypatch)
    assert (len(found.tried), found.modules) == (2, ("5", "4"))
    assert "no room in memory to look down to 2" in found.notes


def test_high_effort_finds_what_the_upper_blocks_do_not_tell() -> None:
    X, y = far()
    backbone = network(6)
    found = prepared(X, y, backbone=backbone, effort="high")
    assert [len(depth.modules) for depth in found.depths] == [1, 2, 4, 6]
    assert found.look is not None
    assert found.look.modules == ("5", "4", "3", "2", "1", "0")
    assert set(RATES) < set(classifier(effort="high").plan(200).rates)


def test_losses_are_of_the_samples_that_a_trial_does_not_learn(moved: GradientFeatureClassifier) -> None:
    """Each depth is one trial on half of the samples, judged by the other half."""
    X, y = far()
    for depth in moved.depths_:
        rows = drawn(y, MOST, 0)
        lin = linearize_backbone(resolve(network()), torch.from_numpy(X[:3]), list(depth.modules))
        problem = prepare(lin, Inputs(X[rows]), torch.from_numpy(y[rows]), CrossEntropy(), random_state=0)
        split = hold_out(problem, 0, 0.5)
        assert (len(split.train), len(split.validation)) == (100, 100)
        rounds = search_rounds(problem, Plan(rounds="auto", rates=RATES[:1], seed=0), Run([split], generator()))
        assert rounds.trials[0].loss == pytest.approx(depth.loss, rel=1e-5)


def generator() -> torch.Generator:
    return Plan(seed=0).generator()


def test_some_of_many_samples_are_looked_at_and_two_of_each_class_among_them() -> None:
    y = np.zeros(5000, dtype=int)
    y[[17, 1234, 4321]] = 1
    y[99] = 2
    for seed in range(3):
        rows = drawn(y, MOST, seed)
        assert len(np.unique(rows)) == MOST
        assert (np.diff(rows) > 0).all()
        assert np.bincount(y[rows])[1:].tolist() == [2, 1]
    np.testing.assert_array_equal(drawn(y[:50], MOST, 0), np.arange(50))
    assert len(drawn(np.zeros((5000, 2)), MOST, 0)) == MOST
    assert len(drawn(np.arange(5000), MOST, 0)) == MOST  # more classes than room


# ---- beside it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 60], ids=["judging the probe", "in training"])
def test_an_interrupted_look_leaves_the_estimator_as_it_was(
    moved: GradientFeatureClassifier, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    model = pickle.loads(pickle.dumps(moved))
    X, y = far(150, seed=3)
    before = model.decision_function(X)

    counted, per_sample = itertools.count(1), CrossEntropy.per_sample

    def interrupt(*args: Any) -> Tensor:
        if next(counted) == calls:
            raise KeyboardInterrupt
        return per_sample(*args)

    monkeypatch.setattr(CrossEntropy, "per_sample", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert next(counted) == calls + 1
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


# ---- other samples --------------------------------------------------------------------------------------------------


def test_texts_of_several_lengths_are_looked_at(tiny_bert: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    texts = [" ".join(["a"] * rng.integers(1, 9) + [("bad", "good")[label]]) for label in y]
    found = prepared(texts, y, backbone=f"hf/{tiny_bert}", preprocessing={"length": 14, "lengths": [7, 14]})
    assert found.look is not None
    assert all(np.isfinite(losses_of(found)))
    assert found.depths[0].modules == ("transformer.encoder.layer.1",)


def test_mirror_images_are_learnt_and_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are versions of a sample; nothing but z₀ is kept of them."""
    seen = []

    def spy(problem: Problem, *rest: Any) -> Rounds:
        seen.append((problem.n, problem.views, len(problem.store), problem.store.level))
        return search_rounds(problem, *rest)

    monkeypatch.setattr("gradfeat.fit.look.search_rounds", spy)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten()).eval()
    X = np.random.default_rng(0).normal(size=(110, 1, 6, 6)).astype(np.float32)
    found = prepared(X, (X[:, 0, 0, 0] > 0).astype(int), backbone=backbone, augment="mirror")
    assert seen == [(110, 2, 220, "z0")] * len(found.depths)
