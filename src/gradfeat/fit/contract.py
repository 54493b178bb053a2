"""What a solver is, and what all solvers of the linear models do around their own solution.

A solver is a class in a file of its own and a line in `gradfeat.fit.table`. It says which problems it refuses, and fits
the others. A solver of `gradient` and `full` is a `LinearSolver`: it has one method to write, `solve`, for given
penalties or a choice; the choice, the probes and "no gradient term" are done here. Its tests come with
`gradfeat.testing.check_solver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from gradfeat.fit.choose import choose, nearest_probe
from gradfeat.fit.penalties import Choice, lightest
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import starting_model
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit, Linear
from gradfeat.fit.run import Run
from gradfeat.fit.spans import probes_of
from gradfeat.model import GradientFeatureModel
from gradfeat.progress import Progress
from gradfeat.solvers.first_order import History
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import Solution


class Solver(ABC):
    """One way to fit a problem by a plan (step 3).

    Attributes:
        name: In the table, and as the estimators' `solver`.
        modes: The modes of `GradientFeatureModel` that it fits.
    """

    name: str
    modes: ClassVar[tuple[str, ...]] = ("gradient", "full")

    @abstractmethod
    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Return why a problem cannot be solved so, with the way out; None where it can."""

    @abstractmethod
    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Return the fitted model of a problem that it takes.

        Raises:
            ConvergenceError: The features or the solution are not finite.
        """

    def takes(self, problem: Problem, plan: Plan) -> bool:
        """Whether a problem can be solved so."""
        return plan.mode in self.modes and self.refusal(problem, plan) is None


@dataclass(frozen=True)
class Start:
    """What the last solution of a linear model begins with.

    Attributes:
        omega: ω̄ of the gradient features.
        probes: Of all samples, with the penalties that were tried for ω̄; the problem's own where none were.
        choice: The penalties that were chosen; None where they are given, or there was nothing to choose on.
        w2: A w₂ near the solution, in the units of θ₂, or None.
    """

    omega: Probe
    probes: list[Probe]
    choice: Choice | None = None
    w2: Weights | None = None

    @property
    def passes(self) -> float:
        """Work of the choice."""
        return 0.0 if self.choice is None else self.choice.passes


@dataclass(frozen=True)
class Solved:
    """The last solution of a linear model.

    Attributes:
        model: With its weights.
        solution: How the solver ended.
        notes: What the user should know.
        linear: What it was solved in; None where it is not known.
    """

    model: GradientFeatureModel
    solution: Solution
    notes: list[str] = field(default_factory=list)
    linear: Linear | None = None


class LinearSolver(Solver):
    """A solver of the convex problem in (w₁, b, w₂), with given penalties or chosen ones."""

    def judged(self, problem: Problem) -> str:
        """Return how penalties are judged, in words."""
        return "on held-out training data"

    def choose(self, problem: Problem, plan: Plan, run: Run) -> tuple[Choice | None, Weights | None]:
        """Choose penalties; None where there are too few samples. And a w₂ to begin with, or None."""
        return choose(problem, plan, run)

    @abstractmethod
    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        """Solve with the penalties of the choice or of the plan; without both, with the problem's own."""

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Choose penalties where none are given, and solve with them on all samples."""
        return self.fit_once(problem, plan, Run.of(problem, plan, progress))

    def fit_once(self, problem: Problem, plan: Plan, run: Run) -> Fit:
        """Return the fit of one linearization."""
        start = Start(problem.fixed_omega or problem.probe, [problem.probe])
        if plan.penalties is None:
            choice, w2 = self.choose(problem, plan, run)
            if choice is None:
                run.notes.append(f"{plan.mode}: too few samples to choose penalties {self.judged(problem)}")
            else:
                probes = probes_of(problem, torch.arange(len(problem.store)), lightest(problem.probe))
                best = nearest_probe(probes, choice)
                if not choice.gradients:
                    return self._probe_alone(problem, plan, run, choice, best)
                start = Start(problem.fixed_omega or best, probes, choice, w2)
        solved = self.solve(problem, plan, start, run)
        solution = solved.solution
        solution.passes = run.passes + solution.passes + start.passes
        solution.seconds = run.seconds
        stopped = "interrupted" if solution.interrupted else "finished"
        history = History(solution.objective, solution.passes, solution.seconds, stopped)
        notes = [*run.notes, *solved.notes]
        return Fit(solved.model, run.seconds, history, notes, start.choice, solution, linear=solved.linear)

    def _probe_alone(self, problem: Problem, plan: Plan, run: Run, choice: Choice, probe: Probe) -> Fit:
        """Return the probe as the model: no gradient term was better."""
        note = f"{plan.mode}: {self.judged(problem)} no gradient term was better than the probe alone"
        model = starting_model(problem, plan.mode, plan.parametrization, probe)
        return Fit(model, run.seconds, notes=[*run.notes, note], choice=choice)


def of_subspace_alone(plan: Plan) -> str | None:
    """Return what a plan asks for that only the subspace solver has, as other solvers refuse it; or None."""
    if plan.rounds != 1 and plan.mode == "full":
        return "rounds other than 1 are of solver='subspace'"
    if plan.metric == "whitened":
        return "metric='whitened' is of solver='subspace'"
    return None
