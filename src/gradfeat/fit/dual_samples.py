"""The samples that count, as the dual solvers take them: their kernel, and the model of a solution with its gap."""

from __future__ import annotations

import torch
from torch import Tensor

from gradfeat.fit.plan import Plan
from gradfeat.fit.point import Point, check_finite
from gradfeat.fit.problem import Problem
from gradfeat.losses import Quadratic
from gradfeat.model import GradientFeatureModel
from gradfeat.solvers.dual import DualPoint, relative_gap
from gradfeat.solvers.gradient_features import GradientFeatures, Weights, inner
from gradfeat.solvers.kernel import gram
from gradfeat.solvers.probe import Probe
from gradfeat.solvers.subspace import GAP, Penalties, bound


class DualSamples:
    """The samples of a problem whose weight is above zero.

    Args:
        problem: With samples that do not change.
        plan: Mode and parametrization.

    Attributes:
        n: Number of samples, versions not counted.
        weight: A weight for each row, above zero, (n · views,).
        single: Whether gradients are in single precision.
        passes: Work, in passes over the samples.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        rows = counted(problem)
        self.problem = problem.subset(rows, views=problem.views)
        self.mode, self.parametrization = plan.mode, plan.parametrization
        self.outputs, self.n = problem.outputs, self.problem.n
        weight = self.problem.weight
        self.weight = torch.ones(len(rows)) if weight is None else weight.cpu()
        self.single = problem.linearization.dtype != torch.float64
        self.passes = 0.0

    @property
    def y(self) -> Tensor:
        """Targets."""
        return self.problem.y

    @property
    def f(self) -> Tensor | None:
        """The activations that the mode has."""
        return self.problem.store.features if self.mode == "full" else None

    def features(self, probe: Probe) -> GradientFeatures:
        """Return the map Φ of an ω̄."""
        return GradientFeatures(self.problem.store, probe.omega, parametrization=self.parametrization)

    def kernel(self, probe: Probe) -> Tensor:
        """Return the tangent kernel of an ω̄, (n · c, n · c)."""
        features = self.features(probe)
        kernel = gram(features)
        self.passes += features.passes
        return kernel

    def model(self, probe: Probe, point: DualPoint, penalties: Penalties) -> tuple[GradientFeatureModel, float]:
        """Return the model of a solution, and its gap (see `gradfeat.solvers.subspace.Solution`).

        The gap is that of the weights as they are: where residuals a cancel, ``Φᵀ a / λ₂`` is rounded in single
        precision, and its objective is above the one that the solver reached.

        Args:
            probe: ω̄.
            point: The solution.
            penalties: Those that were asked for, which the gap is of; where it is zero, the one in force.

        Raises:
            ConvergenceError: Its weights are not finite.
        """
        features = self.features(probe)
        lin = self.problem.linearization
        pulled = features.transpose(point.a / point.w2_penalty, torch.arange(len(self.problem.store)))
        w1 = probe.omega if point.w1 is None else point.w1  # without activations it is not used
        weights = Point(lin.theta2, probe.omega, w1, point.bias, features.natural(pulled))
        model = weights.model(lin, self.mode, self.parametrization)
        gap = self._gap(features, pulled, point, penalties)
        self.passes += features.passes
        return check_finite(model, self.mode), gap

    def _gap(self, features: GradientFeatures, w2: Weights, point: DualPoint, asked: Penalties) -> float:
        """Return the gap of weights, w₂ in the variables that it is penalized in.

        With λ in force for λ₀ the dual objective at a is less by ``½ ‖w‖² λ (λ - λ₀) / λ₀``, the primal one by
        ``½ ‖w‖² (λ - λ₀)``.
        """
        store = self.problem.store
        logits = features.forward(w2, torch.arange(len(store))).double().cpu() + point.bias
        parts = [(point.w2_penalty, asked.lambda2, inner(w2, w2))]
        if point.w1 is not None:
            logits = logits + store.features.double().cpu() @ point.w1
            parts.append((point.w1_penalty, asked.lambda1, float(point.w1.square().sum())))
        objective = float(self.problem.loss.value(logits, self.y.cpu(), self.weight))
        lowest = point.objective / (1 + point.gap)
        for taken, wanted, squared in parts:
            wanted = wanted if 0 < wanted < taken else taken
            objective += 0.5 * wanted * squared
            lowest -= 0.5 * squared * taken * (taken - wanted) / wanted
        return relative_gap(objective - lowest, objective)

    def remarks(self, asked: Penalties, point: DualPoint, gap: float) -> list[str]:
        """Say where another λ₂ is in force than was asked for, or the solution is not known to be the optimum."""
        if 0 < asked.lambda2 < point.w2_penalty:
            squared = isinstance(self.problem.loss, Quadratic)  # Newton's method goes as far in single precision
            more = "; precision='float64' goes further" if self.single and squared else ""
            return [
                f"{self.mode}: λ₂ = {asked.lambda2:.3g} is below what can be told from rounding, and "
                f"{point.w2_penalty:.3g} was taken{more}"
            ]
        if gap <= GAP or 0 in (asked.lambda1, asked.lambda2):  # without a penalty a limit was asked for
            return []
        more = ": give heavier penalties" + (", or precision='float64'" if self.single else "")
        return [f"{self.mode}: not converged: {bound(gap)}, by rounding at penalties this light{more}"]


def counted(problem: Problem) -> Tensor:
    """Return the rows of the store whose weight is above zero."""
    rows = torch.arange(len(problem.store))
    return rows if problem.weight is None else rows[problem.weight.cpu() > 0]
