"""The probe's problem in a basis where it is nearly round, and its minimum there.

Features are centred and rotated to the eigenbasis of their second moments, where a diagonal change of scale, by the
curvature of the loss, makes the problem nearly round: L-BFGS then needs some tens of iterations whatever the features'
conditioning, and the closed form for squared loss serves every penalty with one decomposition.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from gradfeat.losses import Loss, Squared

_REFRESH = 50  # iterations after which the curvature is taken anew
_PRECISION = 1e-7  # such a gradient is worth 1e-14 of an objective near one: the line search sees no less
_LEAST_CURVATURE = 1e-30  # one class alone has none


@dataclass(frozen=True)
class Targets:
    """What a probe is fitted to.

    Attributes:
        y: (n,) or (n, k), as the loss takes them.
        loss: Cross-entropy, multi-label logistic, or squared.
        outputs: k; these samples may lack the last classes.
    """

    y: Tensor
    loss: Loss
    outputs: int

    def rows(self, indices: Tensor) -> Targets:
        """Return those of some samples."""
        return replace(self, y=self.y[indices])


@dataclass(frozen=True)
class Stop:
    """When L-BFGS ends.

    Attributes:
        tolerance: Largest entry of the gradient, relative to that at ω = 0.
        iterations: At most.
    """

    tolerance: float
    iterations: int


@dataclass(frozen=True)
class BasisSolution:
    """A minimum in a basis.

    Attributes:
        point: (r + 1, k): coordinates, and the bias of centred features.
        converged: Whether the gradient fell below the tolerance, or as far as float64 tells objectives apart.
        gradient_norm: Largest entry of the gradient, relative to that at zero.
        iterations: Of L-BFGS.
    """

    point: Tensor
    converged: bool
    gradient_norm: float
    iterations: int


class Basis:
    """Centred features in the eigenbasis of their (weighted) second moments, in units of their largest entry.

    The unit keeps squares of very large or small features, and single precision, within the range of numbers.

    Args:
        f: Activations, (n, d).
        weight: Of each sample, (n,), or None.

    Attributes:
        weight: As given.
        share: The weights, brought to sum one, (n,).
        coordinates: Of the features, with a column of ones for the bias, (n, r + 1).
        variances: Of the first r coordinates, (r,).
        mean_variance: Of the features, in their own unit.
    """

    def __init__(self, f: Tensor, weight: Tensor | None) -> None:
        n, d = f.shape
        self.weight = weight
        self.share = f.new_full((n,), 1.0 / n) if weight is None else weight / weight.sum()
        self._mean = f[0] + self.share @ (f - f[0])  # exact where a feature is constant
        centred = f - self._mean
        self._unit = float(centred.abs().max()) or 1.0
        scaled = centred / self._unit * self.share.sqrt()[:, None]
        wide = n < d  # the span of the data is smaller than the space
        values, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
        keep = values > values.max().clamp_min(0) * 1e-12
        self.variances = values[keep]
        self._axes = scaled.T @ vectors[:, keep] / self.variances.sqrt() if wide else vectors[:, keep]  # (d, r)
        self.mean_variance = float(values.sum() / d) * self._unit**2
        self.coordinates = self.project(f)

    def project(self, f: Tensor) -> Tensor:
        """Return coordinates of features, with a column of ones for the bias, (n, r + 1)."""
        ones = f.new_ones(len(f), 1)
        return torch.cat([(f - self._mean) / self._unit @ self._axes, ones], dim=1)

    def rows(self, indices: Tensor) -> Basis:
        """Return the same basis over some of the samples, in single precision: what a fold needs."""
        part = copy.copy(self)
        part.coordinates, part.variances = self.coordinates[indices].float(), self.variances.float()
        part.weight = None if self.weight is None else self.weight[indices].float()
        part.share = self.share[indices].float() / self.share[indices].sum().float()
        return part

    def weights(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return ω, (d, k), and b, (k,), of the features as they were."""
        omega = self._axes @ point[:-1] / self._unit
        return omega, point[-1] - self._mean @ omega

    def solve(self, targets: Targets, penalty: float, start: Tensor | None, stop: Stop) -> BasisSolution:
        """Minimise the penalized loss.

        Args:
            targets: Of the basis's samples.
            penalty: In the features' own unit.
            start: The solution of a neighbouring problem, (r + 1, k); None starts at zero.
            stop: When L-BFGS ends; a squared loss is solved in closed form.
        """
        penalty /= self._unit**2
        if isinstance(targets.loss, Squared):
            return self._closed_form(targets.y.to(self.coordinates.dtype), penalty)
        return _Objective(self, targets, penalty).minimum(start, stop)

    def _closed_form(self, y: Tensor, penalty: float) -> BasisSolution:
        z = self.coordinates
        moments = z.T @ (y * self.share[:, None])  # (r + 1, k)
        hessian = torch.cat([self.variances + penalty, z.new_ones(1)])[:, None]  # its diagonal: all of it
        return BasisSolution(moments / hessian, True, 0.0, 1)


