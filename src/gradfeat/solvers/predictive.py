"""Probabilities of uncertain logits, and a temperature of logits.

A logit z with variance v predicts ``E σ(z + √v ε)``: one dimension, by Gauss-Hermite quadrature, where MacKay's
``σ(z / √(1 + π v / 8))`` (1992) is an approximation. A softmax of more than two classes is averaged over 512 points of
a scrambled Sobol sequence with one seed, and their mirror images: the same numbers in every call.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradfeat.losses import Loss

NODES = 64
"""Of the quadrature."""

POINTS = 512
"""Of a softmax, each with its mirror image."""

SCALES = tuple(10 ** (exponent / 2) for exponent in range(-8, 1))
"""Of covariances, that are tried."""

_JUDGES, _FEW_POINTS = 1000, 64  # samples and points that a scale is chosen by
_CHUNK = 1 << 22  # numbers at a time
_GRID = (-3.0, 3.0)  # exponents of e between which a temperature is sought
_STEPS = 60


def mean_sigmoid(logits: Tensor, variance: Tensor) -> Tensor:
    """Return ``E σ(z + √v ε)`` elementwise, of any shape."""
    at, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
    moved = logits.double()[..., None] + variance.double().clamp_min(0).sqrt()[..., None] * at
    return moved.sigmoid() @ (weight / weight.sum())


def mean_softmax(logits: Tensor, covariance: Tensor, points: int = POINTS) -> Tensor:
    """Return the mean of a softmax over normal logits, (m, c), in double precision.

    Args:
        logits: (m, c).
        covariance: (m, c, c).
        points: Of the sequence; twice as many are averaged.
    """
    logits, covariance = logits.double(), covariance.double()
    m, c = logits.shape
    if c == 2:
        difference = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        second = mean_sigmoid(logits @ difference, (covariance @ difference) @ difference)
        return torch.stack([1 - second, second], 1)
    draws = torch.quasirandom.SobolEngine(c, scramble=True, seed=0).draw(points, dtype=torch.float64)
    normal = torch.special.ndtri(draws.clamp(1e-12, 1 - 1e-12))
    normal = torch.cat([normal, -normal])
    result = torch.empty_like(logits)
    for part in torch.arange(m).split(max(1, _CHUNK // (len(normal) * c))):
        values, vectors = torch.linalg.eigh(covariance[part])
        root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT  # the symmetric one, which is unique
        result[part] = (logits[part][:, None] + normal @ root).softmax(2).mean(1)
    return result


def integrated(loss: Loss, logits: Tensor, covariance: Tensor, points: int = POINTS) -> Tensor:
    """Return the probabilities of uncertain logits, (m, c): of each class, or of each label by itself.

    Args:
        loss: The task's loss, of classes or labels.
        logits: (m, c).
        covariance: (m, c, c).
        points: As of `mean_softmax`.
    """
    if loss.task == "multilabel":
        return mean_sigmoid(logits, covariance.diagonal(dim1=1, dim2=2))
    return mean_softmax(logits, covariance, points)


def covariance_scale(loss: Loss, logits: Tensor, covariance: Tensor, y: Tensor) -> float:
    """Return the multiple of the covariances, zero or one of `SCALES`, with the least log loss of integrated logits.

    A penalty that makes the best single model is no prior variance: for few samples it may be far too light for that.

    Args:
        loss: The task's loss, of classes or labels.
        logits: Of samples that the model has not seen, (n, c).
        covariance: Of these, (n, c, c).
        y: Targets; the first `_JUDGES` samples of a fixed order decide.
    """
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:_JUDGES]
    y = y[some]

    def value(scale: float) -> float:
        p = integrated(loss, logits[some], scale * covariance[some], _FEW_POINTS).clamp(1e-12, 1 - 1e-12)
        if loss.task == "multilabel":
            return float(-torch.where(y > 0.5, p.log(), (-p).log1p())[~torch.isnan(y)].mean())
        return float(-p.gather(1, y[:, None]).log().mean())

    return min((0.0, *SCALES), key=value)


def temperature(loss: Loss, logits: Tensor, y: Tensor, share: Tensor) -> float:
    """Return what logits of samples that a model has not seen are to be divided by (Guo et al., 2017).

    Args:
        loss: A cross-entropy or logistic loss: convex in 1/T, so that a search by thirds ends at its minimum.
        logits: (n, c).
        y: Targets.
        share: Of each sample, (n,).
    """

    def value(log_t: float) -> float:
        return float(share @ loss.per_sample(logits / float(np.exp(log_t)), y).double())

    low, high = _GRID
    for _ in range(_STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    return float(np.exp((low + high) / 2))
