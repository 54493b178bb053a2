"""Sums of two products, as Eq. 6 and attention have them, with one result in memory and not three.

The second product is added to the first where that lies (BLAS's β = 1), in place of a result of its own and a pass over
both.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_sum(z: Tensor, w_tangent: Tensor, bias: Tensor | None, z_tangent: Tensor, w: Tensor) -> Tensor:
    """Return ``z w̃ᵀ + b̃ + ż wᵀ``, Eq. 6 of a linear layer, (..., o).

    Args:
        z: (..., i), as ż.
        w_tangent: (o, i), as w.
        bias: (o,), or None.
        z_tangent: ż.
        w: w.

    Example:
        >>> z, w = torch.randn(2, 5, 3), torch.randn(4, 3)
        >>> torch.allclose(linear_sum(z, w, None, 2 * z, w), 3 * torch.nn.functional.linear(z, w), atol=1e-5)
        True
    """
    rows = z.reshape(-1, z.shape[-1])
    h = rows @ w_tangent.t() if bias is None else torch.addmm(bias, rows, w_tangent.t())
    h.addmm_(z_tangent.reshape(-1, z.shape[-1]), w.t())
    return h.view(*z.shape[:-1], h.shape[-1])


def product_sum(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Return ``a b + c d`` for stacks of matrices, (..., i, j).

    Example:
        >>> a, b = torch.randn(2, 5, 3), torch.randn(2, 3, 4)
        >>> torch.allclose(product_sum(a, b, 2 * a, b), 3 * a @ b, atol=1e-5)
        True
    """
    stack = a.shape[:-2]
    if not stack or any(factor.shape[:-2] != stack for factor in (b, c, d)):
        return a @ b + c @ d
    a, b, c, d = (factor.reshape(-1, *factor.shape[-2:]) for factor in (a, b, c, d))
    h = torch.bmm(a, b)
    h.baddbmm_(c, d)
    return h.view(*stack, *h.shape[-2:])


def normalized_linear_sum(
    normalized: Tensor,
    w_tangent: Tensor,
    bias: Tensor | None,
    w: Tensor,
    gain: tuple[Tensor, Tensor | None],
    shift: tuple[Tensor | None, Tensor | None],
    passed: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return Eq. 6 of a linear layer behind a normalization ``z = g ⊙ x̂ + s``, one product for each of x̂ and x̂˙.

    ``w̃ z + b̃ + w ż`` with ``ż = g ⊙ x̂˙ + g̃ ⊙ x̂ + s̃`` is ``(w̃ diag g + w diag g̃) x̂ + w diag(g) x̂˙`` and what is
    the same at all positions, ``w̃ s + w s̃ + b̃``. So no pass over all positions is left for g, g̃, s and s̃, and where x̂
    does not move one product of two.

    Args:
        normalized: x̂, (..., i).
        w_tangent: w̃, (o, i).
        bias: b̃, (o,), or None.
        w: w, (o, i).
        gain: g and g̃, (i,); None where it does not move.
        shift: s and s̃, (i,); None where there is none, or it does not move.
        passed: x̂˙ and ``w diag g``, or None where x̂ does not move.
    """
    weight = w_tangent * gain[0]
    if gain[1] is not None:
        weight = torch.addcmul(weight, w, gain[1])
    for vector, matrix in zip(shift, (w_tangent, w), strict=True):
        if vector is not None:
            bias = matrix @ vector if bias is None else torch.addmv(bias, matrix, vector)
    if passed is None:
        return torch.nn.functional.linear(normalized, weight, bias)
    return linear_sum(normalized, weight, bias, *passed)


def normalized_input(normalized: Tensor, gain: Tensor, shift: Tensor | None) -> Tensor:
    """Return ``g ⊙ x̂ + s``."""
    return normalized * gain if shift is None else torch.addcmul(shift, normalized, gain)
