"""Penalties that are chosen, and the solver behind them, through the estimators."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, linearize
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError, GradfeatWarning
from gradfeat.fit import Plan, Problem, prepare
from gradfeat.fit.choose import BOTH_BELOW, choose
from gradfeat.fit.penalties import Choice
from gradfeat.fit.run import Run
from gradfeat.fit.splits import (
    JUDGED,
    JUDGING,
    ONE_SPLIT_FROM,
    PARTS,
    SPLITS,
    TRAINED,
    WHOLE,
    count_of,
    hold_out,
    splits_of,
)
from gradfeat.fit.subspace import LEAST, SubspaceSolver
from gradfeat.losses import CrossEntropy
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Penalties, Subspace


def data(n: int = 240, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] + noise * rng.normal(size=n) > 0).astype(int)


class Changing(Dataset):
    """Samples of which nobody knows whether they stay."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.pairs = [(torch.from_numpy(x), int(label)) for x, label in zip(X, y, strict=True)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.pairs[i]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh())


def problem_of(X: np.ndarray, y: np.ndarray, penalty: float | str = "auto") -> Problem:
    lin = linearize(network(), torch.from_numpy(X[:3]), "*")
    return prepare(lin, Inputs(X), torch.from_numpy(y), CrossEntropy(), penalty=penalty, random_state=0)


def classifier(**settings: object) -> GradientFeatureClassifier:
    return GradientFeatureClassifier(network(), **{"theta2": "*", "random_state": 0, **settings})


def test_full_beats_the_probe_where_gradients_help() -> None:
    X, y = data()
    X_test, y_test = data(400, seed=1)
    full, probe = classifier().fit(X, y), classifier(mode="activation").fit(X, y)
    assert full.choice_.gradients
    # as long as the subspace grew that was judged on held-out data, or to the tolerance where that is sooner
    iterations = max(LEAST, full.choice_.iterations)
    assert full.solution_.converged or len(full.solution_.objective) == iterations
    assert len(full.solution_.objective) <= iterations
    assert full.score(X_test, y_test) > probe.score(X_test, y_test) + 0.1
    best = min(tried.loss for tried in full.choice_.path)
    without = min(tried.loss for tried in full.choice_.path if not tried.gradients)
    assert best < without


class WithoutEnd(SubspaceSolver):
    """Solves with chosen penalties to the tolerance, from the w₂ of the choice or from zero."""

    def __init__(self, *, from_zero: bool) -> None:
        self.from_zero = from_zero

    def choose(self, problem: Problem, plan: Plan, run: Run) -> tuple[Choice | None, Weights | None]:
        choice, w2 = super().choose(problem, plan, run)
        assert choice is not None
        return replace(choice, iterations=40), None if self.from_zero else w2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_fit_to_all_samples_begins_with_the_w2_of_the_choice(seed: int) -> None:
    problem, plan = problem_of(*data(noise=0.3)), Plan(metric="plain", seed=seed)
    begun, from_zero = (WithoutEnd(from_zero=value).fit(problem, plan) for value in (False, True))
    assert begun.choice == from_zero.choice
    assert begun.choice is not None
    assert begun.choice.gradients
    assert begun.solution is not None
    assert from_zero.solution is not None
    assert begun.solution.objective[0] < from_zero.solution.objective[0]
    assert begun.solution.passes < from_zero.solution.passes
    # both end within the tolerance of the same minimum
    assert begun.solution.objective[-1] == pytest.approx(from_zero.solution.objective[-1], rel=0.02)


def test_the_chosen_penalty_means_the_same_in_all_splits_and_in_the_fit_to_all_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = data()
    used: list[tuple[Subspace, Penalties]] = []
    solve = Subspace.solve

    def recorded(self: Subspace, penalties: Penalties, **how: Any) -> Any:
        used.append((self, penalties))
        return solve(self, penalties, **how)

    monkeypatch.setattr(Subspace, "solve", recorded)
    choice = classifier().fit(X, y).choice_
    last, penalties = used[-1]
    assert len(last.train) == len(X)
    assert penalties.lambda2 * len(X) == pytest.approx(choice.lambda2_units * choice.length)
    of_splits = [subspace for subspace, _ in used if subspace is not last]
    of_splits = [subspace for i, subspace in enumerate(of_splits) if subspace not in of_splits[:i]]
    groups = [of_splits[i : i + PARTS] for i in range(0, len(of_splits), PARTS)]  # one of each ω̄
    lengths = [np.mean([subspace.factors.trace for subspace in group]) for group in groups]
    assert min(abs(np.array(lengths) / choice.length - 1)) < 1e-6
    for group in groups:
        assert len({subspace.length for subspace in group}) == 1


