"""Step 3 in the samples' space, for few samples: a squared loss in closed form, others by Newton's method.

What is left undone is rounding: the objective's gradient in all weights is brought to zero, as far as double precision
goes.
"""

from __future__ import annotations

from dataclasses import replace

from gradfeat.fit.choose import choose
from gradfeat.fit.closed_form import SquaredSamples, choose_by_leave_one_out
from gradfeat.fit.contract import LinearSolver, Solved, Start, of_subspace_alone
from gradfeat.fit.dual_samples import DualSamples, counted
from gradfeat.fit.penalties import Choice
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.run import Run
from gradfeat.losses import Quadratic
from gradfeat.samples.store import available_memory
from gradfeat.solvers.dual import DualPoint
from gradfeat.solvers.dual_newton import DualProblem, NewtonPoint, curvature_unit, newton_dual
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.subspace import GAP, Penalties, Solution, bound

MOST = 4000
"""Most samples × outputs of Newton's method: each of its steps, some ten, decomposes a matrix of this size."""

_COPIES = 6  # matrices of the kernel's size that are in use at a time


class DualSolver(LinearSolver):
    """Kernel ridge regression for a squared loss (`gradfeat.solvers.dual`), Newton's method for all others."""

    name = "dual"

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse samples that change, an ω̄ from outside, rounds, and kernels that are too large."""
        if problem.store.inputs.random:
            return "solver='dual' needs samples that do not change: take solver='adam'"
        if problem.fixed_omega is not None:
            return "solver='dual' takes the probe as ω̄, and it is fixed from outside"
        asked = of_subspace_alone(plan)
        if asked is not None:
            return asked
        n, c = len(counted(problem)), problem.outputs
        if not isinstance(problem.loss, Quadratic) and n * c > MOST:
            return (
                f"solver='dual' takes up to {MOST:,} samples × outputs of {problem.loss.name} loss, not {n:,} × {c}: "
                "take solver='subspace'"
            )
        needed = 8 * _COPIES * (n * c) ** 2
        if needed > available_memory():
            return (
                f"solver='dual' needs {needed / 2**30:.0f} GiB for the kernel of {n:,} samples × {c} outputs, more "
                "than is free: take solver='subspace'"
            )
        return None

    def judged(self, problem: Problem) -> str:
        """Return how penalties are judged, in words."""
        return "by leave-one-out" if isinstance(problem.loss, Quadratic) else super().judged(problem)

    def choose(self, problem: Problem, plan: Plan, run: Run) -> tuple[Choice | None, Weights | None]:
        """Choose penalties by leave-one-out for a squared loss, else on validation data; no w₂ is needed."""
        if isinstance(problem.loss, Quadratic):
            samples = SquaredSamples(problem, problem.loss, plan)
            return choose_by_leave_one_out(samples, plan, run, problem.checkpoint), None
        return choose(problem, replace(plan, metric="plain"), run)[0], None

    def solve(self, problem: Problem, plan: Plan, start: Start, run: Run) -> Solved:
        """Solve exactly."""
        with run.progress.step("fit"):
            if isinstance(problem.loss, Quadratic):
                squared = SquaredSamples(problem, problem.loss, plan)
                return _finished(squared, start, *_closed_form(squared, plan, start))
            samples = DualSamples(problem, plan)
            return _finished(samples, start, *_newton(samples, plan, start))


def _closed_form(samples: SquaredSamples, plan: Plan, start: Start) -> tuple[Penalties, DualPoint, str]:
    """Return the penalties that were asked for, the solution, and how it was come by."""
    dual = samples.dual(start.omega)
    if start.choice is not None:
        penalties = Penalties(start.choice.lambda1, start.choice.lambda2_units * dual.unit)
    else:
        penalties = plan.penalties or Penalties(start.omega.penalty, dual.unit * samples.problem.views)
    point = dual.at(penalties.lambda1).solve(penalties.lambda2)
    return penalties, point, f"closed form of {samples.n} samples × {samples.outputs} outputs, a squared loss"


def _newton(samples: DualSamples, plan: Plan, start: Start) -> tuple[Penalties, NewtonPoint, str]:
    """Return the same of any convex loss."""
    problem, omega = samples.problem, start.omega
    kernel = samples.kernel(omega)
    if start.choice is not None:
        penalties = start.choice.penalties(samples.n)
    elif plan.penalties is not None:
        penalties = plan.penalties
    else:
        logits = problem.store.features.to(omega.omega) @ omega.omega + omega.bias
        unit = curvature_unit(kernel, logits, samples.y, problem.loss, samples.weight)
        penalties = Penalties(omega.penalty, unit * problem.views)
    dual = DualProblem(kernel, samples.f, samples.y, problem.loss, samples.weight, samples.outputs)
    point = newton_dual(dual, penalties.lambda1, penalties.lambda2)
    reason = f"{point.iterations} Newton steps for {samples.n} samples × {samples.outputs} outputs, gradient "
    return penalties, point, f"{reason}{point.gradient:.0e}"


def _finished(samples: DualSamples, start: Start, penalties: Penalties, point: DualPoint, reason: str) -> Solved:
    """Return the model of a solution, and how far it is from the optimum."""
    model, gap = samples.model(start.omega, point, penalties)
    solution = Solution("dual", gap <= GAP, reason, [point.objective], passes=samples.passes, gap=gap)
    solution.penalties = point.w1_penalty, point.w2_penalty
    if isinstance(point, NewtonPoint):
        solution.reason, solution.gradient = f"{reason}, {bound(gap)}", point.gradient
    else:
        solution.decrement = 0.0
    return Solved(model, solution, samples.remarks(penalties, point, gap))
