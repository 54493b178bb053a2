"""Ridge regression with a path of penalties from one decomposition, chosen by leave-one-out.

    minimise  Σᵢ sᵢ ½ ‖hᵀ fᵢ + b - yᵢ‖² + λ/2 ‖h - h₀‖²,      Σᵢ sᵢ = 1

The residual of a sample by the fit without it is its residual over ``1 - leverage`` (Allen's PRESS), so the choice
costs no fit beside the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError

PENALTIES = tuple(10.0 ** (-exponent / 2) for exponent in range(-2, 19))
"""λ of the path, from heavy to light, in units of the features' mean squared distance from their mean."""


@dataclass(frozen=True)
class Ridge:
    """A ridge regression.

    Attributes:
        weight: h, (d, c).
        bias: b, (c,).
        penalty: λ.
        error: Mean of ½ ‖residual‖² over the samples, each by the fit to all others.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    error: float


def ridge_by_leave_one_out(f: Tensor, y: Tensor, share: Tensor, centre: Tensor | None = None) -> Ridge:
    """Return the ridge regression whose penalty has the least error on samples that are left out.

    Args:
        f: Features, (n, d).
        y: Targets, (n, c).
        share: Weight of each sample, (n,), above zero, of sum one; the fit without a sample keeps those of the others.
        centre: h₀, (d, c), to which the weights are pulled; None is zero.

    Raises:
        ConvergenceError: Features or targets that are not finite.
    """
    f, y, share = f.double(), y.double(), share.double()
    if not bool(torch.isfinite(f).all() and torch.isfinite(y).all()):
        raise ConvergenceError("the features are not finite")
    centre = f.new_zeros(f.shape[1], y.shape[1]) if centre is None else centre.double()
    root, mean = share.sqrt()[:, None], share @ f
    rest = y - f @ centre
    bias = share @ rest
    scaled, right = root * (f - mean), root * (rest - bias)
    squares, left = _decomposed(scaled)  # (r,), (n, r)
    unit = max(float(scaled.square().sum()), torch.finfo(torch.float64).tiny)
    along, leverages = left.T @ right, left.square()
    best: Ridge | None = None
    for factor in PENALTIES:
        kept = squares / (squares + factor * unit)
        # what the other samples leave of one; the intercept has a leverage too
        alone = (1 - share - leverages @ kept).clamp_min(torch.finfo(torch.float64).eps)
        residuals = (right - left @ (kept[:, None] * along)) / alone[:, None]
        error = 0.5 * float(residuals.square().sum())
        if best is None or error < best.error:
            # h - h₀ = Fᵀ left (left ᵀ right) / (squares + λ), with F scaled and centred
            change = scaled.T @ (left @ (along / (squares + factor * unit)[:, None]))
            best = Ridge(centre + change, bias - mean @ change, factor * unit, error)
    if best is None:
        raise ConvergenceError("the regression is not finite")
    return best


def _decomposed(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares of the singular values of a matrix, (r,), and its left singular vectors, (n, r)."""
    n, d = scaled.shape
    if n <= d:
        values, vectors = torch.linalg.eigh(scaled @ scaled.T)
    else:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled)
    keep = values > values.max().clamp_min(0) * 1e-14
    values, vectors = values[keep], vectors[:, keep]
    return values, vectors if n <= d else scaled @ vectors / values.sqrt()