def test_no_gradient_term_where_labels_are_chance() -> None:
    X, _ = data(80)
    y = np.random.default_rng(5).integers(0, 2, size=80)
    full = classifier().fit(X, y)
    losses = [tried.loss for tried in full.choice_.path]
    if not full.choice_.gradients:  # a probe, with the penalty that it says
        features, targets = (
            full.linearization_.primal(full.linearization_.bottom(torch.from_numpy(X)))[0],
            torch.from_numpy(y),
        )
        probe = fit_probe(features, targets, CrossEntropy(), penalty=full.choice_.lambda1)
        np.testing.assert_allclose(full.w1_, probe.omega, rtol=1e-3, atol=1e-5)
        assert all(not value.any() for value in full.w2_.values())
    # chance is log 2: neither is far above it on held-out data
    assert min(losses) < 0.75
    assert full.history_ is None or full.solution_ is not None


def test_given_penalties_are_used() -> None:
    X, y = data()
    heavy, light = classifier(penalty=(0.1, 1e4)).fit(X, y), classifier(penalty=(0.1, 1e-3)).fit(X, y)
    assert heavy.choice_ is None
    assert heavy.probe_.penalty == 0.1

    def norm(model: GradientFeatureClassifier) -> float:
        return sum(float(value.square().sum()) for value in model.w2_.values()) ** 0.5

    assert norm(heavy) < 1e-3 < 0.1 < norm(light)
    np.testing.assert_allclose(heavy.w1_, heavy.omega_, atol=0.02)


@pytest.mark.slow
def test_deterministic_and_the_same_after_saving(tmp_path: object) -> None:
    from gradfeat import load

    X, y = data()
    one, two = classifier().fit(X, y), classifier().fit(X, y)
    assert all(torch.equal(one.w2_[name], two.w2_[name]) for name in one.w2_)
    path = one.save(f"{tmp_path}/model.safetensors")
    np.testing.assert_allclose(load(path, backbone=network()).predict_proba(X), one.predict_proba(X), atol=1e-6)


