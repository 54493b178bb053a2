"""Derivatives by torch itself, to compare with, and comparisons that say by how much two numbers differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradfeat.linearization.rules.fallback import plain_kernels


def jacobian_vector_product(
    function: Callable[..., Any], point: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the derivative of each real output of ``function(*point)`` along `direction`.

    Forward mode where torch has it for every operation inside, else two passes of reverse mode.

    Example:
        >>> jacobian_vector_product(torch.sin, [torch.zeros(2)], [torch.tensor([1.0, 3.0])])
        (tensor([1., 3.]),)
    """

    def real(*values: Tensor) -> tuple[Tensor, ...]:
        return real_outputs(function(*values))

    with plain_kernels():
        try:
            return torch.func.jvp(real, tuple(point), tuple(direction))[1]
        except (NotImplementedError, RuntimeError):
            return _twice_reversed(real, point, direction)


def real_outputs(value: Any) -> tuple[Tensor, ...]:
    """Return the floating-point tensors among the outputs of an operation."""
    outputs = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(output for output in outputs if isinstance(output, Tensor) and output.dtype.is_floating_point)


def _twice_reversed(
    function: Callable[..., tuple[Tensor, ...]], point: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """J·v as the derivative of u ↦ Jᵀu along v."""
    with torch.enable_grad():
        variables = [value.detach().clone().requires_grad_() for value in point]
        outputs = function(*variables)
        duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
        live = [(o, d) for o, d in zip(outputs, duals, strict=True) if o.requires_grad]
        pulled = torch.autograd.grad(
            [o for o, _ in live], variables, [d for _, d in live], create_graph=True, allow_unused=True
        )
        pairs = [(p, d) for p, d in zip(pulled, direction, strict=True) if p is not None]
        moved = torch.autograd.grad([p for p, _ in pairs], duals, [d for _, d in pairs], allow_unused=True)
    return tuple(torch.zeros_like(o) if m is None else m for m, o in zip(moved, outputs, strict=True))


def expect_close(got: Tensor, expected: Tensor, tolerance: float, what: str, *, scale: float = 0.0) -> None:
    """Raise unless `got` is `expected` up to `tolerance` times its largest entry (or `scale`, if that is larger).

    Raises:
        AssertionError: The shapes or numbers differ.
    """
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: the shape is {tuple(got.shape)}, not {tuple(expected.shape)}")
    if not torch.equal(torch.isfinite(got), torch.isfinite(expected)):
        raise AssertionError(f"{what}: infinite or undefined in other places than expected")
    finite = torch.isfinite(expected)
    if not finite.any():
        return
    scale = max(scale, expected[finite].abs().max().item())
    error = (got[finite].to(expected.dtype) - expected[finite]).abs().max().item()
    if error > tolerance * scale:
        raise AssertionError(f"{what}: off by {error:.3g}, where the largest entry is {scale:.3g}")


def expect_adjoint(
    u: Sequence[Tensor],
    moved: Sequence[Tensor],
    pulled: Sequence[Tensor],
    w: Sequence[Tensor],
    what: str,
    tolerance: float = 1e-12,
) -> None:
    """Raise unless ⟨u, J w⟩ = ⟨Jᵀu, w⟩, up to rounding: of the products, and of u and w.

    Raises:
        AssertionError: The two differ.
    """
    left, right = _inner(u, moved), _inner(pulled, w)
    scale = max(_norm(u) * _norm(moved), _norm(pulled) * _norm(w))
    if math.isfinite(scale) and abs(left - right) > tolerance * (scale + 0.01 * _norm(u) * _norm(w)):
        raise AssertionError(f"{what}: <u, J w> = {left!r}, but <J'u, w> = {right!r}")


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((p.double() * q.double()).sum()) for p, q in zip(a, b, strict=True))


def _norm(a: Sequence[Tensor]) -> float:
    return math.sqrt(_inner(a, a))
