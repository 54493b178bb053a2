"""Rounds: θ̄₂ that moves, through the estimators and below them, against torch's own network at the point reached."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import gradfeat.fit.rounds
from gradfeat import GradientFeatureRegressor, compare, load
from gradfeat.errors import GradfeatWarning
from gradfeat.fit import Fit, Plan
from gradfeat.fit.point import Point
from gradfeat.fit.rounds import search_rounds
from gradfeat.fit.splits import Split, hold_out
from gradfeat.fit.steps import Rounds
from gradfeat.fit.training import Training
from gradfeat.losses import CrossEntropy, Loss, Squared
from gradfeat.metrics.scores import log_loss
from gradfeat.solvers.probe import fit_probe

sys.path.insert(0, str(Path(__file__).parent))
import naive
from rounds_cases import PENALTY, classifier, convolutions, data, given, images, network, problem_of, run_of

# ---- through the estimators -----------------------------------------------------------------------------------------


def test_rounds_learn_what_a_probe_cannot() -> None:
    X, y = data()
    X_test, y_test = data(600, seed=1)
    probe, more = classifier(mode="activation", rounds=1).fit(X, y), classifier(rounds=30).fit(X, y)
    rounds = more.rounds_
    assert rounds.last_loss < rounds.start
    assert (probe.theta2_, probe.rounds_) == (None, None)
    assert log_loss(y_test, more.predict_proba(X_test)) < 0.8 * log_loss(y_test, probe.predict_proba(X_test))


def test_where_theta2_is_named_nothing_moves_unless_it_is_asked_for() -> None:
    X, y = data(120)
    plain, once = classifier(rounds=None).fit(X, y), classifier(rounds=1).fit(X, y)
    assert plain.rounds_ is None
    np.testing.assert_array_equal(plain.predict_proba(X), once.predict_proba(X))


def test_predictions_are_of_torchs_own_network_where_the_rounds_end() -> None:
    X, y = data()
    X = X.astype(np.float64)
    model = classifier(network().double()).fit(X, y)
    assert model.theta2_ is not None
    start = dict(network().double().named_parameters())
    assert all(not torch.equal(model.theta2_[name], value) for name, value in start.items())
    assert all(not value.any() for value in model.w2_.values())
    torch.testing.assert_close(model.w1_, model.omega_, rtol=0, atol=0)
    f = functional_call(network().double(), model.theta2_, (torch.from_numpy(X),))
    logits = f @ model.w1_ + model.b_
    np.testing.assert_allclose(model.predict_proba(X), logits.detach().softmax(1).numpy(), rtol=0, atol=1e-12)


def test_the_merged_network_is_the_model() -> None:
    X, y = images()
    model = classifier(convolutions(), random_state=1).fit(X, y)
    assert model.theta2_ is not None
    assert (model.merged_head_.error, model.merged_head_.step) == (0.0, 1.0)
    network, x = model.merge(), torch.from_numpy(X[:10])
    torch.testing.assert_close(network(x).detach(), model.logits(X[:10]), rtol=1e-4, atol=1e-4)
    expected = model.linearization_.network(model.theta2_, model.linearization_.bottom(x)) @ model.w1_ + model.b_
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert {name for name, _ in network.backbone.named_parameters()} == dict(convolutions().named_parameters()).keys()


def test_saved_and_pickled_models_are_where_the_rounds_end(tmp_path: Path) -> None:
    X, y = data()
    model = classifier().fit(X, y)
    assert model.theta2_ is not None
    path = model.save(tmp_path / "model.safetensors")
    for other in (load(path, backbone=network()), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(other.predict_proba(X), model.predict_proba(X), atol=1e-6)
        assert other.rounds_ == model.rounds_


def test_a_number_is_that_of_the_passes_and_a_seed_makes_the_same_twice() -> None:
    X, y = data()
    one, two = classifier(rounds=3).fit(X, y), classifier(rounds=3).fit(X, y)
    rounds = one.rounds_
    assert [(trial.passes, len(trial.training)) for trial in rounds.trials] == [(3, 3), (3, 3)]
    assert len(rounds.more) == 2
    assert rounds.passes == pytest.approx(2 * 3 * 0.8 + 2)
    assert all(torch.equal(one.theta2_[name], two.theta2_[name]) for name in one.theta2_)
    assert torch.equal(one.w1_, two.w1_)
    assert one.rounds_ == two.rounds_
    other = classifier(rounds=3, random_state=1).fit(X, y)
    assert not torch.equal(one.w1_, other.w1_)


@pytest.mark.parametrize("parametrization", ["ntk_fan_in", "ntk_fan_out"])
def test_another_parametrization_of_w2_is_no_other_move(parametrization: str) -> None:
    X, y = data()
    one, two = (classifier(rounds=3, parametrization=name).fit(X, y) for name in ("standard", parametrization))
    assert one.theta2_ is not None
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))


def test_regression_and_weights() -> None:
    X, _ = data()
    target = np.stack([X[:, 0] * X[:, 1], X[:, 2]], 1)
    weight = np.random.default_rng(1).uniform(0, 2, len(X))
    settings: dict[str, Any] = {"theta2": "*", "random_state": 0}
    moved = GradientFeatureRegressor(network(), rounds=40, **settings).fit(X, target, weight)
    probe = GradientFeatureRegressor(network(), mode="activation", **settings).fit(X, target, weight)
    assert moved.theta2_ is not None
    assert moved.score(X, target, weight) > max(0.8, probe.score(X, target, weight))


def test_mirrored_images_are_predicted_as_their_originals() -> None:
    X, y = images()
    model = classifier(convolutions(), augment="mirror").fit(X, y)
    mirrored = model.predict_proba(np.ascontiguousarray(X[..., ::-1]))
    assert ((mirrored.argmax(1) == y) == (model.predict(X) == y)).mean() > 0.9


def test_one_image_of_each_class_with_its_mirror_image() -> None:
    X, y = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = classifier(convolutions(), augment="mirror").fit(X[:2], y[:2])
    assert model.probe_.path == []  # no penalty was chosen on mirror images of what was fitted
    assert np.isfinite(model.predict_proba(X)).all()


def test_where_labels_are_chance_nothing_moves_and_the_model_is_one_linearization() -> None:
    X, _ = data(150)
    y = np.random.default_rng(2).permutation(len(X)) % 2
    with pytest.warns(GradfeatWarning, match="no move of the network was better than the probe on held-out data"):
        stays = classifier(rounds=10).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradfeatWarning)
        once = classifier(rounds=1).fit(X, y)
    assert (stays.theta2_, stays.rounds_) == (None, None)
    np.testing.assert_array_equal(stays.predict_proba(X), once.predict_proba(X))
    assert stays.choice_ == once.choice_


def test_compare_judges_the_moved_model(tmp_path: Path) -> None:
    X, y = data()
    X_test, y_test = data(100, seed=1)
    modes = ("activation", "full")
    table = compare(network(), X, y, X_test, y_test, modes=modes, theta2="*", rounds=8, random_state=0)
    full = table.estimators["full"]
    assert full.theta2_ is not None
    row = next(row for row in table.rows if row.mode == "full")
    assert row.metrics["accuracy"] == pytest.approx(full.score(X_test, y_test))
    assert row.metrics["log_loss"] == pytest.approx(log_loss(y_test, full.predict_proba(X_test)), rel=1e-4)
    record = table.to_dict()["rounds"]["full"]
    assert record["start"] == full.rounds_.start
    assert [trial["rate"] for trial in record["trials"]] == [trial.rate for trial in full.rounds_.trials]
    assert record["more"] == full.rounds_.more
    assert tmp_path / "rounds_full.png" in table.plot_more(tmp_path)


def test_rounds_concern_full_alone_in_a_comparison() -> None:
    X, _ = data(60)
    y = X[:, 0] * X[:, 1]
    found = compare(network(), X, y, X, y, task="regression", modes=["gradient"], rounds="auto", random_state=0)
    alone = GradientFeatureRegressor(network(), mode="gradient", random_state=0).fit(X, y)
    assert found.estimators["gradient"].solution_.solver == alone.solution_.solver == "dual"
    assert "w₁" not in alone.how_["penalties"]  # which it has not


def test_where_nothing_has_moved_nothing_is_linearized_again() -> None:
    problem = problem_of(*data(60))
    lin, probe = problem.linearization, problem.probe
    start = Point(lin.theta2, probe.omega, probe.omega, probe.bias)
    assert start.linearization(lin) is lin
    network = start.model(lin, "finetune", "standard")
    network.set_weights(w1=start.w1, b=start.b, w2={name: torch.ones_like(value) for name, value in lin.theta2.items()})
    there = Point.of_network(network)
    assert not any(value.requires_grad for value in (*there.theta2.values(), there.w1, there.b))
    moved = there.linearization(lin).theta2
    for name, value in lin.theta2.items():
        torch.testing.assert_close(moved[name], value + 1)
    kept = Point.unpack(there.pack(), lin.theta2)
    assert all(torch.equal(kept.theta2[name], value) for name, value in there.theta2.items())


# ---- against a naive reference --------------------------------------------------------------------------------------


def targets(task: str, seed: int, n: int) -> tuple[np.ndarray, Tensor, Tensor, Loss, naive.Each]:
    """Return samples of a task that a probe knows a part of, weights, and the loss twice: ours and torch's."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    weight = torch.from_numpy(rng.uniform(0.1, 3, n))
    value = X[:, 0] * X[:, 1] + 0.5 * X[:, 2] + 0.5 * rng.normal(size=n)
    if task == "regression":
        return X, torch.from_numpy(value)[:, None], weight, Squared(), lambda out, y: ((out - y) ** 2).sum(1) / 2
    y = torch.from_numpy((value > 0).astype(int) + (value > 1))
    return X, y, weight, CrossEntropy(), lambda out, y: nn.functional.cross_entropy(out, y, reduction="none")