def test_multilabel_with_missing_entries_and_regression() -> None:
    X, y = data()
    both = np.stack([y, 1 - y, X[:, 2] > 0], 1).astype(float)
    both[::5, 1] = np.nan
    labelled = classifier().fit(X, both)
    assert labelled.score(X, both) > 0.9
    target = X[:, 0] * X[:, 1]
    regressor = GradientFeatureRegressor(network(), theta2="*", random_state=0).fit(X, target)
    assert regressor.solution_.converged
    assert regressor.score(X, target) > 0.8


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (np.repeat(data(10)[0], 4, 0), np.repeat(np.arange(10) % 2, 4)),  # duplicates
        (data(12)[0], np.arange(12) % 6),  # two samples a class
        (data(4)[0], np.array([0, 1, 0, 1])),  # too few to hold out
        (data(2)[0], np.array([0, 1])),
        (np.ones((20, 6), dtype=np.float32), np.arange(20) % 2),  # constant features
    ],
    ids=["duplicates", "many-classes", "four", "two", "constant"],
)
@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_small_and_degenerate_data(X: np.ndarray, y: np.ndarray) -> None:
    model = classifier().fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()
    assert all(torch.isfinite(value).all() for value in model.w2_.values())


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_weights_of_zero_are_as_good_as_absent() -> None:
    X, y = data(60)
    weight = np.ones(60)
    weight[40:] = 0
    whole = classifier().fit(X, y, sample_weight=weight)
    part = classifier().fit(X[:40], y[:40], sample_weight=np.ones(40))
    np.testing.assert_allclose(whole.predict_proba(X), part.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize("penalty", [(1.0,), (1.0, -1.0), (1.0, 2.0, 3.0), "heavy"])
def test_penalties_that_cannot_be_meant(penalty: object) -> None:
    with pytest.raises(ConfigurationError, match="penalty must be"):
        classifier(penalty=penalty).fit(*data(20))


def test_squared_loss_on_classes() -> None:
    X, y = data()
    X_test, y_test = data(400, seed=1)
    model = classifier(loss="one_hot_squared").fit(X, y)
    assert model.loss_.name == "one_hot_squared"
    assert model.choice_.gradients
    probe = classifier(mode="activation", loss="one_hot_squared").fit(X, y)
    assert model.score(X_test, y_test) > probe.score(X_test, y_test) + 0.1
    np.testing.assert_allclose(model.predict_proba(X_test).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("per_class", [1, 2, 5])
@pytest.mark.parametrize("rounds", [1, "auto"])
def test_a_few_samples_of_each_class(per_class: int, rounds: int | str) -> None:
    X, y = data()
    few = np.concatenate([np.flatnonzero(y == k)[:per_class] for k in (0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        model = classifier(rounds=rounds).fit(X[few], y[few])
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize("mode", ["full", "gradient"])
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_many_classes_with_few_samples(per_class: int, mode: str) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(12), per_class)
    X = rng.normal(size=(len(y), 6)).astype(np.float32) + y[:, None].astype(np.float32) / 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        model = classifier(mode=mode, rounds="auto" if mode == "full" else 1).fit(X, y)
    assert model.predict_proba(X).shape == (len(y), 12)
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize(("rarest", "parts"), [(5, PARTS), (4, SPLITS)])
def test_each_of_few_samples_is_held_out_once(rarest: int, parts: int) -> None:
    X, y = data(60)
    few = np.concatenate([np.flatnonzero(y == 0)[:rarest], np.flatnonzero(y == 1)])
    splits = splits_of(problem_of(X[few], y[few], penalty=0.1), Plan(seed=0))
    validation = torch.cat([split.validation for split in splits]).tolist()
    assert len(splits) == parts
    assert (sorted(validation) == list(range(len(few)))) == (parts == PARTS)
    for split in splits:
        assert sorted([*split.train.tolist(), *split.validation.tolist()]) == list(range(len(few)))


def test_as_many_samples_judge_of_any_number_that_has_as_many() -> None:
    X, y = data(60)
    previous = PARTS
    for n in (60, 300, 375, 500, 749, 750, ONE_SPLIT_FROM - 1, ONE_SPLIT_FROM, 3000):
        many = np.arange(n) % 60
        splits = splits_of(problem_of(X[many], y[many], penalty=0.1), Plan(seed=0))
        validation = torch.cat([split.validation for split in splits])
        assert len(validation.unique()) == len(validation)
        assert len(validation) >= min(n, JUDGED) or n >= ONE_SPLIT_FROM
        assert all(len(split.train) == pytest.approx(0.8 * n, abs=1) for split in splits)
        assert previous - 1 <= len(splits) == count_of(n) <= previous  # one part less at a time
        previous = len(splits)


@pytest.mark.slow
@pytest.mark.parametrize("n", [310, 375, BOTH_BELOW, 430, 600, 850, ONE_SPLIT_FROM, WHOLE + 1])
def test_a_sample_more_or_less_changes_the_passes_of_a_fit_by_less_than_half(n: int) -> None:
    X, y = data(60, noise=0.3)
    means = []
    for size in (n - 1, n):
        many = np.arange(size) % 60  # so that both sizes choose alike
        problem = problem_of(X[many], y[many], penalty=0.01)
        fits = [SubspaceSolver().fit(problem, Plan(seed=seed)) for seed in range(4)]
        means.append(np.mean([fit.solution.passes for fit in fits if fit.solution is not None]))
    assert max(means) <= 1.5 * min(means)


def test_omega_of_many_samples_is_chosen_on_some_of_them() -> None:
    X, y = data(60, noise=0.3)
    many = np.arange(WHOLE + 1500) % 60
    problem, plan = problem_of(X[many], y[many], penalty=0.01), Plan(seed=0)
    choice, _ = choose(problem, plan, Run.of(problem, plan))
    assert choice is not None
    given = replace(problem, omega_penalties={"full": [choice.omega_penalty / problem.probe.penalty]})
    of_one, _ = choose(given, plan, Run.of(given, plan))
    assert of_one is not None
    # four ω̄ at most, each a direction and factors on a third of the samples
    assert 0 < choice.passes - of_one.passes < 4 * (TRAINED + JUDGING) / len(many) + 0.5
    assert len({tried.omega_penalty for tried in choice.path if tried.gradients}) == 1  # what was judged by all


def test_rare_classes_keep_a_sample_to_train_on() -> None:
    y = np.repeat(np.arange(10), [1, 1, 2, 2, 2, 2, 2, 2, 3, 3])
    problem = problem_of(data(len(y))[0], y, penalty=0.1)
    for seed in range(20):
        split = hold_out(problem, seed)
        assert set(y[split.train]) == set(range(10))
        assert len(split.validation) == 4
        assert sorted(torch.cat([split.train, split.validation]).tolist()) == list(range(20))


def test_metric_is_chosen_with_the_penalties_and_plain_where_they_are_given() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
    settings = {"theta2": "*", "solver": "subspace", "random_state": 0}

    def fitted(metric: str, **more: object) -> GradientFeatureClassifier:
        return GradientFeatureClassifier(backbone, metric=metric, **{**settings, **more}).fit(X, y)

    given, plain, whitened = (fitted(name, penalty=(0.01, 0.01)) for name in ("auto", "plain", "whitened"))
    np.testing.assert_array_equal(given.predict_proba(X), plain.predict_proba(X))
    assert not np.allclose(given.predict_proba(X), whitened.predict_proba(X), atol=1e-3)
    both, plain, whitened = (fitted(name) for name in ("auto", "plain", "whitened"))
    assert (plain.choice_.metric, whitened.choice_.metric) == ("plain", "whitened")
    assert both.choice_.loss <= whitened.choice_.loss
    assert both.choice_.passes > 1.3 * whitened.choice_.passes  # of both, plain of the best ω̄ alone
    if both.choice_.metric == "whitened":
        assert both.choice_.loss == whitened.choice_.loss
    assert fitted("auto", solver="dual").choice_.metric == "plain"  # the kernel's
    # from some number of samples on validation data need not be asked
    many = np.arange(BOTH_BELOW) % 60
    X, y = X[many], y[many]
    auto, alone = fitted("auto"), fitted("whitened")
    assert auto.choice_.metric == "whitened"
    np.testing.assert_array_equal(auto.predict_proba(X), alone.predict_proba(X))


def test_whitened_metric_is_another_penalty_and_of_the_subspace_solver(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
    settings = {"theta2": "*", "penalty": (0.01, 0.01), "random_state": 0}
    plain, whitened = (
        GradientFeatureClassifier(backbone, metric=metric, **settings).fit(X, y) for metric in ("plain", "whitened")
    )
    assert not np.allclose(plain.predict_proba(X), whitened.predict_proba(X), atol=1e-3)
    chosen = GradientFeatureClassifier(backbone, metric="whitened", theta2="*", rounds=2, random_state=0).fit(X, y)
    assert np.isfinite(chosen.predict_proba(X)).all()
    squared = GradientFeatureClassifier(backbone, metric="whitened", loss="one_hot_squared", **settings).fit(X, y)
    assert squared.solution_.solver == "subspace"
    with pytest.raises(ConfigurationError, match="metric='whitened' is of solver='subspace'"):
        GradientFeatureClassifier(backbone, metric="whitened", solver="dual", **settings).fit(X, y)
    changing = Changing(X, y)
    with pytest.raises(ConfigurationError, match="metric='whitened' is of the subspace solver"):
        GradientFeatureClassifier(backbone, metric="whitened", random_state=0).fit(changing)
    with pytest.raises(ConfigurationError, match="rounds are of the subspace solver"):
        GradientFeatureClassifier(backbone, rounds=2, random_state=0).fit(changing)
    with pytest.raises(ConfigurationError, match="a checkpoint is of samples that do not change"):
        GradientFeatureClassifier(backbone, checkpoint=tmp_path, random_state=0).fit(changing)
    with pytest.raises(ConfigurationError, match="metric must be one of auto, plain, whitened"):
        GradientFeatureClassifier(backbone, metric="white", random_state=0).fit(X, y)


def test_epochs_are_of_schedules_and_of_finetuning() -> None:
    X, y = data(60)
    with pytest.warns(GradfeatWarning, match="epochs and clip_norm are of mode='finetune'"):
        model = classifier(epochs=1, penalty=0.1).fit(X, y)
    assert model.solution_.solver == "subspace"
    np.testing.assert_allclose(model.predict_proba(X), classifier(penalty=0.1).fit(X, y).predict_proba(X), atol=1e-6)
    by_adam = classifier(epochs=1, penalty=0.1, solver="adam").fit(X, y)
    assert (by_adam.solution_.solver, by_adam.solution_.converged) == ("adam", False)
    assert by_adam.solution_.passes == by_adam.n_iter_ == 1
    assert "a schedule" in by_adam.how_["solver"]
    with pytest.warns(GradfeatWarning, match="solver='adam' has no penalty of w₂"):
        classifier(epochs=1, penalty=(0.1, 5.0), solver="adam").fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changing = classifier(epochs=2, penalty=0.1).fit(Changing(X, y))
        assert changing.n_iter_ == 2
        assert changing.how_["solver='auto'"] == "adam: the data set may change its samples"
        assert classifier(penalty=0.1).fit(X, y).how_["solver='auto'"] == "subspace: the samples do not change"
        assert classifier(epochs=2, penalty=0.1, mode="finetune").fit(X, y).n_iter_ == 2
