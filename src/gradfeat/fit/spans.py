"""Subspaces of a problem: made, grown, and judged on validation data for a whole grid of penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradfeat.fit.penalties import GRID
from gradfeat.fit.plan import Plan
from gradfeat.fit.problem import Problem
from gradfeat.losses import Loss
from gradfeat.solvers.gradient_features import GradientFeatures
from gradfeat.solvers.probe import Probe, fit_probes
from gradfeat.solvers.subspace import Activations, Objective, Penalties, Subspace


@dataclass(frozen=True)
class Growth:
    """Iterations of a subspace at a λ₂.

    Attributes:
        lambda2_units: In units of the gradient features.
        iterations: How many.
    """

    lambda2_units: float
    iterations: int


@dataclass(frozen=True)
class Stages:
    """How far the subspaces of a choice grow.

    Attributes:
        common: For all penalties of ω̄.
        more: For the best of them, while the validation loss falls.
    """

    common: tuple[Growth, ...]
    more: tuple[Growth, ...] = ()

    def __str__(self) -> str:
        return "-".join(f"{growth.lambda2_units:.3g}x{growth.iterations}" for growth in (*self.common, *self.more))


@dataclass(frozen=True)
class Validation:
    """Validation samples of a subspace, whose logits it has.

    Attributes:
        rows: Indices into the subspace's samples, (k,).
        y: Their targets.
        weight: Their weights, (k,), or None.
        loss: The task's loss.
    """

    rows: Tensor
    y: Tensor
    weight: Tensor | None
    loss: Loss

    @staticmethod
    def of(problem: Problem, n_train: int) -> Validation:
        """Return all samples of a problem but the first `n_train`."""
        rows = n_train + torch.arange(len(problem.store) - n_train)
        return Validation(rows, problem.y[rows], problem.weight_of(rows), problem.loss)

    def losses(self, subspace: Subspace, lambda1: Sequence[float]) -> np.ndarray:
        """Return their loss at the minimum over the span, for each λ₁ and each λ₂ of the grid, (λ₁, λ₂)."""
        grid = [Penalties(first, units * subspace.unit) for first in lambda1 for units in GRID.lambda2_units]
        logits = subspace.logits_of_all(subspace.minima(grid), self.rows)
        return self.loss.value(logits, self.y, self.weight).reshape(len(lambda1), -1).cpu().numpy()

    def per_sample(self, logits: Tensor) -> Tensor:
        """Return the loss of each, (k,), from their logits, (k, c)."""
        return self.loss.per_sample(logits.double(), self.y)


def subspace_of(
    problem: Problem,
    plan: Plan,
    omega: Tensor,
    bias: Tensor,
    n_train: int,
    generator: torch.Generator,
    activations: Activations | None = None,
) -> Subspace:
    """Return the empty subspace of `full` or `gradient` on a problem's first samples.

    Args:
        problem: All samples whose logits are wanted, at the point θ̄₂ that the network is linearized at.
        plan: Mode, parametrization, and the metric of w₂, "plain" or "whitened".
        omega: ω̄, (d, c).
        bias: With ω̄ the logits where the loss's curvature is looked at, (c,).
        n_train: How many are fitted to.
        generator: Of the preconditioner's signs.
        activations: Of the same samples, from a subspace of another ω̄; of mode "full" alone.
    """
    train = torch.arange(n_train)
    f = problem.store.features.to(omega)
    if plan.mode == "full" and activations is None:
        activations = Activations(f, train, problem.weight)
    return Subspace(
        GradientFeatures(problem.store, omega, parametrization=plan.parametrization),
        activations,
        Objective(problem.y, problem.loss, train, problem.weight),
        start=f @ omega + bias,
        generator=generator,
        metric=plan.metric,
    )


def grow(subspace: Subspace, lambda1: float, growth: Growth, *, tolerance: float = 1e-2) -> None:
    """Grow a subspace with a λ₁ and the λ₂ of a growth; half a growth chooses nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C, which the solver itself takes for the wish to have what is finished.
    """
    penalties = Penalties(lambda1, growth.lambda2_units * subspace.unit)
    _, solution = subspace.solve(penalties, iterations=growth.iterations, tolerance=tolerance)
    if solution.interrupted:
        raise KeyboardInterrupt


def probes_of(problem: Problem, rows: Tensor, penalty: float) -> list[Probe]:
    """Fit probes to some rows, with the grid's penalties of ω̄, from the best probe's upwards."""
    return fit_probes(
        problem.store.features[rows],
        problem.y[rows],
        problem.loss,
        [penalty * factor for factor in GRID.omega],
        sample_weight=problem.weight_of(rows),
        tolerance=1e-3,
        outputs=problem.outputs,
    )
