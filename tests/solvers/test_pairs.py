"""Pairs of samples: their loss, the rate, the model that is left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier, linearize
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError
from gradfeat.fit import Plan, Problem, prepare, select_solver, solve
from gradfeat.losses import CrossEntropy, Loss, Squared
from gradfeat.solvers.pairs import MOVE, STEPS, STOPS, pair_loss, schedule_for
from gradfeat.solvers.probe import fit_probe

PLAN = Plan(mode="finetune", solver="pairs", seed=0)
N, CLASSES = 24, 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()).eval()


def samples(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % CLASSES
    return torch.randn(n, 5, generator=generator) + nn.functional.one_hot(y, 5), y


def problem(loss: Loss | None = None, weight: Tensor | None = None) -> Problem:
    x, y = samples()
    loss = loss or CrossEntropy()
    targets = x[:, :1] if isinstance(loss, Squared) else y
    return prepare(linearize(network(), x, "*"), Inputs(x), targets, loss, weight=weight, penalty=0.1, random_state=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_of_pairs_one_by_one(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(9, 4)), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    weight = rng.random(9) if weighted else np.ones(9)
    errors: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for i in range(9):
        for j in range(i):
            cosine = f[i] @ f[j] / np.linalg.norm(f[i]) / np.linalg.norm(f[j])
            same = bool(y[i] == y[j])
            errors[same].append(((cosine - same) ** 2, weight[i] * weight[j]))
    expected = sum(
        np.average(values, weights=share) / 2 for values, share in (zip(*kind, strict=True) for kind in errors.values())
    )
    found = pair_loss(torch.tensor(f), torch.tensor(y), torch.tensor(weight) if weighted else None)
    assert float(found) == pytest.approx(expected)


def test_loss_without_pairs_of_a_kind() -> None:
    f = torch.eye(3)
    assert float(pair_loss(f, torch.arange(3))) == 0  # no two of one class, and all others at cosine 0
    assert float(pair_loss(f, torch.zeros(3))) == 0.5  # all of one class, at 0 instead of 1
    assert float(pair_loss(f[:1], torch.zeros(1))) == 0


def test_the_first_step_moves_features_by_a_part_of_their_length() -> None:
    net, (x, y) = network().double(), samples()
    x = x.double()
    parameters = dict(net.named_parameters())
    gradients = torch.autograd.grad(pair_loss(net(x), y), list(parameters.values()))
    step = {name: -gradient.sign() for name, gradient in zip(parameters, gradients, strict=True)}
    f, tangent = torch.func.jvp(lambda theta: torch.func.functional_call(net, theta, x), (parameters,), (step,))
    f, tangent = f.detach(), tangent.detach()
    schedule = schedule_for(f, tangent, N)
    assert schedule.iterations == STEPS
    rate = schedule.learning_rate * 1e-4  # so that the step is of first order
    moved = torch.func.functional_call(net, {name: value + rate * step[name] for name, value in parameters.items()}, x)
    share = (moved - f).square().sum().sqrt() / f.square().sum().sqrt()
    assert float(share.detach()) == pytest.approx(MOVE * 1e-4, rel=1e-3)
    assert schedule_for(f, tangent, 256).iterations == 2 * STEPS
    assert math.isfinite(schedule_for(f, 0 * tangent, N).learning_rate)


def test_steps_are_adam_on_the_network_itself() -> None:
    part, net = problem(), network()
    fit = solve(part, PLAN)
    assert fit.history is not None
    x, y = samples()
    named = dict(net.named_parameters())
    loss = pair_loss(net(x), y)
    step = {name: -g.sign() for name, g in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)}
    f, tangent = torch.func.jvp(lambda theta: torch.func.functional_call(net, theta, x), (named,), (step,))
    schedule = schedule_for(f.detach(), tangent.detach(), N)
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=schedule.learning_rate), []
    steps = len(fit.history.loss)
    assert steps in {math.ceil(share * STEPS) for share in STOPS}
    for _ in range(steps):
        optimizer.zero_grad()
        loss = pair_loss(net(x), y)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(fit.history.loss, losses, rtol=1e-3)
    assert losses[-1] < losses[0]
    f = net(x).detach()
    probe = fit_probe(f, y, CrossEntropy(), penalty=part.probe.penalty)
    expected = f @ probe.omega + probe.bias
    torch.testing.assert_close(fit.model(x).detach(), expected, rtol=1e-2, atol=1e-2)


def test_weights_count_and_seeds_decide() -> None:
    weight = torch.ones(N)
    weight[::5] = 0
    plain, weighted, again = (solve(problem(weight=w), PLAN).model for w in (None, weight, weight))
    assert all(torch.equal(a, b) for a, b in zip(weighted.trained(), again.trained(), strict=True))
    assert not torch.equal(plain.w1, weighted.w1)


def test_pairs_that_say_nothing_leave_the_probe() -> None:
    x, _ = samples()
    y = torch.randint(0, 2, (N,), generator=torch.Generator().manual_seed(0))
    part = prepare(linearize(network(), x, "*"), Inputs(x), y, CrossEntropy(), random_state=0)
    fit = solve(part, PLAN)
    assert "the probe, since pairs" in fit.notes[0]
    assert torch.equal(fit.model.w1, part.probe.omega)
    assert all(not moved.any() for moved in fit.model.w2.values())
    one_each = prepare(linearize(network(), x[:3], "*"), Inputs(x[:3]), torch.arange(3), CrossEntropy())
    assert "too little to hold out" in solve(one_each, PLAN).notes[0]


def test_what_is_refused() -> None:
    assert select_solver(problem(), PLAN)[0] == "pairs"
    assert select_solver(problem(), Plan(mode="finetune"))[0] == "finetune"
    with pytest.raises(ConfigurationError, match="no classes"):
        solve(problem(Squared()), PLAN)
    with pytest.raises(ConfigurationError, match="mode finetune"):
        solve(problem(), Plan(mode="full", solver="pairs"))


def test_from_data_to_predictions() -> None:
    x, y = samples()
    names = np.array(["a", "b", "c"])[y.numpy()]
    model = GradientFeatureClassifier(network(), theta2="*", mode="finetune", solver="pairs", random_state=0)
    model.fit(x.numpy(), names)
    assert model.score(x.numpy(), names) > 0.6
    merged = model.merge()
    assert (merged(x).argmax(1).numpy() == np.searchsorted(["a", "b", "c"], model.predict(x.numpy()))).all()
    with pytest.raises(ConfigurationError, match="mode='finetune'"):
        GradientFeatureClassifier(network(), solver="pairs").fit(x.numpy(), names)
