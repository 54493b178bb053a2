"""Rounds: θ̄₂ that moves, through the estimators, against torch's own derivatives at the point where it ends."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, linearize, load
from gradfeat.data import Inputs, Mirrored
from gradfeat.errors import ConvergenceError
from gradfeat.fit import Fit, Plan, Problem, prepare, solve
from gradfeat.fit.choose import choose
from gradfeat.fit.penalties import lightest
from gradfeat.fit.point import Point
from gradfeat.fit.rounds import FIRST, repeat_rounds, search_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.splits import hold_out
from gradfeat.fit.steps import Rounds
from gradfeat.fit.trust_region import LAMBDA1, LIGHTEST, descend, next_step, subspace_at
from gradfeat.losses import CrossEntropy
from gradfeat.metrics.scores import log_loss
from gradfeat.progress import Progress, Step
from gradfeat.solvers.subspace import Penalties


def data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] > 0).astype(int)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh())


def images(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures with a bright or a dark half on top: the same seen in a mirror."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2, 8, 8)).astype(np.float32)
    y = np.arange(n) % 2
    X[:, :, :4] += np.where(y, 0.7, -0.7)[:, None, None, None].astype(np.float32)
    return X, y


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Tanh()),
        *(nn.Conv2d(6, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6, affine=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    network(torch.randn(40, 2, 8, 8) * 2 + 1)  # so that the batch norms are no identities
    return network.eval()


def classifier(backbone: Any = None, **settings: Any) -> GradientFeatureClassifier:
    defaults: dict[str, Any] = {"theta2": "*", "random_state": 0, "rounds": "auto"}
    return GradientFeatureClassifier(network() if backbone is None else backbone, **{**defaults, **settings})


def problem_of(X: np.ndarray, y: np.ndarray, backbone: nn.Module | None = None, *, mirror: bool = False) -> Problem:
    """Return a problem in double precision, where what should be equal is."""
    backbone = (network() if backbone is None else backbone).double()
    inputs, targets = Inputs(X.astype(np.float64), None), torch.from_numpy(y)
    lin = linearize(backbone, inputs.example(3), "*")
    samples = Mirrored(inputs) if mirror else inputs
    return prepare(lin, samples, targets, CrossEntropy(), views=2 if mirror else 1, random_state=0)


def start_of(problem: Problem) -> Point:
    """Return where rounds begin: the probe."""
    return Point(problem.linearization.theta2, problem.probe.omega, problem.probe.omega, problem.probe.bias)


def test_rounds_end_below_one_linearization() -> None:
    X, y = data()
    X_test, y_test = data(600, seed=1)
    one, more = classifier(rounds=1).fit(X, y), classifier().fit(X, y)
    rounds = more.rounds_
    losses = [rounds.start, *(step.loss for step in rounds.steps)]
    assert len(losses) > 2
    assert all(b < a for a, b in pairwise(losses))
    assert (one.theta2_, one.rounds_) == (None, None)
    assert log_loss(y_test, more.predict_proba(X_test)) < log_loss(y_test, one.predict_proba(X_test))


def test_predictions_are_of_the_linearization_where_the_rounds_end() -> None:
    X, y = data()
    model = classifier().fit(X, y)
    assert model.theta2_ is not None
    start = dict(network().named_parameters())
    assert any(not torch.equal(model.theta2_[name], start[name]) for name in start)
    moved = {name: value.double() for name, value in model.theta2_.items()}
    x = torch.from_numpy(X[:20]).double()
    plain = network().double()
    direction = {name: value.double() for name, value in model.w2_.items()}
    f, step = jvp(lambda theta2: functional_call(plain, theta2, (x,)), (moved,), (direction,))
    logits = f @ model.w1_.double() + model.b_.double() + step @ model.omega_.double()
    np.testing.assert_allclose(model.predict_proba(X[:20]), logits.detach().softmax(1).numpy(), atol=1e-5)


def test_merged_network_has_the_parameters_where_the_rounds_end() -> None:
    X, y = images()
    model = classifier(convolutions()).fit(X, y)
    assert model.theta2_ is not None
    network, x = model.merge(), torch.from_numpy(X[:10])
    lin = model.linearization_
    head = model.merged_head_
    moved = {name: value + head.step * model.w2_[name] for name, value in model.theta2_.items()}
    expected = lin.network(moved, lin.bottom(x)) @ head.weight + head.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in network.backbone.named_parameters()} == dict(convolutions().named_parameters()).keys()


def test_saved_and_pickled_models_are_where_the_rounds_end(tmp_path: Path) -> None:
    X, y = data()
    model = classifier().fit(X, y)
    path = model.save(tmp_path / "model.safetensors")
    for other in (load(path, backbone=network()), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(other.predict_proba(X), model.predict_proba(X), atol=1e-6)


def test_no_more_linearizations_than_asked_for_and_the_same_twice() -> None:
    X, y = data()
    one, two = classifier(rounds=2).fit(X, y), classifier(rounds=2).fit(X, y)
    assert len(one.rounds_.steps) == 1
    assert all(torch.equal(one.theta2_[name], two.theta2_[name]) for name in one.theta2_)
    assert all(torch.equal(one.w2_[name], two.w2_[name]) for name in one.w2_)


def test_regression_and_weights() -> None:
    X, _ = data()
    target = np.stack([X[:, 0] * X[:, 1], X[:, 2]], 1)
    weight = np.random.default_rng(1).uniform(0, 2, len(X))
    model = GradientFeatureRegressor(network(), theta2="*", rounds=4, random_state=0).fit(X, target, weight)
    assert model.score(X, target, weight) > 0.8


def test_mirrored_images_are_predicted_as_their_originals() -> None:
    X, y = images()
    model = classifier(convolutions(), augment="mirror").fit(X, y)
    mirrored = model.predict_proba(np.ascontiguousarray(X[..., ::-1]))
    assert ((mirrored.argmax(1) == y) == (model.predict(X) == y)).mean() > 0.9


def test_mirror_images_stay_with_their_samples() -> None:
    """Labels are chance, and each image is its own mirror image: who has one of a pair in training knows the other."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(60, 1, 4, 2)).astype(np.float32)
    X, y = np.concatenate([half, half[..., ::-1]], 3), rng.permutation(60) % 2
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 12), nn.Tanh())
    losses = []
    for problem in (
        problem_of(X, y, backbone, mirror=True),
        problem_of(np.concatenate([X, X]), np.concatenate([y, y]), backbone),  # as if they were samples of their own
    ):
        plan = Plan(rounds=5, metric="plain", seed=0)
        run = Run.of(problem, plan)
        choice, _ = choose(problem, plan, run)
        assert choice is not None
        light = replace(choice, omega_penalty=0.01)  # under the one that suits chance nothing moves
        losses.append((choice.loss, search_rounds(problem, plan, light, run).last_loss))
    assert min(losses[0]) > 0.6  # log 2 is chance
    assert max(losses[1]) < 0.5


