"""Rounds: θ̄₂ that moves, through the estimators, against torch's own derivatives at the point where it ends."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradfeat.fit.convex
import numpy as np
import pytest
import torch
from gradfeat.fit.convex import choose
from gradfeat.fit.fitting import hold_out
from torch import nn
from torch.func import functional_call, jvp

import gradfeat.fit.rounds as rounds_module
from gradfeat import GradientFeatureClassifier, GradientFeatureRegressor, compare, load
from gradfeat.errors import ConvergenceError
from gradfeat.fit.rounds import Point, _descend, repeat_rounds, search_rounds
from gradfeat.losses import CrossEntropy
from gradfeat.metrics.scores import log_loss
from gradfeat.progress import Progress
from gradfeat.solvers.subspace import Subspace


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


def test_mirror_images_stay_with_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = images()
    seen: list[tuple[torch.Tensor, int]] = []
    create = Subspace.__init__

    def spy(self: Subspace, features: Any, *args: Any, **kwargs: Any) -> None:
        seen.append((features.store._rows, len(kwargs["seen"])))
        create(self, features, *args, **kwargs)

    monkeypatch.setattr(Subspace, "__init__", spy)
    model = classifier(convolutions(), augment="mirror").fit(X, y)
    mirrored = model.predict_proba(np.ascontiguousarray(X[..., ::-1]))
    assert ((mirrored.argmax(1) == y) == (model.predict(X) == y)).mean() > 0.9
    in_rounds = [(rows, count) for rows, count in seen if rows is not None]
    assert in_rounds
    for rows, count in in_rounds:
        fitted, held = rows[:count] % len(X), rows[count:]
        assert not set(fitted.tolist()) & set(
            held.tolist()
        )  # held out: originals that no fit has seen, mirrored or not
        assert (held < len(X)).all()


@pytest.mark.parametrize("parametrization", ["standard", "ntk_fan_in"])
@pytest.mark.parametrize("metric", ["plain", "whitened"])
def test_the_step_before_is_a_direction(parametrization: str, metric: str) -> None:
    X, y = data(60)
    problem = classifier(precision="float64")._prepare(X, y, CrossEntropy(), None)  # the turn and back round in float32
    start = Point(problem.linearization.theta2, problem.probe.omega, problem.probe.omega, problem.probe.bias)
    move = {name: 0.1 * torch.randn_like(value) for name, value in start.theta2.items()}
    shared: dict[str, Any] = {"parametrization": parametrization, "metric": metric}
    for point, directions in ((start, 0), (start.moved(start.w1, start.b, move), 1)):
        generator = torch.Generator().manual_seed(0)
        subspace = rounds_module._subspace(problem, point, torch.arange(60), 50, generator=generator, **shared)
        found = subspace.features.natural(subspace._w2[0]) if subspace._w2 else {}
        assert len(subspace._w2) == directions
        ratios = torch.cat([(value / move[name]).flatten() for name, value in found.items()] or [torch.ones(2)])
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-3, atol=0)
        kept = Point.unpack(point.pack(), start.theta2).move
        assert (kept is None) == (point.move is None)
        assert all(torch.equal(kept[name], value) for name, value in (point.move or {}).items())


def test_a_round_tries_more_directions_and_its_repetition_takes_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    problem = classifier(precision="float64")._prepare(X, y, CrossEntropy(), None)
    choice = choose(problem, "full", random_state=0)
    assert choice is not None
    best = rounds_module._best_step

    def picky(*arguments: Any) -> Any:  # no step of a single direction is good enough
        return best(*arguments) if arguments[-1] > 1 else None

    monkeypatch.setattr(rounds_module, "_best_step", picky)
    monkeypatch.setattr(rounds_module, "_choose_last", lambda *arguments, **named: None)
    seen, held = hold_out(problem, 0)
    shared: dict[str, Any] = {"parametrization": "standard", "progress": Progress(False)}
    generator = torch.Generator().manual_seed(0)
    found = search_rounds(problem, choice, seen, held, most=4, generator=generator, **shared)
    assert len(found.steps) == 3
    assert {step.iterations for step in found.steps} <= {2, 3, 9}
    assert {step.iterations for step in found.steps[1:]} <= {2, 3}
    # on the samples that it was found on, the repetition goes where the search went
    part = replace(problem, store=problem.store.rows(seen), y=problem.y[seen])
    point, _ = repeat_rounds(part, choice, found, generator=torch.Generator().manual_seed(0), **shared)
    for name, value in found.point.theta2.items():
        torch.testing.assert_close(point.theta2[name], value, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(point.w1, found.point.w1, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_penalty_of_w1_is_searched_both_ways(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    X, y = data(60)
    problem = classifier()._prepare(X, y, CrossEntropy(), None)
    start = Point(problem.linearization.theta2, problem.probe.omega, problem.probe.omega, problem.probe.bias)
    shared: dict[str, Any] = {"parametrization": "standard", "generator": torch.Generator().manual_seed(0)}
    subspace = rounds_module._subspace(problem, start, torch.arange(60), 50, **shared)
    monkeypatch.setattr(rounds_module, "_network_loss", lambda problem, point, held: sign * float(point.w1.norm()))
    heads = [max(problem.probe.penalty, 0.01) * factor for factor in (100, 10, 1, 0.1, 0.01)]
    found = rounds_module._best_step(problem, start, subspace, heads, heads[2], torch.arange(50, 60), 1)
    assert found is not None
    assert found[0].w1 == (max if sign > 0 else min)(heads)


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Press Ctrl-C at the n-th call of a method of the solver."""
    original, calls = getattr(Subspace, name), []

    def interrupted(self: Subspace, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *arguments, **named)

    monkeypatch.setattr(Subspace, name, interrupted)


