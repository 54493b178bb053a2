"""Step 3 by a schedule, the paper's way: Adam and SGD on minibatches, for samples that may change."""

from __future__ import annotations

import time

import torch

from gradfeat.fit.contract import Solver, of_subspace_alone
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import starting_model
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.training import Training, interruption
from gradfeat.progress import Progress
from gradfeat.solvers.subspace import Solution


class ScheduleSolver(Solver):
    """Adam or SGD for the linear models, whatever their samples; without a penalty of w₂.

    Args:
        name: "adam" or "sgd".
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def refusal(self, problem: Problem, plan: Plan) -> str | None:
        """Refuse what the subspace solver alone has."""
        return of_subspace_alone(plan)

    def fit(self, problem: Problem, plan: Plan, progress: Progress | None = None) -> Fit:
        """Train for as long as the schedule says, which knows of no optimum."""
        begun = time.perf_counter()
        schedule = plan.schedule_of(self.name, problem.n)
        training = Training(problem, plan, torch.arange(problem.n), title="fit", part=f"{plan.mode}-epochs")
        model = starting_model(problem, plan.mode, plan.parametrization)
        history = training.run(model, schedule, progress or Progress(False))
        seconds = time.perf_counter() - begun
        solution = Solution(
            schedule.optimizer,
            False,
            f"{len(history.loss)} epochs of a schedule, which ends before or after the optimum",
            history.loss,
            passes=history.passes,
            seconds=seconds,
            interrupted=history.stopped == "interrupted",
        )
        return Fit(model, seconds, history, interruption(problem, plan, history), solution=solution)