class _Objective:
    """The penalized loss of the coordinates in a basis, (r + 1, k), the last row the bias."""

    def __init__(self, basis: Basis, targets: Targets, penalty: float) -> None:
        self._basis, self._targets = basis, targets
        self._z = z = basis.coordinates
        self._squares = z.square()
        self._ridge = z.new_full((z.shape[1], 1), penalty)
        self._ridge[-1] = 0
        # at zero the curvature of the loss is the same for all samples
        self._curvature_at_zero = targets.loss.curvature(z.new_zeros(1, targets.outputs))  # (1, k)
        self._variances = torch.cat([basis.variances, z.new_ones(1)])[:, None]

    def minimum(self, start: Tensor | None, stop: Stop) -> BasisSolution:
        """Return the minimum by rounds of L-BFGS, each in the scale of the curvature where it begins."""
        point = self._z.new_zeros(self._z.shape[1], self._targets.outputs)
        spread = self._spread(self._curvature_at_zero * self._variances)
        # no gradient at all is rounding, not a scale
        scale = max(float((self._value_and_gradient(point)[1] * spread).abs().max()), 1e-6)
        if start is not None:
            point = start.to(self._z)
        iterations, largest = 0, math.inf
        while iterations < stop.iterations:
            spread = self._spread(self._curvature(point))
            most = min(_REFRESH, stop.iterations - iterations)
            result = self._lbfgs(point, spread, stop.tolerance * scale, most)
            point = torch.from_numpy(result.x).to(self._z).view_as(spread) * spread
            iterations += int(result.nit)
            before, largest = largest, float(np.abs(result.jac).max()) / scale
            # without an iteration, or short of a round and no nearer, the line search is at the end of the precision
            if largest <= stop.tolerance or not result.nit or (result.nit < _REFRESH and largest >= before):
                break
        return BasisSolution(point, largest <= max(stop.tolerance, _PRECISION / scale), largest, iterations)

    def _lbfgs(self, point: Tensor, spread: Tensor, tolerance: float, iterations: int) -> Any:
        """Return SciPy's result of a round of L-BFGS from a point, in coordinates divided by `spread`, (r + 1, k)."""

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, gradient = self._value_and_gradient(torch.from_numpy(flat).to(self._z).view_as(spread) * spread)
            return value, (gradient * spread).double().cpu().numpy().ravel()

        return minimize(
            objective,
            (point / spread).double().cpu().numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations, "ftol": 0.0, "gtol": tolerance, "maxcor": 20},
        )

    def _value_and_gradient(self, point: Tensor) -> tuple[float, Tensor]:
        # column-major, which makes autograd's product with z the faster one
        point = point.detach().T.contiguous().T.requires_grad_()
        loss = self._targets.loss.value(self._z @ point, self._targets.y, self._basis.weight)
        value = loss + 0.5 * (self._ridge * point.square()).sum()
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient

    def _curvature(self, point: Tensor) -> Tensor:
        """Return the diagonal of the loss's Hessian, (r + 1, k), not below a share of that at zero."""
        curvature = self._targets.loss.curvature(self._z @ point)
        diagonal = self._squares.T @ (self._basis.share[:, None] * curvature)
        # of samples that are fitted almost surely nothing is left; a share of the first curvature bounds the steps
        return diagonal.clamp_min(1e-6 * self._curvature_at_zero * self._variances)

    def _spread(self, curvature: Tensor) -> Tensor:
        """Return the scale of each coordinate in which the penalized loss bends by one."""
        return (curvature + self._ridge).clamp_min(_LEAST_CURVATURE).rsqrt()