CASES: list[tuple[str, int, tuple[float, ...]]] = [
    ("regression", 0, (1e-3, 3e-3)),
    ("regression", 1, (1e-2, 2e-2, 0.3)),
    ("classes", 0, (1e-3, 3e-3)),
    ("regression", 2, (1e-2, 0.3)),
    ("classes", 1, (3e-3, 1e-2)),
    ("classes", 2, (3e-4, 1e-3, 3e-3, 1e-2)),
    ("classes", 3, (1e-6, 1e-5)),
]


def probe_of(backbone: nn.Module, loss: Loss) -> Callable[[naive.Samples, float], naive.Head]:
    """Return the probe of some samples; its own tests say that it is the minimum."""

    def probe(samples: naive.Samples, factor: float) -> naive.Head:
        with torch.no_grad():
            f = backbone(samples.X)
        outputs = 3 if samples.y.ndim == 1 else 1
        weight, penalty = samples.weight, factor * PENALTY
        found = fit_probe(f, samples.y, loss, sample_weight=weight, penalty=penalty, outputs=outputs)
        return found.omega, found.bias

    return probe


def both(task: str, seed: int, rates: tuple[float, ...], n: int = 150) -> tuple[Fit | None, Rounds, naive.Rounds]:
    """Return a fit in rounds, or None, its search, and the naive one."""
    X, y, weight, loss, each = targets(task, seed, n)
    problem = given(X, y, loss, weight=weight)
    split, plan = hold_out(problem, seed), Plan(rounds=5, rates=rates, seed=seed)
    own = gradfeat.fit.rounds.fit_in_rounds(problem, plan, run_of(split))
    samples = naive.Samples(torch.from_numpy(X), y, weight)
    backbone = network().double()
    temperatures: dict[str, Any] = {"temperatures": [1.0]} if task == "regression" else {}
    found = naive.rounds(
        backbone,
        probe_of(backbone, loss),
        samples,
        (split.train, split.validation),
        each,
        (5, rates, seed),
        **temperatures,
    )
    return own, search_rounds(problem, plan, run_of(split)), found


