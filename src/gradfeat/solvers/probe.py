"""Step 2 of the method: the linear probe ω̄ on the activations, converged, its penalty chosen by cross-validation.

The probe minimises ``mean loss(fᵀω + b, y) + penalty/2 ‖ω‖²`` (b is free). Features are centred and rotated to the
eigenbasis of their second moments, where a diagonal change of scale makes the problem round: L-BFGS then needs some
tens of iterations whatever the features' conditioning, and the closed form for squared loss serves every penalty with
one decomposition.
"""

from __future__ import annotations

import copy
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from gradfeat.errors import ConfigurationError, ConvergenceError
from gradfeat.losses import CrossEntropy, Loss, Squared

GRID = tuple(10.0 ** (2 * exponent / 3) for exponent in range(3, -10, -1))
"""Penalties that are tried, from heavy to light, in units of the features' mean variance."""

ONE_FOLD_FROM = 20_000
"""From this number of samples on, one held-out part is as good as several, and several times cheaper."""

_RISES_TO_STOP = 2
_CURVATURE = 0.25  # of the logistic loss at zero; the scale of the Hessian in the preconditioner


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        omega: ω̄, (d, k).
        bias: Intercept, (k,).
        penalty: L2 penalty.
        path: (penalty, mean held-out loss, its standard error) of each penalty tried; empty if it was given.
        converged: Whether the gradient fell below the tolerance.
        gradient_norm: Largest entry of the objective's gradient in (ω, b), relative to that at zero.
        iterations: Of the final fit.
        note: How the penalty was chosen, if in an unusual way.
    """

    omega: Tensor
    bias: Tensor
    penalty: float
    path: list[tuple[float, float, float]]
    converged: bool
    gradient_norm: float
    iterations: int
    note: str = ""


def fit_probe(
    f: Tensor,
    y: Tensor,
    loss: Loss,
    *,
    sample_weight: Tensor | None = None,
    penalty: float | str = "auto",
    cv: Any = 5,
    random_state: int | None = None,
    tolerance: float = 1e-6,
) -> Probe:
    """Fit a linear probe to convergence, in float64.

    Args:
        f: Activations, (n, d).
        y: Targets for `loss`.
        loss: Cross-entropy, multi-label logistic, or squared.
        sample_weight: (n,).
        penalty: L2 penalty of ω, or "auto": the one of a path with the least held-out loss over `cv` folds of this
            data.
        cv: Folds, fewer where a class is rare; or a scikit-learn splitter, or pairs of indices (fitted, held out).
        random_state: Seed of the folds.
        tolerance: Largest entry of the gradient, relative to that at ω = 0.

    Returns:
        The probe, of the features' own dtype.

    Raises:
        ConvergenceError: The features are not finite.
        ConfigurationError: A negative penalty.

    Example:
        >>> f = torch.tensor([[-1.0], [1.0]])
        >>> probe = fit_probe(f, torch.tensor([[-1.0], [1.0]]), Squared(), penalty=1.0)
        >>> probe.omega  # minimises ½ (ω - 1)² + ½ ω²
        tensor([[0.5000]])
    """
    if not bool(torch.isfinite(f).all()):
        raise ConvergenceError("the activations f(x) are not finite: look at the inputs, and at the network's weights")
    device, dtype = f.device, f.dtype
    if not dtype.is_floating_point or dtype.itemsize < 4:
        dtype = torch.float32
    features, targets = f.detach().cpu().double(), y.detach().cpu()
    weight = None if sample_weight is None else sample_weight.detach().cpu().double()
    outputs = loss.n_outputs(targets)
    path: list[tuple[float, float, float]] = []
    note = ""
    basis = _Basis(features, weight)
    if isinstance(penalty, str):
        if penalty != "auto":
            raise ConfigurationError(f"penalty must be 'auto' or a number from 0, not {penalty!r}")
        scale = basis.mean_variance or 1.0
        folds, note = _folds(targets, loss, cv, random_state)
        if folds:
            grid = [scale * value for value in GRID]
            path = _cross_validate(basis, features, targets, loss, outputs, grid, folds)
            penalty = min(path, key=lambda point: point[1])[0]
        else:
            penalty = scale
    elif penalty < 0:
        raise ConfigurationError(f"penalty must not be negative, as {penalty} is")
    solution = basis.solve(targets, loss, outputs, float(penalty), None, tolerance, 2000)
    omega, bias = basis.weights(solution.point)
    if not bool(torch.isfinite(omega).all() and torch.isfinite(bias).all()):
        raise ConvergenceError("the probe's weights are not finite")
    return Probe(
        omega=omega.to(device, dtype),
        bias=bias.to(device, dtype),
        penalty=float(penalty),
        path=path,
        converged=solution.converged,
        gradient_norm=solution.gradient_norm,
        iterations=solution.iterations,
        note=note,
    )


@dataclass(frozen=True)
class _Solution:
    point: Tensor  # (r + 1, k): coordinates in the basis, and the bias of centred features
    converged: bool
    gradient_norm: float
    iterations: int


class _Basis:
    """Centred features in the eigenbasis of their (weighted) second moments."""

    def __init__(self, f: Tensor, weight: Tensor | None) -> None:
        n, d = f.shape
        self.weight = weight
        share = torch.full((n,), 1.0 / n, dtype=f.dtype) if weight is None else (weight / weight.sum()).to(f.dtype)
        self.share = share
        self.mean = share @ f
        scaled = (f - self.mean) * share.sqrt()[:, None]
        wide = n < d  # the span of the data is smaller than the space
        values, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
        keep = values > values.max().clamp_min(0) * 1e-12
        self.variances = values[keep]
        self.directions = scaled.T @ vectors[:, keep] / self.variances.sqrt() if wide else vectors[:, keep]
        self.mean_variance = float(values.sum() / d)
        self.coordinates = self.project(f)

    def project(self, f: Tensor) -> Tensor:
        """Return coordinates of features, with a column of ones for the bias, (n, r + 1)."""
        return torch.cat([(f - self.mean) @ self.directions, torch.ones(len(f), 1, dtype=f.dtype)], dim=1)

    def rows(self, picked: Tensor) -> _Basis:
        """Return the same basis over some of the samples, in single precision: what a fold needs."""
        part = copy.copy(self)
        part.coordinates, part.variances = self.coordinates[picked].float(), self.variances.float()
        part.weight = None if self.weight is None else self.weight[picked].float()
        return part

    def weights(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return ω, (d, k), and b, (k,), of the features as they were."""
        omega = self.directions @ point[:-1]
        return omega, point[-1] - self.mean @ omega

    def solve(
        self, y: Tensor, loss: Loss, outputs: int, penalty: float, start: Tensor | None, tolerance: float, most: int
    ) -> _Solution:
        """Minimise the penalized loss; `start` is the solution of a neighbouring penalty."""
        if isinstance(loss, Squared):
            return self._closed_form(y.to(self.mean.dtype), penalty)
        z, dtype = self.coordinates, self.coordinates.dtype
        ridge = torch.cat([torch.full_like(self.variances, penalty), torch.zeros(1, dtype=dtype)])[:, None]
        curvature = torch.cat([_CURVATURE * self.variances + penalty, torch.full((1,), _CURVATURE, dtype=dtype)])
        spread = curvature.rsqrt()[:, None]
        shape = (z.shape[1], outputs)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            point = (torch.from_numpy(flat).to(dtype).reshape(shape) * spread).requires_grad_()
            value = loss.value(z @ point, y, self.weight) + 0.5 * (ridge * point.square()).sum()
            (gradient,) = torch.autograd.grad(value, point)
            return float(value.detach()), (gradient * spread).double().numpy().ravel()

        first = np.zeros(shape[0] * shape[1]) if start is None else (start / spread).double().numpy().ravel()
        at_zero = float(np.abs(objective(np.zeros_like(first))[1]).max()) or 1.0
        result: Any = minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": most, "maxfun": 2 * most, "ftol": 0.0, "gtol": tolerance * at_zero, "maxcor": 20},
        )
        gradient_norm = float(np.abs(result.jac).max()) / at_zero
        point = torch.from_numpy(result.x).to(dtype).reshape(shape) * spread
        return _Solution(point, gradient_norm <= 10 * tolerance, gradient_norm, int(result.nit))

    def _closed_form(self, y: Tensor, penalty: float) -> _Solution:
        z = self.coordinates
        moments = z.T @ (y * self.share[:, None])  # (r + 1, k)
        own = torch.cat([self.variances + penalty, torch.ones(1, dtype=z.dtype)])[:, None]
        return _Solution(moments / own, True, 0.0, 1)


