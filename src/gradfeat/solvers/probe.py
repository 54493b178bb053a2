"""Step 2 of the method: the linear probe ω̄ on the activations, converged, its penalty chosen by cross-validation.

The probe minimises ``mean loss(fᵀω + b, y) + penalty/2 ‖ω‖²`` (b is free). Features are centred and rotated to the
eigenbasis of their second moments, where a diagonal change of scale, by the curvature of the loss, makes the problem
nearly round: L-BFGS then needs some tens of iterations whatever the features' conditioning, and the closed form for
squared loss serves every penalty with one decomposition.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.losses import Loss, Squared
from gradfeat.progress import Step

GRID = tuple(10.0 ** (2 * exponent / 3) for exponent in range(3, -10, -1))
"""Penalties that are tried, from heavy to light, in units of the features' mean variance."""

ONE_FOLD_FROM = 20_000
"""From this number of samples on, one held-out part is as good as several, and several times cheaper."""

Folds = list[tuple[np.ndarray, np.ndarray]]

_NEGLIGIBLE = 1e-3  # a lighter penalty must lower the held-out loss by this share, more than the path's solver leaves
_RISE = 1e-2  # and a rise is one by this share; heavy penalties may be level before the loss falls
_RISES_TO_STOP = 3
_REFRESH = 50  # iterations after which the curvature is taken anew
_PRECISION = 1e-7  # such a gradient is worth 1e-14 of an objective near one: the line search sees no less
_LEAST_CURVATURE = 1e-30  # one class alone has none
_ITERATIONS, _PATH_ITERATIONS = 2000, 100
_PATH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        omega: ω̄, (d, k).
        bias: Intercept, (k,).
        penalty: L2 penalty.
        path: (penalty, mean held-out loss, its standard error) of each penalty tried; empty if it was given.
        converged: Whether the gradient fell below the tolerance, or as far as float64 tells objectives apart.
        gradient_norm: Largest entry of the objective's gradient, relative to that at ω = 0, each entry in units of the
            objective's own curvature there.
        iterations: Of the final fit.
        note: What was unusual in the choice of the penalty, or that the fit has not converged; empty otherwise.
    """

    omega: Tensor
    bias: Tensor
    penalty: float
    path: list[tuple[float, float, float]]
    converged: bool
    gradient_norm: float
    iterations: int
    note: str = ""


@plain()
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
    outputs: int | None = None,
    report: Step | None = None,
) -> Probe:
    """Fit a linear probe to convergence, in float64.

    Args:
        f: Activations, (n, d).
        y: Targets for `loss`: (n,) or (n, k).
        loss: Cross-entropy, multi-label logistic, or squared.
        sample_weight: (n,), none below zero; a sample of weight zero is as good as absent.
        penalty: L2 penalty of ω, or "auto": the one of a path with the least held-out loss over `cv` folds of this
            data, and the heaviest among those that differ from it by less than a thousandth.
        cv: Folds, fewer where a class is rare; or a scikit-learn splitter, or pairs of indices (fitted, held out).
        random_state: Seed of the folds.
        tolerance: Largest entry of the gradient, relative to that at ω = 0.
        outputs: k, where these samples may lack the last classes; None reads it off y.
        report: Told how many penalties have been tried, of how many at most.

    Returns:
        The probe, of the features' own dtype.

    Raises:
        ConvergenceError: The features are not finite, or the fit left the finite numbers.
        ConfigurationError: A penalty or a number of folds that cannot be meant.
        DataError: Arrays whose shapes do not fit, targets or weights that are not finite, weights below zero or all
            zero.

    Example:
        >>> f = torch.tensor([[-1.0], [1.0]])
        >>> probe = fit_probe(f, torch.tensor([[-1.0], [1.0]]), Squared(), penalty=1.0)
        >>> probe.omega  # minimises ½ (ω - 1)² + ½ ω²
        tensor([[0.5000]])
    """
    _check_arguments(penalty, cv)
    present, features, targets, weight = _read(f, y, loss, sample_weight)
    outputs = loss.n_outputs(y) if outputs is None else outputs
    basis = _Basis(features, weight)
    path: list[tuple[float, float, float]] = []
    start: Tensor | None = None
    note = ""
    if isinstance(penalty, str):
        penalty = basis.mean_variance or 1.0
        parts, note = folds(targets, loss, cv, random_state, present)
        if parts:
            grid = [penalty * value for value in GRID]
            penalty, start, path = _cross_validate(basis, features, targets, loss, outputs, grid, parts, report)
    solution = basis.solve(targets, loss, outputs, float(penalty), start, tolerance, _ITERATIONS)
    return _probe(basis, solution, float(penalty), f, path, note)


@plain()
def fit_probes(
    f: Tensor,
    y: Tensor,
    loss: Loss,
    penalties: Sequence[float],
    *,
    sample_weight: Tensor | None = None,
    tolerance: float = 1e-6,
    outputs: int | None = None,
) -> list[Probe]:
    """Fit probes with several penalties to the same samples, for one decomposition; arguments as of `fit_probe`."""
    for penalty in penalties:
        _check_arguments(penalty, 2)
    _, features, targets, weight = _read(f, y, loss, sample_weight)
    outputs = loss.n_outputs(y) if outputs is None else outputs
    basis = _Basis(features, weight)
    probes: list[Probe] = []
    for penalty in penalties:
        solution = basis.solve(targets, loss, outputs, float(penalty), None, tolerance, _ITERATIONS)
        probes.append(_probe(basis, solution, float(penalty), f, [], ""))
    return probes


def _read(
    f: Tensor, y: Tensor, loss: Loss, sample_weight: Tensor | None
) -> tuple[np.ndarray, Tensor, Tensor, Tensor | None]:
    """Return the places of samples that count, and their features, targets and weights, in float64.

    They are where the features are, if that is a CUDA device; not every other one knows float64.
    """
    _check_data(f, y, loss, sample_weight)
    device = f.device if f.is_cuda else torch.device("cpu")
    features, targets = f.detach().to(device, torch.float64), y.detach().to(device)
    if sample_weight is None:
        return np.arange(len(f)), features, targets, None
    weight = sample_weight.detach().to(device, torch.float64)
    picked = weight.nonzero()[:, 0]
    return picked.cpu().numpy(), features[picked], targets[picked], weight[picked]


def _probe(
    basis: _Basis,
    solution: _Solution,
    penalty: float,
    f: Tensor,
    path: list[tuple[float, float, float]],
    note: str,
) -> Probe:
    """Return a solution as a probe of features f, of their dtype and on their device."""
    if not solution.converged:
        unfinished = f"not converged in {solution.iterations} iterations: gradient {solution.gradient_norm:.1e}"
        note = f"{note}; {unfinished}" if note else unfinished
    dtype = f.dtype if f.dtype.is_floating_point and f.dtype.itemsize >= 4 else torch.float32
    omega, bias = (part.to(f.device, dtype) for part in basis.weights(solution.point))
    if not bool(torch.isfinite(omega).all() and torch.isfinite(bias).all()):
        raise ConvergenceError(
            f"the probe's weights are not finite in {dtype} with penalty {penalty:.3g}: rescale the features, "
            "or give a heavier penalty"
        )
    return Probe(
        omega=omega,
        bias=bias,
        penalty=penalty,
        path=path,
        converged=solution.converged,
        gradient_norm=solution.gradient_norm,
        iterations=solution.iterations,
        note=note,
    )


def _check_arguments(penalty: float | str, cv: Any) -> None:
    if isinstance(penalty, str):
        if penalty != "auto":
            raise ConfigurationError(f"penalty must be 'auto' or a number from 0, not {penalty!r}")
    elif not (math.isfinite(penalty) and penalty >= 0):
        raise ConfigurationError(f"penalty must be finite and not negative, as {penalty} is")
    if isinstance(cv, numbers.Integral) and int(cv) < 2:
        raise ConfigurationError(f"cv must be 2 folds or more, a splitter, or pairs of indices, not {cv}")


def _check_data(f: Tensor, y: Tensor, loss: Loss, weight: Tensor | None) -> None:
    if f.ndim != 2 or 0 in f.shape:
        raise DataError(f"f must be a matrix (n, d) of at least one sample and feature, not of shape {tuple(f.shape)}")
    axes = 1 if loss.task == "multiclass" else 2
    if y.ndim != axes or len(y) != len(f):
        expected = f"({len(f)},)" if axes == 1 else f"({len(f)}, k)"
        raise DataError(f"y must be of shape {expected} for {loss.name}, not {tuple(y.shape)}")
    if not bool(torch.isfinite(f).all()):
        raise ConvergenceError("the activations f(x) are not finite: look at the inputs, and at the network's weights")
    if isinstance(loss, Squared) and not bool(torch.isfinite(y).all()):
        raise DataError("y must be finite for squared loss")
    if weight is None:
        return
    if weight.shape != (len(f),):
        raise DataError(f"sample_weight must be of shape ({len(f)},), not {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all() and (weight >= 0).all() and (weight > 0).any()):
        raise DataError("sample_weight must be finite, none below zero, and not all zero")


@dataclass(frozen=True)
class _Solution:
    point: Tensor  # (r + 1, k): coordinates in the basis, and the bias of centred features
    converged: bool
    gradient_norm: float
    iterations: int


class _Basis:
    """Centred features in the eigenbasis of their (weighted) second moments, in units of their largest entry.

    The unit keeps squares of very large or small features, and single precision, within the range of numbers.
    """

    def __init__(self, f: Tensor, weight: Tensor | None) -> None:
        n, d = f.shape
        self.weight = weight
        self.share = f.new_full((n,), 1.0 / n) if weight is None else weight / weight.sum()
        self.mean = f[0] + self.share @ (f - f[0])  # exact where a feature is constant
        centred = f - self.mean
        self.unit = float(centred.abs().max()) or 1.0
        scaled = centred / self.unit * self.share.sqrt()[:, None]
        wide = n < d  # the span of the data is smaller than the space
        values, vectors = torch.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
        keep = values > values.max().clamp_min(0) * 1e-12
        self.variances = values[keep]
        self.directions = scaled.T @ vectors[:, keep] / self.variances.sqrt() if wide else vectors[:, keep]
        self.mean_variance = float(values.sum() / d) * self.unit**2
        self.coordinates = self.project(f)

    def project(self, f: Tensor) -> Tensor:
        """Return coordinates of features, with a column of ones for the bias, (n, r + 1)."""
        ones = f.new_ones(len(f), 1)
        return torch.cat([(f - self.mean) / self.unit @ self.directions, ones], dim=1)

    def rows(self, picked: Tensor) -> _Basis:
        """Return the same basis over some of the samples, in single precision: what a fold needs."""
        part = copy.copy(self)
        part.coordinates, part.variances = self.coordinates[picked].float(), self.variances.float()
        part.weight = None if self.weight is None else self.weight[picked].float()
        part.share = self.share[picked].float() / self.share[picked].sum().float()
        return part

    def weights(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return ω, (d, k), and b, (k,), of the features as they were."""
        omega = self.directions @ point[:-1] / self.unit
        return omega, point[-1] - self.mean @ omega

    def solve(
        self, y: Tensor, loss: Loss, outputs: int, penalty: float, start: Tensor | None, tolerance: float, most: int
    ) -> _Solution:
        """Minimise the penalized loss; `start` is the solution of a neighbouring problem."""
        penalty /= self.unit**2
        if isinstance(loss, Squared):
            return self._closed_form(y.to(self.coordinates.dtype), penalty)
        z = self.coordinates
        ridge = z.new_full((z.shape[1], 1), penalty)
        ridge[-1] = 0
        shares = self.share[:, None]
        point = z.new_zeros(z.shape[1], outputs)

        def value_and_gradient(at: Tensor) -> tuple[float, Tensor]:
            # column-major, which makes autograd's product with z the faster one
            at = at.detach().T.contiguous().T.requires_grad_()
            value = loss.value(z @ at, y, self.weight) + 0.5 * (ridge * at.square()).sum()
            (gradient,) = torch.autograd.grad(value, at)
            return float(value.detach()), gradient

        # at zero the curvature of the loss is the same for all samples
        at_zero = loss.curvature(z.new_zeros(1, outputs))
        variances = torch.cat([self.variances, z.new_ones(1)])[:, None]
        spread = (at_zero * variances + ridge).clamp_min(_LEAST_CURVATURE).rsqrt()
        # no gradient at all is rounding, not a scale
        scale = max(float((value_and_gradient(point)[1] * spread).abs().max()), 1e-6)
        squares = z.square()
        if start is not None:
            point = start.to(z)
        iterations, largest = 0, math.inf
        while iterations < most:
            curvature = squares.T @ (shares * loss.curvature(z @ point))
            # of samples that are fitted almost surely nothing is left; a share of the first curvature bounds the steps
            spread = (curvature.clamp_min(1e-6 * at_zero * variances) + ridge).clamp_min(_LEAST_CURVATURE).rsqrt()

            def objective(flat: np.ndarray, spread: Tensor = spread) -> tuple[float, np.ndarray]:
                value, gradient = value_and_gradient(torch.from_numpy(flat).to(z).view_as(spread) * spread)
                return value, (gradient * spread).double().cpu().numpy().ravel()

            result: Any = minimize(
                objective,
                (point / spread).double().cpu().numpy().ravel(),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": min(_REFRESH, most - iterations),
                    "ftol": 0.0,
                    "gtol": tolerance * scale,
                    "maxcor": 20,
                },
            )
            point = torch.from_numpy(result.x).to(z).view_as(spread) * spread
            iterations += int(result.nit)
            before, largest = largest, float(np.abs(result.jac).max()) / scale
            # without an iteration, or short of a round and no nearer, the line search is at the end of the precision
            if largest <= tolerance or not result.nit or (result.nit < _REFRESH and largest >= before):
                break
        return _Solution(point, largest <= max(tolerance, _PRECISION / scale), largest, iterations)

    def _closed_form(self, y: Tensor, penalty: float) -> _Solution:
        z = self.coordinates
        moments = z.T @ (y * self.share[:, None])  # (r + 1, k)
        own = torch.cat([self.variances + penalty, z.new_ones(1)])[:, None]
        return _Solution(moments / own, True, 0.0, 1)


