"""The squared loss in closed form, in the samples' space: kernel ridge regression, with leave-one-out for free.

    minimise  Σᵢ sᵢ ½ ‖w₁ᵀ fᵢ + b + Φᵢ w₂ - yᵢ‖² + λ₁/2 ‖w₁‖² + λ₂/2 ‖w₂‖²,      Σᵢ sᵢ = 1

is solved by ``w₁ = Fᵀ a / λ₁`` and ``w₂ = Φᵀ a / λ₂``, where ``a = s ∘ residual`` has n · c entries (w₂ is shared by
all outputs, so their residuals are not apart). With ``a = D α``, ``D = diag(√s)`` and P the projection that the free
intercept asks for, ``P = 1 - √s √sᵀ`` in each output,

    M α = P D y,      M = 1 + P D (F Fᵀ / λ₁ + Φ Φᵀ / λ₂) D P,

which is never singular. What a sample's residual would be without that sample is ``D⁻¹ ([P M⁻¹ P]ᵢᵢ)⁻¹ αᵢ``, with its
own c × c block (Allen's PRESS; Wahba 1990). One eigendecomposition for each λ₁ serves every λ₂.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradfeat.errors import ConvergenceError, DataError

LEAST = 1e-10
"""A lighter penalty, zero for one, is taken as this share of the features' mean squared length: the limit of small
penalties, which fits the data with the least norm, up to rounding."""

LEAST_SINGLE = 1e-7
"""The same of gradient features in single precision: below it residuals a that cancel make ``Φᵀ a / λ₂`` rounding."""


@dataclass(frozen=True)
class DualPoint:
    """A solution.

    Attributes:
        a: Weighted residuals, (n, c): ``w₁ = Fᵀ a / λ₁`` and ``w₂ = Φᵀ a / λ₂``, with the penalties that were in force.
        w1: (d, c), or None without activations.
        bias: (c,).
        w1_penalty: The λ₁ in force, above zero.
        w2_penalty: The λ₂ in force, above zero; infinite without the gradient term.
        objective: Penalized mean loss.
        gap: The objective is at most so far above its minimum, relative to it: the primal less the dual objective of a
            and of the loss's slopes at its logits, ``½ Σ ‖gradient‖² / λ``.
    """

    a: Tensor
    w1: Tensor | None
    bias: Tensor
    w1_penalty: float
    w2_penalty: float
    objective: float
    gap: float


def relative_gap(above: float, objective: float) -> float:
    """Return by how much an objective, not negative, exceeds its minimum at most, relative to it.

    Args:
        above: The objective less a lower bound of its minimum.
        objective: The objective.

    Example:
        >>> relative_gap(0.1, 1.1), relative_gap(0.0, 0.0), relative_gap(2.0, 1.0)
        (0.1, 0.0, inf)
    """
    if above <= 0:
        return 0.0
    return above / (objective - above) if above < objective else math.inf


def check_samples(kernel: Tensor, share: Tensor, n: int, outputs: int) -> None:
    """Refuse a kernel that is not of these samples and outputs, and weights that are none.

    Args:
        kernel: ``Φ Φᵀ``, (n · c, n · c).
        share: Weight of each sample, (n,), above zero.
        n: Number of samples.
        outputs: c.

    Raises:
        DataError: Shapes that do not fit, or weights that are not above zero.
    """
    size = n * outputs
    if kernel.shape != (size, size):
        raise DataError(f"kernel must be of shape ({size}, {size}), samples × outputs, not {tuple(kernel.shape)}")
    if share.shape != (n,) or not bool((share > 0).all() and torch.isfinite(share).all()):
        raise DataError(f"share must hold {n} finite weights above zero")


class Dual:
    """The problem on n samples, for all penalties: prepared once, then ``dual.at(λ₁).solve(λ₂)``.

    Args:
        kernel: ``Φ Φᵀ``, (n · c, n · c), of the gradient features.
        f: Activations, (n, d); None leaves w₁ out (mode `gradient`).
        targets: (n, c).
        share: Weight of each sample, (n,), above zero; brought to sum one.
        views: Versions of each sample, which are left out together: row i is a version of sample ``i % (n / views)``.
        single: Whether the gradient features are in single precision.

    Attributes:
        unit: Unit of λ₂: the mean squared length of a sample's gradient features, by the samples' weights, over n.

    Raises:
        DataError: Shapes that do not fit, or weights that are not above zero.
    """

    def __init__(
        self,
        kernel: Tensor,
        f: Tensor | None,
        targets: Tensor,
        share: Tensor,
        *,
        views: int = 1,
        single: bool = False,
    ) -> None:
        n, c = targets.shape
        check_samples(kernel, share, n, c)
        self.views = views
        self._share = share.detach().cpu().double() / float(share.double().sum())
        self._root = root = self._share.sqrt()  # the diagonal of D, (n,)
        self._y = targets.detach().cpu().double()
        lengths = kernel.detach().diagonal().cpu().double().view(n, c).sum(1)
        self.unit = max(float(self._share @ lengths) / n, 1e-30)
        blocks = kernel.detach().cpu().double().view(n, c, n, c) * (root[:, None, None, None] * root[:, None])
        self._mean = torch.einsum("i,iljk->ljk", root, blocks)  # mean rows, (c, n, c): for the intercept
        self._least2 = (LEAST_SINGLE if single else LEAST) * max(float(torch.einsum("ikik->", blocks)), 1e-30)
        self._kernel = self._projected(blocks).reshape(n * c, n * c)  # P D Φ Φᵀ D P
        self._f_mean: Tensor | None = None
        # P D F Fᵀ D P by its eigenvalues, (n,), and eigenvectors, (n, n)
        self._squares, self._axes = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
        if f is not None:
            f = f.detach().cpu().double()
            self._f_mean = self._share @ f
            self._f = root[:, None] * (f - self._f_mean)  # P D F
            values, self._axes = torch.linalg.eigh(self._f @ self._f.T)
            self._squares = values.clamp_min(0)
            self._least1 = LEAST * max(float(self._share @ f.square().sum(1)), 1e-30)
        self._right = root[:, None] * self._y
        self._right = self._right - root[:, None] * (root @ self._right)  # P D y

    def _projected(self, blocks: Tensor) -> Tensor:
        """Return P K P of an (n, c, n, c) matrix."""
        root = self._root
        blocks = blocks - root[:, None, None, None] * torch.einsum("i,iljk->ljk", root, blocks)
        return blocks - torch.einsum("iljk,j->ilk", blocks, root)[:, :, None] * root[:, None]

    def at(self, w1: float) -> DualPath:
        """Return the problem with a penalty λ₁, decomposed for every λ₂; mode `gradient` has no λ₁."""
        return DualPath(self, w1)


class DualPath:
    """The problem for one λ₁ and every λ₂. Made by `Dual.at`."""

    def __init__(self, dual: Dual, w1: float) -> None:
        self._dual = dual
        n, c = dual._y.shape
        self._w1 = w1 = 1.0 if dual._f_mean is None else max(w1, dual._least1)
        # (1 + F Fᵀ / λ₁)^-½, of samples alone, on both sides of the gradient kernel
        inverse = dual._axes * (1 + dual._squares / w1).rsqrt() @ dual._axes.T
        left = (inverse @ dual._kernel.view(n, -1)).view(n * c, n, c)
        both = torch.einsum("ij,rjk->rik", inverse, left).reshape(n * c, n * c)
        values, vectors = torch.linalg.eigh((both + both.T) / 2)
        self._values = values.clamp_min(0)
        vectors = (inverse @ vectors.reshape(n, -1)).view(n, c, n * c)
        # rows of P M^-½ in the eigenbasis; projected again, so that heavy samples' blocks keep their digits
        root = dual._root[:, None, None]
        self._vectors = vectors - root * (root * vectors).sum(0)

    def _weights(self, w2: float) -> Tensor:
        """Return the eigenvalues of M⁻¹ in the basis."""
        inverse: Tensor = 1 / (1 + self._values / max(w2, self._dual._least2))
        return inverse

    def _alpha(self, weights: Tensor) -> Tensor:
        """Return α, (n, c), from the eigenvalues of M⁻¹."""
        flat = self._vectors.reshape(-1, len(weights))
        alpha: Tensor = flat @ (weights * (flat.T @ self._dual._right.flatten()))
        return alpha.view_as(self._dual._y)

    def solve(self, w2: float) -> DualPoint:
        """Return the solution for a penalty λ₂; infinite for no gradient term."""
        dual = self._dual
        w2 = max(w2, dual._least2)
        alpha = self._alpha(self._weights(w2))
        a = dual._root[:, None] * alpha
        phi_w2 = torch.einsum("ljk,jk->l", dual._mean, alpha) / w2  # mean of Φ w₂
        bias = dual._share @ dual._y - phi_w2
        w1: Tensor | None = None
        if dual._f_mean is not None:
            w1 = dual._f.T @ alpha / self._w1
            bias = bias - dual._f_mean @ w1
        objective = 0.5 * float((alpha * dual._right).sum())
        if not (math.isfinite(objective) and bool(torch.isfinite(bias).all())):
            raise ConvergenceError(f"the closed form is not finite with penalties {self._w1:.3g} and {w2:.3g}")
        return DualPoint(a, w1, bias, self._w1, w2, objective, relative_gap(self._above(alpha, w2), objective))

    def _above(self, alpha: Tensor, w2: float) -> float:
        """Return ``½ ρᵀ (M - 1) ρ`` of what is left of ``M α = P D y``: the duality gap."""
        dual = self._dual

        def gram(value: Tensor) -> Tensor:
            product = (dual._kernel @ value.flatten()).view_as(value) / w2
            return product if dual._f_mean is None else product + dual._f @ (dual._f.T @ value) / self._w1

        rho = dual._right - alpha - gram(alpha)
        return 0.5 * float((rho * gram(rho)).sum())

    def leave_one_out(self, w2: float) -> Tensor:
        """Return the residuals ``y - prediction`` of each sample by the fit without it, (n, c), for a penalty λ₂.

        The fit without a sample keeps the others' weights sᵢ and the penalties, so its sum of weights is below one.
        All versions of a sample are left out together. A sample without which nothing is left has infinite residuals.
        """
        dual, views = self._dual, self._dual.views
        n, c = dual._y.shape
        weights = self._weights(w2)

        def grouped(rows: Tensor) -> Tensor:
            return rows.view(views, n // views, c, -1).transpose(0, 1).reshape(n // views, views * c, -1)

        vectors = grouped(self._vectors)
        blocks = vectors * weights @ vectors.mT
        scaled, failed = torch.linalg.solve_ex(blocks, grouped(self._alpha(weights)))  # residuals times √s
        scaled = torch.where((failed == 0)[:, None, None] & torch.isfinite(scaled), scaled, math.inf)
        return scaled.view(n // views, views, c).transpose(0, 1).reshape(n, c) / dual._root[:, None]