@pytest.mark.parametrize("parametrization", ["standard", "ntk_fan_in"])
@pytest.mark.parametrize("metric", ["plain", "whitened"])
def test_the_step_before_is_a_direction(parametrization: str, metric: str) -> None:
    X, y = data(60)
    problem = problem_of(X, y)
    start = start_of(problem)
    move = {name: 0.1 * torch.randn_like(value) for name, value in start.theta2.items()}
    plan = Plan(parametrization=parametrization, metric=metric)
    for point in (start, start.moved(start.w1, start.b, move)):
        subspace = subspace_at(problem, plan, point, torch.arange(60), torch.Generator().manual_seed(0), 50)
        w1, _, w2 = subspace.weights(subspace.minimum(Penalties(0.1, 1e-3)))  # over all directions that there are
        assert w1 is not None
        torch.testing.assert_close(w1 * (point.w1 / w1)[0, 0], point.w1)
        if point.move is None:
            assert all(not value.any() for value in w2.values())
        else:
            ratios = torch.cat([(value / move[name]).flatten() for name, value in w2.items()])
            assert abs(ratios[0]) > 1e-3
            torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-3, atol=0)
        kept = Point.unpack(point.pack(), start.theta2).move
        assert (kept is None) == (point.move is None)
        assert all(torch.equal(kept[name], value) for name, value in (point.move or {}).items())


