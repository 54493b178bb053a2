"""Each sample left out, against refits of both stages in float64: the probe, then the convex problem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradfeat.data import Inputs
from gradfeat.fit import Plan, Problem, prepare
from gradfeat.fit.answers import Answers
from gradfeat.fit.point import Point
from gradfeat.fit.result import Linear
from gradfeat.fit.spans import subspace_of
from gradfeat.linearization import linearize
from gradfeat.losses import CrossEntropy, Loss, MultiLabelLogistic, Squared
from gradfeat.solvers.coordinates import Coordinates
from gradfeat.solvers.leverage import Rows
from gradfeat.solvers.probe import fit_probe
from gradfeat.solvers.subspace import Penalties

N, C, PENALTY = 60, 3, 0.1
EQUAL = torch.full((N,), 1 / N, dtype=torch.float64)
LOSSES: dict[str, Loss] = {"squared": Squared(), "logistic": MultiLabelLogistic(), "cross_entropy": CrossEntropy()}


def problem_of(name: str) -> Problem:
    """Return targets of another network, with noise."""
    torch.manual_seed(0)
    network, teacher = (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, d), nn.Tanh()).double() for d in (5, C))
    x = torch.randn(N, 4, dtype=torch.float64)
    y = (4 * teacher(x) + torch.randn(N, C)).detach()
    y = y.argmax(1) if name == "cross_entropy" else (y > 0).double() if name == "logistic" else y
    problem = prepare(linearize(network, x, "*").double(), Inputs(x), y, LOSSES[name], penalty=PENALTY)
    probe = fit_probe(problem.store.features, problem.y, problem.loss, penalty=PENALTY, tolerance=1e-12)
    return replace(problem, probe=probe)


class Refit:
    """Both stages on some samples, with penalties that weigh as much beside each sample as those of all."""

    def __init__(self, problem: Problem, linear: Linear) -> None:
        self.problem, self.linear = problem, linear
        lin, store = problem.linearization, problem.store
        z0 = store.z0(torch.arange(N))
        self.jacobian = torch.func.jacrev(lambda theta2: lin.network(theta2, z0))(lin.theta2)  # (n, d, ...)
        self.f = store.features
        self.theta = torch.empty(0)

    def rows(self, omega: Tensor) -> Rows:
        along = []
        for i in range(N):
            for k in range(C):
                row = {name: torch.tensordot(omega[:, k], j[i], 1) for name, j in self.jacobian.items()}
                row = self.linear.features.to_variables(row)
                along.append(torch.cat([value.flatten() for value in row.values()]))
        zeros = torch.zeros(N, C, C, dtype=torch.float64)
        return Rows(self.f, zeros[:, 0, 0], Coordinates(torch.stack(along).view(N, C, -1), zeros))

    def logits(self, share: Tensor, *, omega_too: bool) -> Tensor:
        """Return the logits of all samples by the model of those that have a share."""
        problem, penalties = self.problem, self.linear.penalties
        y, loss, omega = problem.y, problem.loss, problem.probe.omega
        if omega_too:
            penalty = problem.probe.penalty / float(share.sum())
            omega = fit_probe(self.f, y, loss, sample_weight=share, penalty=penalty, tolerance=1e-12).omega
        rows = self.rows(omega)
        heads = self.f.shape[1] * C
        ridge = torch.full((rows.size,), penalties.lambda2, dtype=torch.float64)
        ridge[:heads], ridge[heads : heads + C] = penalties.lambda1, 0

        def objective(theta: Tensor) -> Tensor:
            return share @ loss.per_sample(rows.logits(theta), y) + 0.5 * ridge @ theta.square()

        theta = torch.zeros(rows.size, dtype=torch.float64)
        for _ in range(30):
            slope = torch.func.grad(objective)(theta)
            step = torch.linalg.pinv(torch.func.hessian(objective)(theta), hermitian=True, rtol=1e-13) @ slope
            if float(slope @ step) < 1e-26:
                break
            theta = theta - step
        self.theta = theta
        return rows.logits(theta)

    def changes(self, before: Tensor, *, omega_too: bool) -> Tensor:
        """Return what the refit without each sample adds to its own logits, (n, c)."""
        found = []
        for i in range(N):
            share = EQUAL.clone()
            share[i] = 0
            found.append(self.logits(share, omega_too=omega_too)[i] - before[i])
        return torch.stack(found)


def fitted(name: str, metric: str) -> tuple[Problem, Linear, Refit]:
    problem = problem_of(name)
    lin, probe, plan = problem.linearization, problem.probe, Plan(metric=metric, seed=0)
    subspace = subspace_of(problem, plan, probe.omega, probe.bias, N, plan.generator())
    point = Point(lin.theta2, probe.omega, probe.omega, probe.bias)
    penalties = Penalties(0.01, 0.3 * subspace.unit)
    linear = Linear(point.model(lin, "full", "standard"), probe, subspace.features, subspace.factors, penalties)
    refit = Refit(problem, linear)
    refit.logits(EQUAL, omega_too=False)
    d = refit.f.shape[1]
    w1, b, v = refit.theta.split([d * C, C, len(refit.theta) - (d + 1) * C])
    parts = v.split([value.numel() for value in lin.theta2.values()])
    shaped = {key: part.view(value.shape) for (key, value), part in zip(lin.theta2.items(), parts, strict=True)}
    point = replace(point, w1=w1.view(d, C), b=b, w2=subspace.features.natural(shaped))
    return problem, replace(linear, model=point.model(lin, "full", "standard")), refit


CASES = [("squared", "whitened"), ("logistic", "plain"), ("cross_entropy", "plain")]


def centred(moved: Tensor, name: str) -> Tensor:
    """Return moves of logits as the loss sees them: a softmax does not see a shift of all."""
    return moved - moved.mean(1, keepdim=True) if name == "cross_entropy" else moved


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("name", "metric"), [("squared", "whitened"), ("logistic", "plain"), ("cross_entropy", "plain")]
)
def test_leave_one_out_with_omega_kept_is_a_refit(name: str, metric: str) -> None:
    problem, linear, refit = fitted(name, metric)
    answers = Answers(problem, replace(linear, omega=None))
    actual = centred(refit.changes(answers.logits, omega_too=False), name)
    found = centred(answers.leave_one_out() - answers.logits, name)
    if name == "squared":
        torch.testing.assert_close(found, actual, rtol=1e-5, atol=1e-8)
    assert correlation(actual, found) > 0.998


@pytest.mark.parametrize(("name", "metric"), [("squared", "plain"), ("cross_entropy", "whitened")])
def test_leave_one_out_is_a_refit_of_both_stages(name: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradfeat.fit.answers.SHIFTS", 15)  # all that there are
    problem, linear, refit = fitted(name, metric)
    answers, kept = Answers(problem, linear), Answers(problem, replace(linear, omega=None))
    actual = centred(refit.changes(answers.logits, omega_too=True), name)
    found, without = (centred(one.leave_one_out() - one.logits, name) for one in (answers, kept))

    assert correlation(actual, found) > 0.98  # one step, and each sample is a sixtieth
    assert (found - actual).norm() < (without - actual).norm()
