"""Step 2 of the method: the linear probe ω̄ on the activations, converged, its penalty chosen by cross-validation.

The probe minimises ``mean loss(fᵀω + b, y) + penalty/2 ‖ω‖²`` (b is free): in a basis of its own (`probe_basis`), with
a penalty from a path (`probe_path`) over folds of the training data (`folds`).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.contexts import plain
from gradfeat.errors import ConfigurationError, ConvergenceError, DataError
from gradfeat.losses import Loss, Squared
from gradfeat.progress import Step
from gradfeat.solvers.folds import Folds, Indices, folds
from gradfeat.solvers.probe_basis import Basis, BasisSolution, Stop, Targets
from gradfeat.solvers.probe_path import GRID, choose_penalty, likely_penalty

__all__ = ["GRID", "ITERATIONS", "Folds", "Probe", "fit_probe", "fit_probes", "folds"]

ITERATIONS = 2000
"""Of L-BFGS in the final fit, at most."""


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
            data, and the heaviest among those that differ from it by less than a thousandth; of fewer than
            `probe_path.FEW` samples with a prior (see `gradfeat.solvers.probe_path`).
        cv: Folds, fewer where a class is rare; or a scikit-learn splitter, or pairs of indices (training, validation).
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
    samples = _read(f, y, loss, sample_weight, outputs)
    basis = Basis(samples.f, samples.weight)
    path: list[tuple[float, float, float]] = []
    start: Tensor | None = None
    note = ""
    if isinstance(penalty, str):
        penalty = likely_penalty(basis, samples.f)
        parts, note = folds(samples.targets.y, loss, cv, random_state, samples.present)
        if parts:
            chosen = choose_penalty(basis, samples.f, samples.targets, parts, report)
            penalty, start, path = chosen.penalty, chosen.start, chosen.path
    solution = basis.solve(samples.targets, float(penalty), start, Stop(tolerance, ITERATIONS))
    omega, bias = _weights(basis, solution, float(penalty), f)
    return _probe(omega, bias, float(penalty), solution, path, note)


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
    samples = _read(f, y, loss, sample_weight, outputs)
    basis, stop = Basis(samples.f, samples.weight), Stop(tolerance, ITERATIONS)
    probes: list[Probe] = []
    for penalty in penalties:
        solution = basis.solve(samples.targets, float(penalty), None, stop)
        omega, bias = _weights(basis, solution, float(penalty), f)
        probes.append(_probe(omega, bias, float(penalty), solution))
    return probes


@dataclass(frozen=True)
class _Samples:
    """The samples that count, in float64.

    Attributes:
        f: Activations, (n, d).
        targets: Of these samples.
        weight: (n,), above zero, or None.
        present: Indices of these samples among all, (n,).
    """

    f: Tensor
    targets: Targets
    weight: Tensor | None
    present: Indices


def _read(f: Tensor, y: Tensor, loss: Loss, sample_weight: Tensor | None, outputs: int | None) -> _Samples:
    """Return the samples that count.

    They are where the features are, if that is a CUDA device; not every other one knows float64.
    """
    _check_data(f, y, loss, sample_weight)
    outputs = loss.n_outputs(y) if outputs is None else outputs
    device = f.device if f.is_cuda else torch.device("cpu")
    features, y = f.detach().to(device, torch.float64), y.detach().to(device)
    if sample_weight is None:
        return _Samples(features, Targets(y, loss, outputs), None, np.arange(len(f)))
    weight = sample_weight.detach().to(device, torch.float64)
    picked = weight.nonzero()[:, 0]
    targets = Targets(y[picked], loss, outputs)
    return _Samples(features[picked], targets, weight[picked], picked.cpu().numpy())


def _weights(basis: Basis, solution: BasisSolution, penalty: float, f: Tensor) -> tuple[Tensor, Tensor]:
    """Return ω and b of a solution, of the features' dtype and on their device."""
    dtype = f.dtype if f.dtype.is_floating_point and f.dtype.itemsize >= 4 else torch.float32
    omega, bias = (part.to(f.device, dtype) for part in basis.weights(solution.point))
    if not bool(torch.isfinite(omega).all() and torch.isfinite(bias).all()):
        raise ConvergenceError(
            f"the probe's weights are not finite in {dtype} with penalty {penalty:.3g}: rescale the features, "
            "or give a heavier penalty"
        )
    return omega, bias


def _probe(
    omega: Tensor,
    bias: Tensor,
    penalty: float,
    solution: BasisSolution,
    path: Sequence[tuple[float, float, float]] = (),
    note: str = "",
) -> Probe:
    """Return a solution as a probe, whose note says too where it has not converged."""
    if not solution.converged:
        unfinished = f"not converged in {solution.iterations} iterations: gradient {solution.gradient_norm:.1e}"
        note = f"{note}; {unfinished}" if note else unfinished
    return Probe(
        omega=omega,
        bias=bias,
        penalty=penalty,
        path=list(path),
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