def calls_of_grow(monkeypatch: pytest.MonkeyPatch, X: np.ndarray, y: np.ndarray) -> tuple[int, int, int]:
    """Return how often the solver has grown before the rounds, before their repetition, and in all."""
    original, calls, marks = Subspace.grow, [], []

    def counted(self: Subspace, *arguments: Any) -> float:
        calls.append(1)
        return original(self, *arguments)

    with monkeypatch.context() as context:
        context.setattr(Subspace, "grow", counted)
        for name in ("search_rounds", "repeat_rounds"):
            inner = getattr(gradfeat.fit.convex, name)

            def marked(*arguments: Any, inner: Any = inner, **named: Any) -> Any:
                marks.append(len(calls))
                return inner(*arguments, **named)

            context.setattr(gradfeat.fit.convex, name, marked)
        classifier().fit(X, y)
    return marks[0], marks[1], len(calls)


@pytest.mark.parametrize("where", ["search", "repetition"])
def test_interruption_keeps_the_steps_that_are_done(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    X, y = data()
    begin, repeat, _ = calls_of_grow(monkeypatch, X, y)
    interrupt(monkeypatch, "grow", repeat + 2 if where == "repetition" else (begin + repeat) // 2)
    with pytest.warns(
        UserWarning, match=r"interrupted in the rounds after \d+ steps; the weights are those of the search"
    ):
        model = classifier().fit(X, y)
    assert model.history_.stopped == "interrupted"
    assert len(model.history_.loss) == len(model.rounds_.steps) >= 1
    assert log_loss(y, model.predict_proba(X)) < np.log(2)


def test_interruption_of_the_choice_is_not_taken_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    interrupt(monkeypatch, "grow", 3)
    with pytest.raises(KeyboardInterrupt):
        classifier().fit(X, y)


def test_repetition_that_diverges_leaves_what_the_search_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any, **named: Any) -> Any:
        raise ConvergenceError("the gradient is not finite")

    X, y = data()
    monkeypatch.setattr(gradfeat.fit.convex, "repeat_rounds", diverge)
    with pytest.warns(UserWarning, match="went astray when repeated on all samples: the gradient is not finite"):
        model = classifier().fit(X, y)
    assert model.rounds_.steps
    assert log_loss(y, model.predict_proba(X)) < np.log(2)


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
    found = classifier(rounds=1).fit(*data(100))
    problem: Any = SimpleNamespace(linearization=found.linearization_)
    start = Point(problem.linearization.theta2, found.omega_, found.w1_, found.b_)
    assert start.linearization(problem) is problem.linearization
    there = start.moved(found.w1_, found.b_, {name: torch.ones_like(value) for name, value in found.w2_.items()})
    moved = there.linearization(problem).theta2
    for name, value in problem.linearization.theta2.items():
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
        seen: list[int] = []

        def loss(k: int, losses: list[float] = losses, seen: list[int] = seen) -> float:
            seen.append(k)
            return losses[k]

        assert _descend(loss, start, len(losses)) == losses.index(min(losses))
        assert len(set(seen)) <= abs(start - losses.index(min(losses))) + 3  # one beyond it, one the other way
