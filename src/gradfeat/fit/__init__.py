"""Steps 1 to 3 of the method (Sec. 3.1) on a problem: linearize, probe, solve. Knows no estimator.

A researcher's way in, between `gradfeat.linearize` and the estimators: `prepare` runs the network's bottom once for
each sample and fits the probe; `solve` fits one of the four models to the `Problem` by a `Plan`.
"""

from gradfeat.fit.contract import LinearSolver, Solved, Solver, Start
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point
from gradfeat.fit.preparation import prepare
from gradfeat.fit.problem import Problem
from gradfeat.fit.result import Fit
from gradfeat.fit.run import Run
from gradfeat.fit.table import SOLVERS, select_solver, solve
from gradfeat.solvers.subspace import Penalties

__all__ = [
    "SOLVERS",
    "Fit",
    "LinearSolver",
    "Penalties",
    "Plan",
    "Point",
    "Problem",
    "Run",
    "Solved",
    "Solver",
    "Start",
    "prepare",
    "select_solver",
    "solve",
]
