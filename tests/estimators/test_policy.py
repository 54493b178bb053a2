"""What held-out data decide, against naive references and in plain cases: penalties, growth, rounds, mirror images."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradfeat.fit.rounds
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, linearize
from gradfeat.data import Inputs
from gradfeat.errors import GradfeatWarning
from gradfeat.fit import Plan, Problem, prepare, solve
from gradfeat.fit.choose import choose, choose_penalties
from gradfeat.fit.penalties import Choice
from gradfeat.fit.rounds import FIRST, search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import Split
from gradfeat.losses import Squared

sys.path.insert(0, str(Path(__file__).parent))
import naive

PENALTY = 0.02  # of the probe
N = 60


def network() -> nn.Module:
    """A network whose θ₂, a layer norm, has diagonal factors."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh()).double()


def regression(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[naive.Split]]:
    """Samples, targets (of odd seeds ones that a probe knows little of), weights, and three splits."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, 4))
    y = X[:, 0] * X[:, 1] * (seed % 2) + X[:, 2] + 0.3 * rng.normal(size=N)
    weight = rng.uniform(0, 3, N)
    parts = np.array_split(rng.permutation(N), 3)
    return X, y, weight, [(np.setdiff1d(np.arange(N), validation), validation) for validation in parts]


def prepared(seed: int) -> tuple[Problem, list[Split]]:
    X, y, weight, splits = regression(seed)
    problem = prepare(
        linearize(network(), torch.from_numpy(X[:3]), ["1"]),
        Inputs(torch.from_numpy(X), None),
        torch.from_numpy(y)[:, None],
        Squared(),
        weight=torch.from_numpy(weight),
        penalty=PENALTY,
    )
    return problem, [Split(torch.from_numpy(train), torch.from_numpy(validation)) for train, validation in splits]


def run_of(splits: list[Split]) -> Run:
    return Run(splits, torch.Generator().manual_seed(0))


def chosen(problem: Problem, splits: list[Split]) -> Choice:
    return choose_penalties(problem, Plan(metric="plain"), splits, run_of(splits))[0]


@pytest.fixture(autouse=True)
def _exact_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take one sample at a time in the estimate of the factors: the signs then square away."""
    monkeypatch.setattr("gradfeat.solvers.kronecker._BATCH", 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_of_penalties_is_the_naive_one(seed: int) -> None:
    X, y, weight, splits = regression(seed)
    problem, parts = prepared(seed)
    found = chosen(problem, parts)
    data = naive.Dense.of(network(), X, y, weight, dict(problem.linearization.theta2))
    path, iterations = naive.choice(data, splits, PENALTY)

    def rounded(penalties: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(f"{value:.6g}") for value in penalties)

    ours = {rounded((tried.omega_penalty, tried.lambda1, tried.lambda2_units)): tried.loss for tried in found.path}
    expected = {rounded(penalties): loss for penalties, loss in path.items()}
    assert ours.keys() == expected.keys()
    for penalties, loss in expected.items():
        assert ours[penalties] == pytest.approx(loss, rel=1e-5), penalties
    assert found.iterations == iterations
    best = rounded((found.omega_penalty, found.lambda1, found.lambda2_units))
    assert expected[best] == min(expected.values())
    assert np.mean(found.losses) == pytest.approx(min(expected.values()), rel=1e-5)


def test_the_naive_cases_differ_in_what_ends_them() -> None:
    """Growth that ends at each stage, and paths of ω̄ of several lengths: else the test above would see little."""
    found = []
    for seed in range(8):
        X, y, weight, splits = regression(seed)
        theta2 = {name: value for name, value in network().named_parameters() if name.startswith("1.")}
        path, iterations = naive.choice(naive.Dense.of(network(), X, y, weight, theta2), splits, PENALTY)
        omegas = {omega for omega, _, lambda2 in path if lambda2 < np.inf}
        found.append((iterations, len(omegas), min(path, key=lambda penalties: path[penalties])[2] < np.inf))
    growths, lengths, gradients = (set(values) for values in zip(*found, strict=True))
    assert growths == {2, 4, 6}
    assert lengths == {2, 3, 4}
    assert gradients == {True, False}


@pytest.mark.parametrize("seed", [1, 3])
def test_steps_of_rounds_are_the_naive_ones(seed: int) -> None:
    X, y, weight, splits = regression(seed)
    problem, parts = prepared(seed)
    choice = chosen(problem, parts)
    found = search_rounds(problem, Plan(rounds=5, metric="plain"), choice, run_of(parts[:1]))
    assert len(found.steps) == 4
    n = len(parts[0].train)
    moves = [naive.Move(step.lambda1, step.on(n).lambda2, step.directions) for step in found.steps]
    theta2 = dict(problem.linearization.theta2)
    start, *losses = naive.follow(network(), theta2, (X, y, weight), splits[0], choice.omega_penalty, moves)
    assert found.start == pytest.approx(start[0], rel=1e-6)
    for step, (there, heavier, lighter) in zip(found.steps, losses, strict=True):
        assert step.loss == pytest.approx(there, rel=1e-5)
        assert there <= min(heavier, lighter) * (1 + 1e-6)
    values = [found.start, *(step.loss for step in found.steps)]
    assert all(after < 0.999 * before for before, after in pairwise(values))


def noisy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(80, 6)).astype(np.float32)
    return X, X[:, 0] * X[:, 1] + X[:, 2] + rng.normal(size=80)