def _cross_validate(
    whole: _Basis,
    f: Tensor,
    y: Tensor,
    loss: Loss,
    outputs: int,
    penalties: list[float],
    folds: Folds,
    report: Step | None = None,
) -> tuple[float, Tensor, list[tuple[float, float, float]]]:
    """Choose a penalty on the path from heavy to light, which ends where the held-out loss has risen a while.

    The folds share the basis of all samples, which conditions their problems nearly as well as their own; the closed
    form needs its own.

    Returns:
        The penalty, the folds' mean solution for it (a start for the final fit), and (penalty, mean held-out loss, its
        standard error) of all that were tried.
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
    points: list[Tensor | None] = [None] * len(prepared)
    path: list[tuple[float, float, float]] = []
    chosen, best, start = penalties[0], math.inf, torch.zeros(0)
    rises = 0
    for penalty in penalties:
        losses = []
        for i, (basis, seen_y, held, held_y, held_weight) in enumerate(prepared):
            point = basis.solve(seen_y, loss, outputs, penalty, points[i], _PATH_TOLERANCE, _PATH_ITERATIONS).point
            losses.append(float(loss.value(held @ point, held_y, held_weight)))
            points[i] = point
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise ConvergenceError(f"the held-out loss became {mean} with penalty {penalty:.3g}: rescale the features")
        error = float(np.std(losses, ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0
        path.append((penalty, mean, error))
        if report is not None:
            report(len(path), len(penalties))
        rises = rises + 1 if mean > best * (1 + _RISE) else 0
        if mean < best * (1 - _NEGLIGIBLE):
            chosen, best = penalty, mean
            if not isinstance(loss, Squared):  # whose folds have bases of their own, and which needs no start
                start = torch.stack([point for point in points if point is not None]).mean(0)
        if rises == _RISES_TO_STOP:
            break
    return chosen, start, path


def folds(
    y: Tensor, loss: Loss, cv: Any, random_state: int | None, present: np.ndarray | None = None
) -> tuple[Folds, str]:
    """Split the training data; a class with one sample is always in the part that is fitted.

    Args:
        y: Targets of the samples that count.
        loss: Says whether the targets are classes.
        cv: As in `fit_probe`; pairs of indices are of all samples.
        random_state: Seed.
        present: Indices of the samples that count among all, ascending; None if all do.

    Returns:
        Pairs of indices of the samples that count, none if there are too few to split; and a note.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    present = np.arange(len(y)) if present is None else present
    if not isinstance(cv, numbers.Integral):
        if hasattr(cv, "split"):
            return [(seen, unseen) for seen, unseen in cv.split(np.zeros(len(y)), y.cpu().numpy())], ""
        pairs = [(_position(seen, present), _position(unseen, present)) for seen, unseen in cv]
        if not pairs or not all(len(seen) and len(unseen) for seen, unseen in pairs):
            raise DataError("cv holds no pairs of indices, or one with an empty part (weight zero does not count)")
        return pairs, ""
    n, most = len(y), int(cv)
    if loss.task == "multiclass":
        labels = y.cpu().numpy()
        counts = np.bincount(labels)
        often = np.flatnonzero(counts[labels] >= 2)
        alone = np.flatnonzero(counts[labels] == 1)
        if not len(often):
            return [], "every class has one sample: the penalty is the features' mean variance, not chosen"
        count = min(most, int(counts[counts >= 2].min()))
        splitter: Any = StratifiedKFold(count, shuffle=True, random_state=random_state)
        splits: Iterator[Any] = splitter.split(often, labels[often])
        pairs = [(np.sort(np.concatenate([often[a], alone])), often[b]) for a, b in splits]
        reason = ": a class is rare"
    else:
        if n < 3:
            return [], "too few samples for cross-validation: the penalty is the features' mean variance, not chosen"
        count = min(most, n)
        pairs = list(KFold(count, shuffle=True, random_state=random_state).split(np.arange(n)))
        reason = ": there are no more samples"
    note = f"{count} folds instead of {cv}{reason}" if count < most else ""
    if n >= ONE_FOLD_FROM:
        return pairs[:1], f"one held-out part of {len(pairs[0][1]):,} samples instead of {count} folds"
    return pairs, note


def _position(indices: Any, present: np.ndarray) -> np.ndarray:
    """Return where samples are among those present, leaving out the rest."""
    return np.flatnonzero(np.isin(present, np.asarray(indices)))
