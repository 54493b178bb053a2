"""What held-out data decide, against naive references and in plain cases: penalties, growth, rounds, mirror images."""

from __future__ import annotations

import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradfeat.fit.convex
import numpy as np
import pytest
import torch
from gradfeat.fit.fitting import Problem, prepare
from gradfeat.fit.selection import Choice, choose_penalties
from torch import nn

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, linearize
from gradfeat.data import Inputs
from gradfeat.errors import GradfeatWarning
from gradfeat.fit.rounds import Rounds, search_rounds
from gradfeat.losses import Squared
from gradfeat.progress import Progress

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
    return X, y, weight, [(np.setdiff1d(np.arange(N), held), held) for held in parts]


def prepared(seed: int) -> tuple[Problem, list[tuple[torch.Tensor, torch.Tensor]]]:
    X, y, weight, splits = regression(seed)
    problem = prepare(
        linearize(network(), torch.from_numpy(X[:3]), ["1"]),
        Inputs(torch.from_numpy(X), None),
        torch.from_numpy(y)[:, None],
        Squared(),
        weight=torch.from_numpy(weight),
        penalty=PENALTY,
    )
    return problem, [(torch.from_numpy(seen), torch.from_numpy(held)) for seen, held in splits]


def chosen(problem: Problem, splits: list[tuple[torch.Tensor, torch.Tensor]]) -> Choice:
    return choose_penalties(
        problem.store,
        problem.y,
        problem.loss,
        splits,
        problem.probe,
        mode="full",
        weight=problem.weight,
        parametrization="standard",
        generator=torch.Generator().manual_seed(0),
        progress=Progress(False),
    )[0]


@pytest.fixture(autouse=True)
def _exact_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take one sample at a time in the estimate of the factors: the signs then square away."""
    monkeypatch.setattr("gradfeat.solvers.kronecker._BATCH", 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_of_penalties_is_the_naive_one(seed: int) -> None:
    X, y, weight, splits = regression(seed)
    problem, places = prepared(seed)
    found = chosen(problem, places)
    data = naive.Dense.of(network(), X, y, weight, dict(problem.linearization.theta2))
    path, iterations = naive.choice(data, splits, PENALTY)

    def rounded(penalties: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(f"{value:.6g}") for value in penalties)

    ours = {rounded((tried.omega, tried.w1, tried.w2)): tried.loss for tried in found.path}
    expected = {rounded(penalties): loss for penalties, loss in path.items()}
    assert ours.keys() == expected.keys()
    for penalties, loss in expected.items():
        assert ours[penalties] == pytest.approx(loss, rel=1e-5), penalties
    assert found.iterations == iterations
    assert expected[rounded((found.omega, found.w1, found.w2))] == min(expected.values())
    assert np.mean(found.held) == pytest.approx(min(expected.values()), rel=1e-5)


def test_the_naive_cases_differ_in_what_ends_them() -> None:
    """Growth that ends at each stage, and paths of ω̄ of several lengths: else the test above would see little."""
    found = []
    for seed in range(8):
        X, y, weight, splits = regression(seed)
        theta2 = {name: value for name, value in network().named_parameters() if name.startswith("1.")}
        path, iterations = naive.choice(naive.Dense.of(network(), X, y, weight, theta2), splits, PENALTY)
        omegas = {omega for omega, _, w2 in path if w2 < np.inf}
        found.append((iterations, len(omegas), min(path, key=lambda penalties: path[penalties])[2] < np.inf))
    growths, lengths, gradients = (set(values) for values in zip(*found, strict=True))
    assert growths == {2, 4, 6}
    assert lengths == {2, 3, 4}
    assert gradients == {True, False}


@pytest.mark.parametrize("seed", [1, 3])
def test_steps_of_rounds_are_the_naive_ones(seed: int) -> None:
    X, y, weight, splits = regression(seed)
    problem, places = prepared(seed)
    choice = chosen(problem, places)
    found = search_rounds(
        problem,
        choice,
        *places[0],
        most=5,
        parametrization="standard",
        generator=torch.Generator().manual_seed(0),
        progress=Progress(False),
    )
    assert len(found.steps) == 4
    moves = [naive.Move(step.w1, step.w2, step.iterations) for step in found.steps]
    theta2 = dict(problem.linearization.theta2)
    start, *losses = naive.follow(network(), theta2, (X, y, weight), splits[0], choice.omega, moves)
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


def test_rounds_are_kept_only_where_they_are_better_than_one_linearization(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[Rounds, Choice]] = []

    def recorded(problem: Problem, choice: Choice, *arguments: Any, **named: Any) -> Rounds:
        searched.append((search_rounds(problem, choice, *arguments, **named), choice))
        return searched[-1][0]

    monkeypatch.setattr(gradfeat.fit.convex, "search_rounds", recorded)
    kept = []
    for seed in (0, 1):
        X, y = noisy(seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", GradfeatWarning)
            model = GradientFeatureRegressor(deep(), theta2="*", rounds=2, random_state=seed).fit(X, y)
        found, choice = searched[-1]
        better = bool(found.steps) and found.last_loss <= choice.held[0]  # on the same held-out part
        assert (model.rounds_ is not None) == better
        assert any("no step of the network was better" in str(one.message) for one in said) == (not better)
        kept.append((bool(found.steps), better))
    assert (True, False) in kept
    assert (True, True) in kept


def test_a_repetition_with_a_higher_loss_leaves_what_the_search_found(monkeypatch: pytest.MonkeyPatch) -> None:
    X, _ = noisy(0)
    y = X[:, 0] * X[:, 1] + X[:, 2]
    repeat = gradfeat.fit.convex.repeat_rounds

    def astray(*arguments: Any, **named: Any) -> Any:
        point, solution = repeat(*arguments, **named)
        return point.with_weights(point.w1, point.b + 3, point.w2), solution

    model = GradientFeatureRegressor(deep(), theta2="*", rounds=3, random_state=0)
    good = model.fit(X, y).score(X, y)
    assert model.rounds_ is not None
    monkeypatch.setattr(gradfeat.fit.convex, "repeat_rounds", astray)
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