def deep(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())


def test_rounds_are_kept_only_where_they_are_better_than_one_linearization() -> None:
    kept = []
    for seed in (0, 1):
        X, y = noisy(seed)
        targets = torch.from_numpy(y - y.mean()).float()[:, None]
        lin = linearize(deep(), torch.from_numpy(X[:3]), "*")
        problem = prepare(lin, Inputs(torch.from_numpy(X), None), targets, Squared(), random_state=seed)
        plan = Plan(rounds=2, seed=seed)
        run = Run.of(problem, plan)
        choice, _ = choose(problem, plan, run, FIRST)
        assert choice is not None
        search = search_rounds(problem, replace(plan, metric=choice.metric), choice, run)
        better = bool(search.steps) and search.last_loss <= choice.losses[0]  # on the same validation part
        fit = solve(problem, plan)  # with the same random numbers
        assert (fit.rounds is not None) == better
        assert any("no step of the network was better" in note for note in fit.notes) == (not better)
        kept.append((bool(search.steps), better))
    assert (True, False) in kept
    assert (True, True) in kept


def test_a_repetition_with_a_higher_loss_leaves_what_the_search_found(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = noisy(0)
    y = X[:, 0] * X[:, 1] + X[:, 2]
    repeat = gradfeat.fit.rounds.repeat_rounds

    def astray(*arguments: Any, **named: Any) -> Any:
        point, solution = repeat(*arguments, **named)
        return point.with_weights(point.w1, point.b + 3, point.w2), solution

    model = GradientFeatureRegressor(deep(), theta2="*", rounds=3, random_state=0)
    good = model.fit(X, y).score(X, y)
    assert model.rounds_ is not None
    monkeypatch.setattr(gradfeat.fit.rounds, "repeat_rounds", astray)
    with pytest.warns(GradfeatWarning, match="went astray when repeated on all samples: the loss rose"):
        model.fit(X, y)
    assert model.score(X, y) > 0.5 * good > 0.1


@pytest.mark.filterwarnings("ignore::gradfeat.errors.GradfeatWarning")
def test_held_out_data_judge_what_mirror_images_have_been_fitted_to() -> None:
    """Left and right tell the classes well, above and below a little: with mirror images only the latter is left."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(160, 1, 4, 4)).astype(np.float32)
    y = np.arange(160) % 2
    X += np.where(y, 1, -1)[:, None, None, None] * np.array([1, 1, -1, -1], dtype=np.float32)
    X[:, :, :2] += 0.3 * np.where(y, 1, -1)[:, None, None, None]
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh())
    settings: dict[str, Any] = {"theta2": "*", "rounds": 3, "metric": "plain", "random_state": 0}
    plain = GradientFeatureClassifier(backbone, **settings).fit(X, y)
    mirrored = GradientFeatureClassifier(backbone, augment="mirror", **settings).fit(X, y)
    assert plain.choice_.loss < 0.1
    assert plain.rounds_.last_loss < 0.1
    assert 0.3 < mirrored.choice_.loss < 0.693  # log 2 is chance
    assert mirrored.rounds_.last_loss > 0.2
    assert mirrored.rounds_.steps
