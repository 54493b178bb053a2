"""What held-out data decide, against naive references and in plain cases: penalties, growth, mirror images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureClassifier, linearize
from gradfeat.data import Inputs, Mirrored
from gradfeat.fit import Plan, Problem, prepare
from gradfeat.fit.choose import choose_penalties
from gradfeat.fit.penalties import Choice
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import Split
from gradfeat.losses import CrossEntropy, Squared

sys.path.insert(0, str(Path(__file__).parent))
import naive

PENALTY = 0.02  # of the probe
SEEDS = (*range(9), 11, 23)
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


@pytest.mark.parametrize("first", [None, 1, 2], ids=["all", "one", "two"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_choice_of_penalties_is_the_naive_one(
    seed: int, first: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradfeat.fit.choose.path_count_of", lambda n: first or 3)
    X, y, weight, splits = regression(seed)
    problem, parts = prepared(seed)
    found = chosen(problem, parts)
    data = naive.Dense.of(network(), X, y, weight, dict(problem.linearization.theta2))
    path, iterations = naive.choice(data, splits, PENALTY, first)

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
    for seed in SEEDS:
        X, y, weight, splits = regression(seed)
        theta2 = {name: value for name, value in network().named_parameters() if name.startswith("1.")}
        path, iterations = naive.choice(naive.Dense.of(network(), X, y, weight, theta2), splits, PENALTY)
        omegas = {omega for omega, _, lambda2 in path if lambda2 < np.inf}
        found.append((iterations, len(omegas), min(path, key=lambda penalties: path[penalties])[2] < np.inf))
    growths, lengths, gradients = (set(values) for values in zip(*found, strict=True))
    assert growths == {1, 2, 4}
    assert lengths == {2, 3, 4}
    assert gradients == {True, False}


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
    settings: dict[str, Any] = {"theta2": "*", "metric": "plain", "random_state": 0}
    plain = GradientFeatureClassifier(backbone, **settings).fit(X, y)
    mirrored = GradientFeatureClassifier(backbone, augment="mirror", **settings).fit(X, y)
    assert plain.choice_.loss < 0.1
    assert 0.3 < mirrored.choice_.loss < 0.693  # log 2 is chance
    losses = []
    for samples, views in ((Inputs(X, None), 1), (Mirrored(Inputs(X, None)), 2)):
        lin = linearize(backbone, torch.from_numpy(X[:3]), "*")
        problem = prepare(lin, samples, torch.from_numpy(y), CrossEntropy(), views=views, random_state=0)
        plan = Plan(rounds=8, seed=0)
        losses.append([trial.loss for trial in search_rounds(problem, plan, Run.of(problem, plan)).trials])
    assert max(losses[0]) < 0.1
    assert 0.2 < min(losses[1]) <= max(losses[1]) < 0.693