def test_a_round_tries_more_directions_and_its_repetition_takes_as_many() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(80, 6))
    problem = problem_of(X, (X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=80) > 0).astype(int))
    plan = Plan(rounds=5, metric="plain", seed=0)
    split = hold_out(problem, 0)
    choice, _ = choose(problem, plan, Run.of(problem, plan), FIRST)
    assert choice is not None
    search = search_rounds(problem, plan, choice, Run([split], torch.Generator().manual_seed(0)))
    assert len(search.steps) == 4
    directions = [step.directions for step in search.steps]
    assert set(directions) <= {1, 2, 3, 9}
    assert set(directions[1:]) <= {1, 2, 3}
    assert min(directions) == 1 < max(directions)
    # on the samples that it was made on, the repetition goes where the search went
    part = problem.subset(split.train)
    point, _ = repeat_rounds(part, plan, choice, search, Run([], torch.Generator().manual_seed(0)))
    for name, value in search.point.theta2.items():
        torch.testing.assert_close(point.theta2[name], value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(point.w1, search.point.w1, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_penalty_of_w1_is_searched_both_ways(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    X, y = data(60)
    problem, plan = problem_of(X, y), Plan(metric="plain", seed=0)
    monkeypatch.setattr(
        "gradfeat.fit.trust_region.network_loss", lambda problem, point, rows: sign * float(point.w1.norm())
    )
    run = Run.of(problem, plan)
    choice, _ = choose(problem, plan, run)
    assert choice is not None
    found = next_step(problem, plan, choice, Rounds(np.inf, start_of(problem)), run)
    assert found is not None
    least = min(LIGHTEST * choice.omega_penalty, lightest(problem.probe)) * (1 - 1e-6)
    lambda1 = [value for value in (choice.omega_penalty * factor for factor in LAMBDA1) if value >= least]
    assert found[0].lambda1 == (max if sign > 0 else min)(lambda1)


class Ending(Progress):
    """Ends a stage when it reports for the n-th time, or begins."""

    def __init__(self, stage: str, report: int, error: type[BaseException] | BaseException = KeyboardInterrupt) -> None:
        super().__init__(False)
        self.stage, self.left, self.error = stage, report, error

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        def report(done: int, total: int | None) -> None:
            self.left -= name == self.stage
            if self.left < 0 and name == self.stage:
                raise self.error

        with super().step(name):
            yield report


def solved_in_rounds(progress: Progress) -> tuple[Problem, Fit]:
    problem = problem_of(*data())
    return problem, solve(problem, Plan(rounds="auto", seed=0), progress)


def loss_of(problem: Problem, fit: Fit) -> float:
    """Return the loss of a fitted model on the samples."""
    X, y = data()
    with torch.no_grad():
        return float(problem.loss.value(fit.model(torch.from_numpy(X).double()), torch.from_numpy(y)))


@pytest.mark.parametrize("where", ["rounds", "rounds on all samples"])
@pytest.mark.parametrize("report", [1, 2])
def test_interruption_keeps_the_steps_that_are_done(where: str, report: int) -> None:
    problem, fit = solved_in_rounds(Ending(where, report))
    assert fit.interrupted
    assert fit.rounds is not None
    [note] = [note for note in fit.notes if "interrupted" in note]
    assert f"interrupted in the rounds after {len(fit.rounds.steps)} steps; the weights are those of the search" in note
    assert fit.epochs == len(fit.rounds.steps)
    assert fit.epochs == report if where == "rounds" else fit.epochs >= report
    assert loss_of(problem, fit) < np.log(2)


def test_interruption_of_the_choice_is_not_taken_for_its_end() -> None:
    with pytest.raises(KeyboardInterrupt):
        solved_in_rounds(Ending("penalties", 3))


def test_repetition_that_diverges_leaves_what_the_search_found() -> None:
    problem, fit = solved_in_rounds(Ending("rounds on all samples", 1, ConvergenceError("the gradient is not finite")))
    assert any("went astray when repeated on all samples: the gradient is not finite" in note for note in fit.notes)
    assert fit.rounds is not None
    assert fit.rounds.steps
    assert loss_of(problem, fit) < np.log(2)


def test_one_image_of_each_class_with_its_mirror_image() -> None:
    X, y = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = classifier(convolutions(), augment="mirror").fit(X[:2], y[:2])
    assert model.probe_.path == []  # no penalty was chosen on mirror images of what was fitted
    assert np.isfinite(model.predict_proba(X)).all()


def test_compare_judges_the_moved_model(tmp_path: Path) -> None:
    X, y = data()
    X_test, y_test = data(100, seed=1)
    modes = ("activation", "full")
    table = compare(network(), X, y, X_test, y_test, modes=modes, theta2="*", rounds=3, random_state=0)
    full = table.estimators["full"]
    row = next(row for row in table.rows if row.mode == "full")
    assert row.metrics["accuracy"] == pytest.approx(full.score(X_test, y_test))
    assert row.metrics["log_loss"] == pytest.approx(log_loss(y_test, full.predict_proba(X_test)), rel=1e-4)
    assert table.to_dict()["rounds"]["full"]["steps"]
    assert tmp_path / "rounds_full.png" in table.plot_more(tmp_path)


def test_where_nothing_has_moved_nothing_is_linearized_again() -> None:
    problem = problem_of(*data(60))
    lin, start = problem.linearization, start_of(problem)
    assert start.linearization(lin) is lin
    there = start.moved(start.w1, start.b, {name: torch.ones_like(value) for name, value in lin.theta2.items()})
    moved = there.linearization(lin).theta2
    for name, value in lin.theta2.items():
        torch.testing.assert_close(moved[name], value + 1)


def test_rounds_concern_full_alone_in_a_comparison() -> None:
    X, _ = data(60)
    y = X[:, 0] * X[:, 1]
    found = compare(network(), X, y, X, y, task="regression", modes=["gradient"], rounds="auto", random_state=0)
    alone = GradientFeatureRegressor(network(), mode="gradient", random_state=0).fit(X, y)
    assert found.estimators["gradient"].solution_.solver == alone.solution_.solver == "dual"
    assert "w₁" not in alone.how_["penalties"]  # which it has not


@pytest.mark.parametrize("start", range(6))
def test_the_least_loss_is_found_from_anywhere(start: int) -> None:
    for losses in ([5, 4, 2, 1, 3, 6], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 2, 1, 7, np.inf, np.inf]):
        tried: list[int] = []

        def loss(k: int, losses: list[float] = losses, tried: list[int] = tried) -> float:
            tried.append(k)
            return losses[k]

        assert descend(loss, start, len(losses)) == losses.index(min(losses))
        assert len(set(tried)) <= abs(start - losses.index(min(losses))) + 3  # one beyond it, one the other way
