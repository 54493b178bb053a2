"""The probe's penalty by cross-validation, on a path from heavy to light; of few samples with a prior.

The held-out loss of some tens of samples says little of the penalty: its least value is at any of six powers of ten.
What logits are like is known before. With the penalty λ of a mean loss over n samples, weights are a priori normal with
variance 1/(λn), and logits with v/(λn), where v is the features' mean squared distance from their mean. A penalty is
thus a spread of logits, which is some units whatever the features are. So its logarithm has a normal prior, and the
choice is that of the greatest posterior: the held-out loss, summed over samples, is the likelihood. The prior weighs
less the more samples there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Quadratic, Squared
from gradfeat.progress import Step
from gradfeat.solvers.folds import Folds, Indices
from gradfeat.solvers.probe_basis import Basis, Stop, Targets

GRID = tuple(10.0 ** (2 * exponent / 3) for exponent in range(3, -10, -1))
"""Penalties that are tried, from heavy to light, in units of the features' mean variance."""

FEW = 1000
"""Samples below which the penalty has a prior; of more it would move the choice by a step of the grid at most."""

LOGIT_SPREAD = 4.0
"""Standard deviation of a logit under the penalty that is the likeliest a priori."""

DECADES = 1.0
"""Standard deviation of the penalty's logarithm to base 10, a priori."""

_NEGLIGIBLE = 1e-3  # a lighter penalty must lower the held-out loss by this share, more than the path's solver leaves
_RISE = 1e-2  # and a rise is one by this share; heavy penalties may be level before the loss falls
_RISES_TO_STOP = 3
_STOP = Stop(tolerance=1e-3, iterations=100)


@dataclass(frozen=True)
class ChosenPenalty:
    """The choice.

    Attributes:
        penalty: The heaviest among those whose held-out loss, with the prior's share, is the least but for less than a
            thousandth.
        start: The folds' mean solution for it, in the basis of all samples; None under a squared loss, whose folds have
            bases of their own, and which needs no start.
        path: (penalty, mean held-out loss, its standard error) of all that were tried.
    """

    penalty: float
    start: Tensor | None
    path: list[tuple[float, float, float]]


@dataclass(frozen=True)
class _Fold:
    """A fold as the solver takes it.

    Attributes:
        basis: Of the training part.
        targets: Of the training part.
        coordinates: Of the validation part in that basis, (m, r + 1).
        validation: Targets of the validation part.
        weight: Of the validation part's samples, (m,), or None.
    """

    basis: Basis
    targets: Targets
    coordinates: Tensor
    validation: Targets
    weight: Tensor | None

    def validation_loss(self, point: Tensor) -> float:
        """Return the mean loss of the validation part for a solution in the basis."""
        return float(self.targets.loss.value(self.coordinates @ point, self.validation.y, self.weight))


def likely_penalty(basis: Basis, f: Tensor) -> float:
    """Return the penalty under which a logit's standard deviation is `LOGIT_SPREAD` a priori; 1 of constant features.

    Args:
        basis: Of the samples.
        f: Their activations, (n, d).
    """
    n, d = f.shape
    return basis.mean_variance * d / (n * LOGIT_SPREAD**2) or 1.0


def _surprise(penalties: list[float], likely: float, targets: Targets) -> list[float]:
    """Return what each penalty adds to the held-out loss: minus the logarithm of its prior, over the samples.

    The loss must be a likelihood; the mean over labels is one with a share of their number.
    """
    n, loss = len(targets.y), targets.loss
    if n >= FEW or isinstance(loss, Quadratic):
        return [0.0] * len(penalties)
    nats = n * (targets.outputs if loss.task == "multilabel" else 1)
    return [0.5 * (math.log10(penalty / likely) / DECADES) ** 2 / nats for penalty in penalties]


def choose_penalty(
    basis: Basis, f: Tensor, targets: Targets, folds: Folds, report: Step | None = None
) -> ChosenPenalty:
    """Choose a penalty on the path from heavy to light, which ends where the held-out loss has risen a while.

    Args:
        basis: Of all samples.
        f: Their activations, (n, d).
        targets: Their targets.
        folds: At least one.
        report: Told how many penalties have been tried, of how many at most.

    Raises:
        ConvergenceError: The held-out loss is not finite.
    """
    penalties = [(basis.mean_variance or 1.0) * value for value in GRID]
    surprises = _surprise(penalties, likely_penalty(basis, f), targets)
    prepared = [_prepared(basis, f, targets, train, validation) for train, validation in folds]
    points: list[Tensor | None] = [None] * len(prepared)
    path: list[tuple[float, float, float]] = []
    penalty, least, start = penalties[0], math.inf, None
    least_loss = math.inf
    rises = 0
    for tried, surprise in zip(penalties, surprises, strict=True):
        solved = [
            fold.basis.solve(fold.targets, tried, point, _STOP).point
            for fold, point in zip(prepared, points, strict=True)
        ]
        losses = [fold.validation_loss(point) for fold, point in zip(prepared, solved, strict=True)]
        points = [*solved]
        mean = float(np.mean(losses))
        if not math.isfinite(mean):
            raise ConvergenceError(f"the held-out loss became {mean} with penalty {tried:.3g}: rescale the features")
        error = float(np.std(losses, ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0
        path.append((tried, mean, error))
        if report is not None:
            report(len(path), len(penalties))
        rises = rises + 1 if mean > least_loss * (1 + _RISE) else 0
        least_loss = min(mean, least_loss)
        if mean + surprise < least * (1 - _NEGLIGIBLE):
            penalty, least = tried, mean + surprise
            start = None if isinstance(targets.loss, Squared) else torch.stack(solved).mean(0)
        if rises == _RISES_TO_STOP:
            break
    return ChosenPenalty(penalty, start, path)


def _prepared(whole: Basis, f: Tensor, targets: Targets, train: Indices, validation: Indices) -> _Fold:
    """Return a fold; the folds share the basis of all samples, and the closed form needs its own.

    The basis of all samples conditions the folds' problems nearly as well as their own.
    """
    fitted, held_out = torch.from_numpy(train), torch.from_numpy(validation)
    if isinstance(targets.loss, Squared):
        basis = Basis(f[fitted], None if whole.weight is None else whole.weight[fitted])
        coordinates = basis.project(f[held_out])
    else:
        basis = whole.rows(fitted)
        coordinates = whole.coordinates[held_out].float()
    weight = None if whole.weight is None else whole.weight[held_out]
    return _Fold(basis, targets.rows(fitted), coordinates, targets.rows(held_out), weight)
