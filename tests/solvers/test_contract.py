"""The contract of a solver: that all solvers keep it, a new one of 25 lines too, and that a wrong one does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradfeat import linearize
from gradfeat.data import Inputs
from gradfeat.errors import ConfigurationError
from gradfeat.fit import SOLVERS, Fit, LinearSolver, Plan, Problem, prepare, solve
from gradfeat.fit.contract import Solved, Start
from gradfeat.fit.point import Point
from gradfeat.fit.run import Run
from gradfeat.losses import Quadratic, Squared
from gradfeat.progress import Progress
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.subspace import Penalties, Solution
from gradfeat.testing import check_solver

LINEAR = [name for name, solver in SOLVERS.items() if "full" in solver.modes]


class Toy(LinearSolver):
    """Ridge regression over every weight: for a squared loss, and a network of a few weights."""

    name = "toy"

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        if not isinstance(problem.loss, Quadratic) or problem.store.inputs.random:
            return "solver='toy' is of a squared loss and of samples that do not change"
        if plan.rounds != 1 or plan.metric == "whitened":
            return "solver='toy' has one linearization and the plain metric: take solver='subspace'"
        return None

    def weight(self, problem: Problem) -> Tensor:
        weight = torch.ones(len(problem.y)) if problem.weight is None else problem.weight
        return (weight / weight.sum()).double()

    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        lin, omega, given = problem.linearization, start.omega.omega, plan.penalties or Penalties(1.0, 1.0)
        penalties = given if start.choice is None else start.choice.penalties(problem.n)
        features = GradientFeatures(problem.store, omega, parametrization=plan.parametrization)
        n, c = len(problem.y), problem.outputs
        sizes = [value.numel() for value in lin.theta2.values()]

        def named(vector: Tensor) -> dict[str, Tensor]:
            parts = zip(lin.theta2.items(), vector.split(sizes), strict=True)
            return {name: part.view_as(value) for (name, value), part in parts}

        columns = [features.forward(named(row), torch.arange(n)) for row in torch.eye(sum(sizes)).to(omega)]
        eye, f = torch.eye(c).to(omega), problem.store.features * (plan.mode == "full")
        of_w1 = torch.einsum("nd,kl->nkdl", f, eye).flatten(2)
        design = torch.cat([torch.stack(columns, 2), of_w1, eye.expand(n, c, c)], 2).flatten(0, 1)
        ridge = torch.cat([torch.full((k,), v) for k, v in self.ridge(penalties, sum(sizes), of_w1.shape[2], c)])
        scaled = design.T * self.weight(problem).repeat_interleave(c)
        x = torch.linalg.solve(scaled @ design + ridge.double().diag(), scaled @ problem.y.flatten())
        w2, w1, b = x.split([sum(sizes), of_w1.shape[2], c])
        point = Point(lin.theta2, omega, w1.view_as(omega), b, features.natural(named(w2)))
        rest = 0.5 * self.weight(problem).repeat_interleave(c) @ (design @ x - problem.y.flatten()) ** 2
        objective = float(rest + 0.5 * ridge.double() @ x**2)
        model = point.model(lin, plan.mode, plan.parametrization)
        return Solved(model, Solution("toy", True, "solved at once", [objective], passes=features.passes, gap=0.0))

    def ridge(self, penalties: Penalties, w2: int, w1: int, b: int) -> list[tuple[int, float]]:
        return [(w2, penalties.lambda2), (w1, penalties.lambda1), (b, 0.0)]


@pytest.mark.parametrize("name", LINEAR)
def test_every_solver_of_the_linear_models_keeps_the_contract(name: str) -> None:
    check_solver(SOLVERS[name])


def test_a_new_solver_keeps_the_contract_and_is_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    check_solver(Toy())
    monkeypatch.setitem(SOLVERS, "toy", Toy())
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3)))
    torch.manual_seed(0)
    lin = linearize(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), x[:3], "*")
    problem = prepare(lin, Inputs(x), x[:, :1] * x[:, 1:2], Squared(), penalty=0.1)
    plans = [Plan(solver=name, penalties=Penalties(0.1, 0.01), seed=0) for name in ("toy", "dual")]
    toy, dual = (solve(problem, plan) for plan in plans)
    assert toy.solution is not None
    assert toy.solution.solver == "toy"
    for name, value in dual.model.w2.items():
        torch.testing.assert_close(toy.model.w2[name], value, rtol=1e-6, atol=1e-9)
    assert solve(problem, Plan(solver="toy", seed=0)).choice is not None
    with pytest.raises(ConfigurationError, match="solver='toy' has one linearization"):
        solve(problem, Plan(solver="toy", rounds=2))


# ---- wrong solvers --------------------------------------------------------------------------------------------------


class ForgetsSampleWeights(Toy):
    def weight(self, problem: Problem) -> Tensor:
        return torch.full((len(problem.y),), 1 / len(problem.y), dtype=torch.float64)


class PenalizesTheIntercept(Toy):
    def ridge(self, penalties: Penalties, w2: int, w1: int, b: int) -> list[tuple[int, float]]:
        return [(w2, penalties.lambda2), (w1, penalties.lambda1), (b, penalties.lambda1)]


class StopsTooEarly(Toy):
    """Says that it has converged, with weights that are a part of the solution."""

    share = 0.9

    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        solved = super().solve(problem, plan, start, run)
        model = solved.model
        with torch.no_grad():
            w2 = {name: self.share * value for name, value in model.w2.items()}
            model.set_weights(w1=self.share * model.w1, b=model.b, w2=w2)
        return solved


class ClaimsTooSmallAGap(StopsTooEarly):
    """Close enough to the minimum, and less close than it says."""

    share = 0.999


class SaysNothingOfItsEnd(Toy):
    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        solved = super().solve(problem, plan, start, run)
        solved.solution.converged = False
        return solved


class PenalizesOtherVariables(Toy):
    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        solved = super().solve(problem, replace(plan, parametrization="standard"), start, run)
        model = solved.model
        point = Point(problem.linearization.theta2, model.omega, model.w1, model.b, dict(model.w2))
        return replace(solved, model=point.model(problem.linearization, plan.mode, plan.parametrization))


class IgnoresRounds(Toy):
    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        return super().refusal(problem, replace(plan, rounds=1))


class IgnoresTheMetric(Toy):
    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        return super().refusal(problem, replace(plan, metric="plain"))


class RefusesWithoutAReason(Toy):
    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        return None if super().refusal(problem, plan) is None else "no"


class KeepsTheProbesOmega(Toy):
    """Solves with the penalties that are given, whatever was chosen."""

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        return super().fit(problem, replace(plan, penalties=plan.penalties or Penalties(1.0, 1.0)), progress)


class DrawsItsOwnNumbers(Toy):
    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        solved = super().solve(problem, plan, start, run)
        model = solved.model
        noise = 1e-6 * torch.rand((), dtype=torch.float64)
        with torch.no_grad():
            model.set_weights(w1=model.w1, b=model.b + noise, w2=dict(model.w2))
        return solved


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (ForgetsSampleWeights, "with sample weights.* the objective of its weights is .* above the minimum"),
        (PenalizesTheIntercept, "the objective of its weights is .* above the minimum"),
        (StopsTooEarly, "the objective of its weights is .* above the minimum"),
        (ClaimsTooSmallAGap, "it claims a gap of 0, and its objective is .* above the minimum"),
        (SaysNothingOfItsEnd, "converged is False with a gap of 0"),
        (PenalizesOtherVariables, "another parametrization.* the objective of its weights is .* above the minimum"),
        (IgnoresRounds, "it takes rounds=2, and ignores it"),
        (IgnoresTheMetric, "it takes metric='whitened', and ignores it"),
        (RefusesWithoutAReason, "the refusal 'no' is no sentence"),
        (KeepsTheProbesOmega, "penalties chosen: fit.choice is None"),
        (DrawsItsOwnNumbers, "not equal bit for bit"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_solver_breaks_the_contract(solver: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_solver(solver(), modes=["full"])
