"""Principal axes of the activations: the coordinates in which answers see w₁ and ω̄."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradfeat.solvers.coordinates import Coordinates
from gradfeat.solvers.leverage import Rows
from gradfeat.solvers.subspace import Activations

MOST = 1024
"""Axes × outputs that are kept, at most."""


@dataclass(frozen=True)
class HeadAxes:
    """Principal axes of centred activations, in main memory and double precision.

    Attributes:
        mean: (d,).
        axes: Those that are kept, orthonormal, (d, r).
        others: The rest of them, (d, s).
        variances: Of the activations along the rest, (s,).
        curvature: Of the loss in a logit, a mean, over the penalty of w₁: what all samples together know of the
            weights along an axis of variance v makes its prior narrower, ``1 / (1 + v curvature)``.
    """

    mean: Tensor
    axes: Tensor
    others: Tensor
    variances: Tensor
    curvature: float = 0.0

    @staticmethod
    def of(f: Tensor, weight: Tensor | None, outputs: int) -> HeadAxes:
        """Return the axes with the largest variance of some activations, (n, d)."""
        found = Activations(f.detach().cpu().double(), torch.arange(len(f)), None if weight is None else weight.cpu())
        kept = max(1, MOST // outputs)
        return HeadAxes(found.mean, found.axes[:, -kept:], found.axes[:, :-kept], found.variances[:-kept])

    def known(self, curvature: float) -> HeadAxes:
        """Return the axes where so much is known of the weights along the others."""
        return replace(self, curvature=curvature)

    @property
    def size(self) -> int:
        """How many there are, r."""
        return self.axes.shape[1]

    def rows(self, f: Tensor, gradients: Coordinates) -> Rows:
        """Return the rows of samples with these activations, (n, d), and gradient features."""
        along, left = self.centred(f)
        dtype = gradients.along.dtype
        return Rows(along.to(dtype), left.square().sum(1).to(dtype), gradients)

    def centred(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations less their mean, split."""
        return self.split(f.detach().cpu().double() - self.mean)

    def split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of features along the axes, (n, r), and along the others in units of their prior, (n, s)."""
        return value @ self.axes, value @ self.others / (1 + self.curvature * self.variances).sqrt()