MANY = [  # of so many samples the head starts with a heavier penalty
    ("classes", 1, (3e-3, 1e-2)),
    ("regression", 0, (1e-3, 3e-3)),
]


@pytest.mark.parametrize(
    ("task", "seed", "rates", "n"), [*((*case, 150) for case in CASES), *((*case, 800) for case in MANY)]
)
def test_rounds_are_the_naive_ones(task: str, seed: int, rates: tuple[float, ...], n: int) -> None:
    fit, rounds, found = both(task, seed, rates, n)
    assert rounds.best == found.best
    assert rounds.start == pytest.approx(found.start, rel=1e-8)
    for trial, loss, training, rate in zip(rounds.trials, found.losses, found.training, rates, strict=True):
        assert trial.rate == rate
        assert trial.loss == pytest.approx(loss, rel=1e-8)
        assert trial.training == pytest.approx(training, rel=1e-8)
    assert (fit is None) == (found.best < 0)
    if fit is None:
        return
    assert rounds.chosen is not None
    assert rounds.chosen.temperature == pytest.approx(found.temperature)
    theta2 = fit.model.linearization.theta2
    for name, value in found.network.named_parameters():
        torch.testing.assert_close(theta2[name], value.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.model.w1.detach(), found.head[0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fit.model.b.detach(), found.head[1], rtol=1e-8, atol=1e-8)


def test_the_naive_cases_differ_in_what_is_chosen() -> None:
    """No rate, the first, a larger one, one that is lower by less than the error: else the test above sees little."""
    best, spared, temperatures = set(), False, set()
    for task, seed, rates in CASES:
        X, y, weight, loss, each = targets(task, seed, 150)
        split = hold_out(given(X, y, loss, weight=weight), seed)
        backbone, samples = network().double(), naive.Samples(torch.from_numpy(X), y, weight)
        parts = (split.train, split.validation)
        found = naive.rounds(backbone, probe_of(backbone, loss), samples, parts, each, (5, rates, seed))
        best.add(min(found.best, 1))
        temperatures.add(found.temperature)
        spared |= found.best >= 0 and min(found.losses) < found.losses[found.best]
    assert best == {-1, 0, 1}
    assert spared
    assert len(temperatures) > 2


# ---- what is held out -----------------------------------------------------------------------------------------------


def ends(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Return the weights at the end of each training that is to come."""
    found: list[list[Tensor]] = []
    train = Training.run

    def run(own: Training, model: Any, *arguments: Any) -> Any:
        history = train(own, model, *arguments)
        found.append([parameter.detach().clone() for parameter in model.trained()])
        return history

    monkeypatch.setattr(Training, "run", run)
    return found


def test_trials_have_not_seen_what_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    split = hold_out(problem_of(X, y), 0)
    other = y.copy()
    other[split.validation] = 1 - other[split.validation]
    moved = X.copy()
    moved[split.validation] *= 2
    found = ends(monkeypatch)
    rounds = [
        search_rounds(problem_of(samples, labels), Plan(rounds=4, seed=0), run_of(split))
        for samples, labels in ((X, y), (X, other), (moved, y))
    ]
    assert len(found) == 6
    for i, weights in enumerate(found):
        assert all(torch.equal(one, two) for one, two in zip(weights, found[i % 2], strict=True))
    assert len({tuple(trial.loss for trial in each.trials) for each in rounds}) == 3


def test_all_samples_are_learnt_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(*data())
    seen: list[Tensor] = []
    train = Training.run

    def run(own: Training, *arguments: Any) -> Any:
        seen.append(own.indices)
        return train(own, *arguments)

    monkeypatch.setattr(Training, "run", run)
    split = hold_out(problem, 0)
    assert gradfeat.fit.rounds.fit_in_rounds(problem, Plan(rounds=8, seed=0), run_of(split)) is not None
    assert [len(rows) for rows in seen] == [len(split.train), len(split.train), problem.n]


def test_mirror_images_stay_with_their_samples() -> None:
    """Labels are chance, and each image is its own mirror image: who has one of a pair in training knows the other."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(150, 1, 4, 2)).astype(np.float32)
    X, y = np.concatenate([half, half[..., ::-1]], 3), rng.permutation(150) % 2
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 12), nn.Tanh())
    losses = []
    for problem in (
        problem_of(X, y, backbone, mirror=True),
        problem_of(np.concatenate([X, X]), np.concatenate([y, y]), backbone),  # as if they were samples of their own
    ):
        found = search_rounds(problem, Plan(rounds=30, rates=(1e-2,), seed=0), run_of(hold_out(problem, 0)))
        losses.append(found.trials[0].loss)
    assert losses[0] > 0.6  # log 2 is chance
    assert losses[1] < 0.5


def test_held_out_samples_count_by_their_weights() -> None:
    """Those that are held out are of two tasks: whose weights are heavy says whether the network moves."""
    X, y = data(500)
    split = Split(torch.arange(400), torch.arange(400, 500))
    y[450:] = 1 - y[450:]
    chosen = []
    for heavy in (slice(400, 450), slice(450, 500)):
        weight = torch.ones(500, dtype=torch.float64)
        weight[400:] = 0.01
        weight[heavy] = 1.0
        problem = given(X, torch.from_numpy(y), CrossEntropy(), weight=weight)
        chosen.append(search_rounds(problem, Plan(rounds=60, seed=0), run_of(split)).best)
    assert chosen[0] >= 0
    assert chosen[1] == -1
