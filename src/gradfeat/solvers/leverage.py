"""What each sample does to a fitted linear model: covariances of logits, leverage, and the fit without a sample.

At the optimum of ``Σᵢ sᵢ loss(zᵢ, yᵢ) + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²`` with logits ``zᵢ = Xᵢ θ``, θ = (w₁, b, w₂), the
Hessian is ``H = Σ Xᵢᵀ sᵢΛᵢ Xᵢ + λ``, with Λᵢ the loss's curvature. All answers are of its inverse between samples,
``Bᵢ = Xᵢ H⁻¹ Xᵢᵀ``. Over n it is the covariance of a sample's logits, and without the sample the logits are

    zᵢ + Bᵢ (1 - sᵢΛᵢ Bᵢ)⁻¹ sᵢ gᵢ

by one Newton step, with gᵢ the loss's slope: exact for a squared loss (Pregibon 1981; Rad & Maleki 2020).

X has the principal coordinates of the activations, and those of the gradient features, that are kept; what is left of
either has no part in other samples' logits. So each sample has unknowns of its own, whose logits have the prior
covariance ``Rᵢ = rest / λ``. They take a part of its curvature from θ, ``sᵢΛᵢ`` becomes ``(1/(sᵢΛᵢ) + Rᵢ)⁻¹``, and are
gone with it, which adds ``Rᵢ sᵢ gᵢ`` to its logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError
from gradfeat.losses import Loss
from gradfeat.solvers.coordinates import Coordinates
from gradfeat.solvers.subspace import Penalties

_CHUNK = 1 << 25  # numbers of rows at a time
_NEAR_ONE = 1 - 1e-6  # of a leverage: a sample that alone decides its own logits
_FREE = 1e-8  # penalty of the intercept, relative to its curvature: a label that is always ignored has none


@dataclass(frozen=True)
class Rows:
    """Features of samples, explicit: what the logits of a linear model are linear in.

    Attributes:
        f: Coordinates of centred activations, (n, r); of mode `gradient` (n, 0).
        f_rest: Squared length of what is left of them, (n,).
        gradients: Coordinates of gradient features; those of a probe have no columns.
    """

    f: Tensor
    f_rest: Tensor
    gradients: Coordinates

    def __len__(self) -> int:
        return len(self.f)

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        """Return some of the rows."""
        parts = self.gradients
        return Rows(self.f[rows], self.f_rest[rows], replace(parts, along=parts.along[rows], rest=parts.rest[rows]))

    @property
    def outputs(self) -> int:
        """Number of outputs, c."""
        return self.gradients.along.shape[1]

    @property
    def size(self) -> int:
        """Number of unknowns: of w₁, (r, c), of b, (c,), and of w₂, (k,), in this order."""
        return (self.f.shape[1] + 1) * self.outputs + self.gradients.along.shape[2]

    def times(self, left: Tensor) -> Tensor:
        """Return ``leftᵢᵀ Xᵢ``, (n, q, size), for a matrix of each sample, (n, c, q)."""
        n, _, q = left.shape
        turned = left.mT
        f = (self.f[:, None, :, None] * turned[:, :, None, :]).reshape(n, q, -1)
        return torch.cat([f, turned, turned @ self.gradients.along], 2)

    def pulled(self, u: Tensor) -> Tensor:
        """Return ``Σᵢ Xᵢᵀ uᵢ``, (size,); u is (n, c)."""
        along = torch.einsum("nc,nck->k", u, self.gradients.along)
        return torch.cat([(self.f.T @ u).flatten(), u.sum(0), along])

    def logits(self, theta: Tensor) -> Tensor:
        """Return ``Xᵢ θ``, (n, c, ...); θ is (size, ...)."""
        r, c = self.f.shape[1], self.outputs
        w1, b, w2 = theta.split([r * c, c, self.gradients.along.shape[2]])
        of_w1: Tensor = torch.einsum("nr,rc...->nc...", self.f, w1.view(r, c, *theta.shape[1:]))
        of_w2: Tensor = torch.einsum("nck,k...->nc...", self.gradients.along, w2)
        total: Tensor = of_w1 + b + of_w2
        return total


class Hessian:
    """H of some samples at some logits, decomposed.

    Args:
        rows: Features of the samples.
        logits: Where the curvature is, (n, c).
        y: Targets.
        loss: The task's loss.
        share: Of each sample in the loss, (n,).
        penalties: λ₁ and λ₂.

    Attributes:
        root: L, (n, c, c), with ``L Lᵀ`` the part of each sample's curvature ``sᵢ Λᵢ`` that θ has.

    Raises:
        ConvergenceError: It is not finite.
    """

    def __init__(self, rows: Rows, logits: Tensor, y: Tensor, loss: Loss, share: Tensor, penalties: Penalties) -> None:
        self._penalties = penalties
        dtype = rows.gradients.along.dtype
        root = (curvature_root(loss, logits.double(), y) * share.double().sqrt()[:, None, None]).to(dtype)
        inner = root.mT @ self.rest(rows) @ root
        inner.diagonal(dim1=1, dim2=2).add_(1)
        self.root = root @ torch.linalg.inv(torch.linalg.cholesky(inner)).mT  # of which the square is (1 + Lᵀ R L)⁻¹
        self._heads, self._outputs = rows.f.shape[1] * rows.outputs, rows.outputs
        self._curvature = rows.f.new_zeros(rows.size, rows.size, dtype=torch.float64)
        for part, left in _parts(rows, self.root):
            weighted = part.times(left).flatten(0, 1).double()  # a light penalty is below single precision's rounding
            self._curvature += weighted.T @ weighted
        self._factor = self._decomposed(penalties).to(dtype)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self._factor)

    def with_penalties(self, penalties: Penalties) -> Hessian:
        """Return the Hessian with other penalties; what each sample has by itself takes its curvature as before."""
        other = copy.copy(self)
        other._penalties = penalties
        other._factor = self._decomposed(penalties).to(self._factor)
        return other

    def rest(self, rows: Rows) -> Tensor:
        """Return R of samples, (n, c, c)."""
        rest = rows.gradients.rest / self._penalties.lambda2 if rows.gradients.along.shape[2] else rows.gradients.rest
        if rows.f.shape[1]:
            rest = rest.clone()
            rest.diagonal(dim1=1, dim2=2).add_((rows.f_rest / self._penalties.lambda1)[:, None])
        return rest

    def _decomposed(self, penalties: Penalties) -> Tensor:
        total, of_bias = self._curvature.clone(), slice(self._heads, self._heads + self._outputs)
        diagonal = total.diagonal()
        block = total[of_bias, of_bias]
        free = diagonal[of_bias].sum() * _FREE
        if float(block.sum()) < free:  # a softmax does not see a shift of all logits: any penalty of it will do
            block += diagonal[of_bias].mean() / self._outputs
        diagonal[: self._heads] += penalties.lambda1
        diagonal[of_bias] += free.clamp_min(torch.finfo(total.dtype).tiny)
        diagonal[of_bias.stop :] += penalties.lambda2
        if not bool(torch.isfinite(total).all()):
            raise ConvergenceError("the curvature is not finite: the features are too large for their precision")
        factor, failed = torch.linalg.cholesky_ex(total)
        if int(failed):
            raise ConvergenceError("the curvature cannot be decomposed: give heavier penalties")
        lower: Tensor = factor
        return lower

    def whitened(self, rows: Rows) -> Tensor:
        """Return ``Xᵢ H^-½``, (n, c, size): inner products between samples are those of H⁻¹."""
        eye = torch.eye(rows.outputs, dtype=rows.f.dtype, device=rows.f.device).expand(len(rows), -1, -1)
        flat = rows.times(eye).flatten(0, 1)
        solved: Tensor = torch.linalg.solve_triangular(self._factor, flat.T, upper=False)
        return solved.T.reshape(len(rows), rows.outputs, -1)

    def half_solve(self, value: Tensor) -> Tensor:
        """Return H^-½ times a value, (size, m): `whitened` rows times it are ``Xᵢ H⁻¹ value``."""
        solved: Tensor = torch.linalg.solve_triangular(self._factor.double(), value.double(), upper=False)
        return solved

    def other_half(self, value: Tensor) -> Tensor:
        """Return what `half_solve` left to do: θ of ``H^½ θ``; value is (size, m)."""
        solved: Tensor = torch.linalg.solve_triangular(self._factor.double().T, value.double(), upper=True)
        return solved

    def covariances(self, rows: Rows) -> Tensor:
        """Return ``Xᵢ H⁻¹ Xᵢᵀ`` of samples, (n, c, c)."""
        return torch.cat([w @ w.mT for w in (self.whitened(part) for part, _ in _parts(rows, rows.f))])


@dataclass(frozen=True)
class Removed:
    """What removing each sample, or each group of rows, does to the model, by one Newton step.

    Attributes:
        half: ``H^½ δθ``, (n, size): with `Hessian.whitened` rows the moves of any sample's logits.
        own: Moves of the sample's own logits by θ, (n, m).
    """

    half: Tensor
    own: Tensor


def remove_each(whitened: Tensor, root: Tensor, half: Tensor) -> Removed:
    """Return what removing each sample, or each group of m rows, does to θ.

    Its curvature is gone with it, so ``δθ = (H - Xᵢᵀ L Lᵀ Xᵢ)⁻¹ p`` of a force p on θ.

    Args:
        whitened: ``Xᵢ H^-½`` of the samples, (n, m, size).
        root: L, (n, m, m), of `Hessian`.
        half: ``H^-½ p``, (n, size): of the sample's slope alone ``Σ whitenedᵢᵀ sᵢ gᵢ``.
    """
    whitened, root, half = whitened.double(), root.double(), half.double()
    left = root.mT @ whitened
    values, vectors = torch.linalg.eigh(left @ left.mT)  # leverages, below one
    values = values.clamp(0, _NEAR_ONE)
    turned = vectors.mT @ (left @ half[:, :, None])
    further = vectors @ (turned / (1 - values)[:, :, None])
    half = half + (left.mT @ further)[:, :, 0]
    return Removed(half, (whitened @ half[:, :, None])[:, :, 0])


def curvature_root(loss: Loss, logits: Tensor, y: Tensor) -> Tensor:
    """Return L, (n, c, c), with ``L Lᵀ = Λᵢ``."""
    units = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    return torch.stack([loss.curvature_root(logits, y, unit.expand_as(logits)) for unit in units], 2)


def _parts(rows: Rows, others: Tensor) -> Iterator[tuple[Rows, Tensor]]:
    """Yield rows in parts that are not too large, with what belongs to them of another tensor."""
    step = max(1, _CHUNK // max(1, rows.outputs * rows.size))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        yield rows[part], others[part]
