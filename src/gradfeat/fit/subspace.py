"""Step 3 without a learning rate, in a growing subspace: once, or in rounds."""

from __future__ import annotations

from dataclasses import replace

from gradfeat.fit.contract import LinearSolver, Solved, Start
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point, check_finite
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit, Linear
from gradfeat.fit.rounds import fit_in_rounds
from gradfeat.fit.run import Run
from gradfeat.fit.spans import subspace_of
from gradfeat.progress import Progress, Step
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.subspace import GAP, Penalties, Solution, Subspace

GIVEN_ITERATIONS = 200
"""Most iterations with given penalties, which are solved to convergence."""

LEAST = 2
"""Fewest iterations with chosen penalties: the choice may have had the least loss after one, of fewer samples."""


class SubspaceSolver(LinearSolver):
    """Preconditioned directions, and the exact minimum over their span (`gradfeat.solvers.subspace`).

    Given penalties are solved to convergence, chosen ones for as many iterations as were judged on validation data, and
    `LEAST` at least: under light penalties the optimum has learnt noise by heart.
    """

    name = "subspace"

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse samples that change, and rounds that cannot be."""
        if problem.store.inputs.random:
            return (
                "solver='subspace' needs samples that do not change, and this data set may change them: take "
                "solver='adam'"
            )
        if plan.rounds != 1 and problem.fixed_omega is not None:
            return "rounds move θ̄₂ with ω̄, which is fixed from outside: give rounds=1"
        if plan.rounds != 1 and plan.penalties is not None:
            return "rounds choose penalties on held-out data: give none with rounds other than 1"
        return None

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Fit in rounds where they are asked for and better; else once."""
        run = Run.of(problem, plan, progress)
        if plan.rounds != 1 and plan.mode == "full":
            fit = self._fit_rounds(problem, plan, run)
            if fit is not None:
                return fit
        return self.fit_once(problem, plan, run)

    def _fit_rounds(self, problem: Problem, plan: Plan, run: Run) -> Fit | None:
        """Return the fit in rounds; None where θ̄₂ stays, or there is nothing to judge them by."""
        if not run.splits:
            run.notes.append(f"{plan.mode}: one linearization, since there is no held-out data to choose rounds on")
            return None
        fit = fit_in_rounds(problem, plan, run)
        if fit is None:
            run.notes.append(f"{plan.mode}: no move of the network was better than the probe on held-out data")
        return fit

    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        """Grow the subspace of all samples."""
        metric = start.choice.metric if start.choice is not None else plan.metric
        plan = replace(plan, metric="plain" if metric == "auto" else metric)
        omega, bias, n = start.omega.omega, start.omega.bias, len(problem.store)
        subspace = subspace_of(problem, plan, omega, bias, n, run.generator)
        for probe in start.probes:
            subspace.add_w1(probe.omega)
        if start.w2 is not None:
            subspace.add_w2(subspace.features.variables(start.w2))
        with run.progress.step("fit") as done:
            penalties = self._penalties(problem, plan, start, subspace)
            combination, solution = self._minimum(subspace, penalties, start, done)
        solution.passes = subspace.features.passes
        w1, b, w2 = subspace.weights(combination)
        point = Point(problem.linearization.theta2, omega, omega if w1 is None else w1, b, w2)
        model = point.model(problem.linearization, plan.mode, plan.parametrization)
        notes = []
        if not solution.converged and (start.choice is None or solution.interrupted):
            notes.append(f"{plan.mode}: not converged: {solution}")
        own = None if problem.fixed_omega is not None else start.omega
        solution.penalties, solution.metric = (penalties.lambda1, penalties.lambda2), plan.metric
        early = start.choice is not None and not solution.converged
        held_out = start.choice.loss if early and start.choice is not None else None
        linear = Linear(model, own, subspace.features, subspace.factors, penalties, held_out)
        return Solved(check_finite(model, plan.mode), solution, notes, linear)

    def _penalties(self, problem: Problem, plan: Plan, start: Start, subspace: Subspace) -> Penalties:
        if start.choice is not None:
            return start.choice.penalties(problem.n)
        return plan.penalties or Penalties(problem.probe.penalty, subspace.length / problem.n)

    def _minimum(
        self, subspace: Subspace, penalties: Penalties, start: Start, done: Step
    ) -> tuple[Combination, Solution]:
        if start.choice is None:  # how many iterations it takes is not known
            return subspace.solve(penalties, gap=GAP, iterations=GIVEN_ITERATIONS, report=lambda k: done(k, None))
        most = max(start.choice.iterations, LEAST)
        combination, solution = subspace.solve(penalties, iterations=most, report=lambda k: done(k, most))
        if not (solution.converged or solution.interrupted):
            solution.reason = f"{len(solution.objective)} iterations, as chosen on held-out data"
        return combination, solution