def _cross_validate(
    whole: _Basis,
    f: Tensor,
    y: Tensor,
    loss: Loss,
    outputs: int,
    penalties: list[float],
    folds: list[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[float, float, float]]:
    """Return (penalty, mean held-out loss, standard error), from heavy to light until the loss has risen a while.

    The folds share the basis of all samples, which conditions their problems nearly as well as their own; the closed
    form needs its own.
    """

    def prepare(fold: tuple[np.ndarray, np.ndarray]) -> tuple[_Basis, Tensor, Tensor, Tensor, Tensor | None]:
        seen, unseen = (torch.from_numpy(part) for part in fold)
        if isinstance(loss, Squared):
            basis = _Basis(f[seen], None if whole.weight is None else whole.weight[seen])
            held = basis.project(f[unseen])
        else:
            basis = whole.rows(seen)
            held = whole.coordinates[unseen].float()
        return basis, y[seen], held, y[unseen], None if whole.weight is None else whole.weight[unseen]

    prepared = [prepare(fold) for fold in folds]
    starts: list[Tensor | None] = [None] * len(prepared)
    path: list[tuple[float, float, float]] = []
    for penalty in penalties:
        losses = []
        for i, (basis, seen_y, held, held_y, held_weight) in enumerate(prepared):
            solution = basis.solve(seen_y, loss, outputs, penalty, starts[i], 1e-3, 100)
            starts[i] = solution.point
            losses.append(float(loss.value(held @ solution.point, held_y, held_weight)))
        error = float(np.std(losses, ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0
        path.append((penalty, float(np.mean(losses)), error))
        best = min(range(len(path)), key=lambda i: path[i][1])
        if len(path) - 1 - best >= _RISES_TO_STOP:
            break
    return path


def _folds(y: Tensor, loss: Loss, cv: Any, random_state: int | None) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Split the training data; a class with one sample is always in the part that is fitted."""
    from sklearn.model_selection import KFold, StratifiedKFold

    if not isinstance(cv, numbers.Integral):
        given = cv.split(np.zeros(len(y)), y.numpy()) if hasattr(cv, "split") else cv
        return [(np.asarray(seen), np.asarray(unseen)) for seen, unseen in given], ""
    n, most = len(y), int(cv)
    note = ""
    if isinstance(loss, CrossEntropy):
        labels = y.numpy()
        counts = np.bincount(labels)
        often = np.flatnonzero(counts[labels] >= 2)
        alone = np.flatnonzero(counts[labels] == 1)
        if not len(often):
            return [], "every class has one sample: the penalty is the features' mean variance, not chosen"
        folds = min(most, int(counts[counts >= 2].min()))
        splitter: Any = StratifiedKFold(folds, shuffle=True, random_state=random_state)
        splits: Iterator[Any] = splitter.split(often, labels[often])
        pairs = [(np.sort(np.concatenate([often[a], alone])), often[b]) for a, b in splits]
    else:
        if n < 3:
            return [], "too few samples for cross-validation: the penalty is the features' mean variance, not chosen"
        folds = min(most, n)
        pairs = [tuple(pair) for pair in KFold(folds, shuffle=True, random_state=random_state).split(np.arange(n))]
    if folds < most:
        note = (
            f"{folds} folds instead of {cv}: a class is rare"
            if isinstance(loss, CrossEntropy)
            else f"{folds} folds instead of {cv}"
        )
    if n >= ONE_FOLD_FROM:
        return pairs[:1], f"one held-out part of {len(pairs[0][1]):,} samples instead of {folds} folds"
    return pairs, note
