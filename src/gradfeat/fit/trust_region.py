"""One move of θ̄₂: a step of the linear model, as far as the real network's loss on validation data says.

The penalties of w₁ and w₂ are a trust region: heavy ones make a short step. The network is evaluated at few of them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.penalties import GRID, NEGLIGIBLE, Choice, lightest
from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point
from gradfeat.fit.problem import Problem
from gradfeat.fit.run import Run
from gradfeat.fit.spans import Growth, Validation, grow, subspace_of
from gradfeat.fit.steps import Rounds, Step
from gradfeat.solvers.gradient_features import Weights
from gradfeat.solvers.newton import Combination
from gradfeat.solvers.subspace import Penalties, Subspace

STEP_UNITS = 1.0
"""λ₂, in units of the gradient features, at which a round's step is preconditioned."""

DIRECTIONS = (1, 2, 3, 9)
"""Of a round's subspace: one, more where none of its steps is better; so many as the last in the first round alone,
which may begin at a saddle."""

LAMBDA1 = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
"""Penalties of w₁, from heavy to light, in units of the one that was chosen for ω̄, with which the rounds begin. As θ̄₂
learns the training data, w₁ wants heavier ones."""

LIGHTEST = 0.01
"""The lightest of `LAMBDA1` that are tried; lighter ones only as far as the best probe's penalty."""

_BATCH = 128


def next_step(problem: Problem, plan: Plan, choice: Choice, rounds: Rounds, run: Run) -> tuple[Step, Point] | None:
    """Return the next move and where it leads; None where none of its subspace lowers the network's loss."""
    split = run.splits[0]
    rows = torch.cat([problem.random_views(split.train, run.generator), split.validation])
    subspace = subspace_at(problem, plan, rounds.point, rows, run.generator, len(split.train))
    least = min(LIGHTEST * choice.omega_penalty, lightest(problem.probe)) * (1 - 1e-6)
    lambda1 = [value for value in (choice.omega_penalty * factor for factor in LAMBDA1) if value >= least]
    validation = Validation.of(problem.subset(rows), len(split.train))
    search = _StepSearch(problem, rounds.point, subspace, split.validation, validation, lambda1)
    first = rounds.steps[-1].lambda1 if rounds.steps else choice.omega_penalty
    better: tuple[Step, Point] | None = None
    for growth in growths_to((DIRECTIONS if not rounds.steps else DIRECTIONS[:-1])[-1]):
        grow(subspace, choice.omega_penalty, growth, tolerance=0.0)
        better = search.best(first, growth.iterations)
        if better is not None and better[0].loss < rounds.last_loss * (1 - NEGLIGIBLE):
            break
        better = None
    rounds.passes += subspace.features.passes * len(rows) / len(problem.store)
    return better


def growths_to(directions: int) -> list[Growth]:
    """Return the growths by which a round's subspace comes to so many directions."""
    pairs = itertools.pairwise((0, *DIRECTIONS))
    return [Growth(STEP_UNITS, after - before) for before, after in pairs if after <= directions]


@dataclass
class _StepSearch:
    """The search for the penalties whose step has the least loss of the real network on validation data.

    Attributes:
        problem: The samples.
        point: Where θ̄₂ is.
        subspace: Of training samples, followed by the validation samples.
        rows: The validation samples' indices in the problem, (k,).
        validation: The same samples as the subspace has them.
        lambda1: Penalties of w₁ to try, from heavy to light.
        directions: Of the subspace.
        step: The best one so far, and where it leads.
    """

    problem: Problem
    point: Point
    subspace: Subspace
    rows: Tensor
    validation: Validation
    lambda1: list[float]
    directions: int = 0
    step: tuple[Step, Point] | None = field(default=None, repr=False)

    def best(self, first: float, more: int) -> tuple[Step, Point] | None:
        """Return the best step in a subspace that has grown by some directions.

        The network is evaluated at a few places of the grid alone: from where the linear model's own validation loss is
        least, which costs nothing, to heavier penalties of w₂ (shorter steps) or lighter ones while its loss falls;
        then in the same way from the penalty of w₁ `first` to others.
        """
        self.directions += more
        self.step = None
        start = int(self.validation.losses(self.subspace, [first]).argmin())
        loss = functools.cache(self._loss)

        @functools.cache
        def least(j: int) -> float:
            nonlocal start
            k = descend(functools.partial(loss, j), start, len(GRID.lambda2_units))
            if self.step is not None and self.step[0].lambda1 == self.lambda1[j]:
                start = k
            return loss(j, k)

        descend(least, self.lambda1.index(first), len(self.lambda1))
        return self.step

    def _loss(self, j: int, k: int) -> float:
        """Return the network's loss after the step of some penalties, and remember it if it is the best."""
        subspace, units = self.subspace, GRID.lambda2_units[k]
        minimum = subspace.minimum(Penalties(self.lambda1[j], units * subspace.unit))
        point = self.point.moved(*weights_of(subspace, minimum))
        value = network_loss(self.problem, point, self.rows)
        if not math.isfinite(value):
            return math.inf
        if self.step is None or value < self.step[0].loss:
            self.step = Step(self.lambda1[j], units, subspace.length, self.directions, value), point
        return value


def descend(loss: Callable[[int], float], start: int, count: int) -> int:
    """Return the index of a minimum among `count`: downwards from one, the way that begins steeper."""
    ways = [way for way in (-1, 1) if 0 <= start + way < count]
    way = min(ways, key=lambda way: loss(start + way))
    while 0 <= start + way < count and (loss(start + way) < loss(start) or loss(start) == math.inf):
        start += way
    return start


def subspace_at(
    problem: Problem, plan: Plan, point: Point, rows: Tensor, generator: torch.Generator, n_train: int | None = None
) -> Subspace:
    """Return the subspace at a point, of some rows of the store, fitted to the first `n_train` of them, or to all.

    Its first direction of w₂ is the move that led there, as momentum is in first-order methods.
    """
    part = problem.subset(rows)
    part = part.at(point.linearization(problem.linearization))
    n_train = len(rows) if n_train is None else n_train
    subspace = subspace_of(part, plan, point.omega, point.b, n_train, generator)
    subspace.add_w1(point.w1)
    if point.move is not None:
        subspace.add_w2(subspace.features.variables(point.move))
    return subspace


def weights_of(subspace: Subspace, minimum: Combination) -> tuple[Tensor, Tensor, Weights]:
    """Return w₁, b and w₂ of a minimum over the span, of mode `full`."""
    w1, b, w2 = subspace.weights(minimum)
    if w1 is None:
        raise ConvergenceError("rounds need w₁")
    return w1, b, w2


def network_loss(problem: Problem, point: Point, rows: Tensor) -> float:
    """Return the loss of the network itself at a point, on some samples."""
    lin, logits = problem.linearization, []
    with torch.no_grad():
        for batch in rows.split(_BATCH):
            logits.append(lin.network(point.theta2, problem.store.z0(batch)).to(point.w1) @ point.w1 + point.b)
    return float(problem.loss.value(torch.cat(logits).double(), problem.y[rows], problem.weight_of(rows)))
