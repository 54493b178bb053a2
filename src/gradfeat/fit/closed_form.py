"""A squared loss in closed form: the solution, and penalties of the least leave-one-out loss.

The tangent kernel of each ω̄ is computed once; the solution, and every sample's loss under the fit without it, then
cost no further pass over the network, for all of the grid of penalties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.fit.checkpoint import Checkpoint, Part, resumed
from gradfeat.fit.dual_samples import DualSamples
from gradfeat.fit.penalties import GRID, NEGLIGIBLE, Choice, Tried, lightest
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.fit.run import Run
from gradfeat.fit.spans import probes_of
from gradfeat.fit.splits import SPLITS
from gradfeat.losses import Quadratic
from gradfeat.solvers.dual import Dual, DualPath
from gradfeat.solvers.probe import Folds, Probe, folds


class SquaredSamples(DualSamples):
    """Samples of a squared loss, and the closed form of each ω̄ on them."""

    def __init__(self, problem: Problem, loss: Quadratic, plan: Plan) -> None:
        super().__init__(problem, plan)
        self.loss = loss
        self.targets: Tensor = loss.targets(self.y, self.outputs)

    def dual(self, probe: Probe) -> Dual:
        """Return the closed form for an ω̄."""
        kernel, views = self.kernel(probe), self.problem.views
        return Dual(kernel, self.f, self.targets, self.weight, views=views, single=self.single)

    def all_views(self, samples: np.ndarray) -> Tensor:
        """Return the rows of all versions of some samples, in order of sample."""
        return (torch.from_numpy(samples)[:, None] + self.n * torch.arange(self.problem.views)).flatten()

    def leave_one_out_loss(self, path: DualPath, lambda2: float, rows: Tensor) -> float:
        """Return the weighted sum of losses of some samples, each under the fit without it."""
        logits = self.targets[rows].cpu() - path.leave_one_out(lambda2)[rows]
        losses = self.loss.per_sample(logits, self.y[rows].cpu())
        return float((self.weight[rows] * losses).sum())


def choose_by_leave_one_out(
    samples: SquaredSamples, plan: Plan, run: Run, checkpoint: Checkpoint | None = None
) -> Choice | None:
    """Return the penalties of the least leave-one-out loss; None where there are too few samples.

    The path is that of other losses: ω̄ with penalties from the best probe's upwards while the loss falls, and for each
    a grid of (λ₁, λ₂); for `full` "no gradient term" is part of it. A sample's label is in ω̄ too: under an ω̄ that has
    seen it, its leave-one-out loss is far too low, and gradients look good even for labels that are chance. So each
    fold of the samples is judged under an ω̄ that was fitted to the others.
    """
    pairs, _ = folds(samples.y[: samples.n].cpu(), samples.loss, SPLITS, plan.seed)
    if not pairs:
        return None
    path = _Path(samples, pairs, checkpoint)
    with run.progress.step("penalties") as done:
        done_folds = itertools.count(1)
        path.walk(lambda: done(next(done_folds), len(GRID.omega) * len(pairs)))
    return path.choice()


class _Path:
    """The penalty path by leave-one-out.

    Args:
        samples: All of them.
        pairs: Folds of the samples, which ω̄ is fitted without.
        checkpoint: Where the losses of each ω̄ are kept, or None.
    """

    def __init__(self, samples: SquaredSamples, pairs: Folds, checkpoint: Checkpoint | None) -> None:
        self.samples, self.checkpoint = samples, checkpoint
        problem = samples.problem
        self.light = lightest(problem.probe)
        self.lambda1 = [self.light * factor for factor in GRID.lambda1] if samples.mode == "full" else [self.light]
        self.rows = [samples.all_views(fold) for _, fold in pairs]
        self.probes = [probes_of(problem, samples.all_views(train), self.light) for train, _ in pairs]
        self.tried: list[Tried] = []
        self.lengths: dict[float, float] = {}  # by the penalty of ω̄, the mean over folds

    def walk(self, fold_done: Callable[[], None]) -> None:
        """Try heavier and heavier penalties of ω̄ while the loss falls."""
        samples = self.samples
        least = math.inf
        for i, factor in enumerate(GRID.omega):
            before = samples.passes
            part = resumed(
                self.checkpoint,
                f"{samples.mode}-closed-omega-{factor:g}",
                partial(self._losses, i, fold_done),
                lambda part: part,
                lambda part: part,
            )
            samples.passes = before + part.values["passes"]
            omega = self.light * factor
            self.lengths[omega] = part.values["length"]
            losses = part.tensors["losses"].numpy()
            for k, units in enumerate(self._units(i)):
                for lambda1, loss in zip(self.lambda1, losses[:, k].tolist(), strict=True):
                    self.tried.append(Tried(lambda1 if units == math.inf else omega, lambda1, units, loss))
            here = float(losses[:, -len(GRID.lambda2_units) :].min())
            if here >= least * (1 - NEGLIGIBLE):  # heavier ones do harm, or differ in their length alone
                break
            least = here

    def choice(self) -> Choice:
        """Return the penalties of the least loss.

        Raises:
            ConvergenceError: None is finite.
        """
        best, mode = min(self.tried, key=lambda tried: tried.loss), self.samples.mode  # among equals without gradients
        if not math.isfinite(best.loss):
            raise ConvergenceError(f"no leave-one-out loss of {mode} is finite")
        return Choice(
            best.omega_penalty,
            best.lambda1,
            best.lambda2_units,
            self.tried,
            self.samples.passes,
            self.lengths.get(best.omega_penalty, 1.0),
            [best.loss],
            mode,
        )

    def _units(self, i: int) -> list[float]:
        """Return the λ₂ of one ω̄; without the gradient term all ω̄ are the same."""
        units = list(GRID.lambda2_units)
        return [math.inf, *units] if self.samples.mode == "full" and not i else units

    def _losses(self, i: int, fold_done: Callable[[], None]) -> Part:
        """Return the mean leave-one-out losses, (λ₁, λ₂), where each fold is judged under its own ω̄, and their unit."""
        samples, units = self.samples, self._units(i)
        before, length = samples.passes, 0.0
        losses = torch.zeros(len(self.lambda1), len(units), dtype=torch.float64)
        for probes, rows in zip(self.probes, self.rows, strict=True):
            dual = samples.dual(probes[i])
            length += dual.unit * samples.n / len(self.rows)
            for j, lambda1 in enumerate(self.lambda1):
                path = dual.at(lambda1)
                of_lambda1 = [samples.leave_one_out_loss(path, value * dual.unit, rows) for value in units]
                losses[j] += torch.tensor(of_lambda1, dtype=torch.float64)
            fold_done()
        losses /= sum(float(samples.weight[rows].sum()) for rows in self.rows)
        return Part({"length": length, "passes": samples.passes - before}, {"losses": losses})
