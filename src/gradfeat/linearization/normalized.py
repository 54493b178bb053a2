"""The tangent of a normalization in one pass, by torch's own kernel for its backward.

With x̂ = r (x - mean x) the derivative ``J = r (1 - mean - x̂ mean(x̂ ·))`` over the normalized axes is symmetric. So
the kernel that pulls a gradient back also pushes a tangent forward, and the backward of that is the kernel again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def normalized_tangent(tangent: Tensor, normalized: Tensor, r: Tensor, axes: int) -> Tensor:
    """Return ``x̂˙ = r (ẋ - mean ẋ - x̂ mean(x̂ ẋ))`` for a normalization over the last `axes` axes.

    Args:
        tangent: ẋ.
        normalized: x̂, of the same shape.
        r: One over the spread, of size 1 along the normalized axes.
        axes: How many axes are normalized.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 6.0]])
        >>> normalized = (x - x.mean()) / x.std(correction=0)
        >>> moved = normalized_tangent(torch.ones(1, 3), normalized, 1 / x.std(correction=0, keepdim=True), 1)
        >>> bool(moved.abs().max() < 1e-5)  # a shift of all x changes nothing
        True
    """
    moved: Tensor = _NormalizedTangent.apply(tangent, normalized, r, axes)  # type: ignore[no-untyped-call]
    return moved


class _NormalizedTangent(torch.autograd.Function):
    """`normalized_tangent`, its own backward: linear in the tangent, the one argument with a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tangent: Tensor, normalized: Tensor, r: Tensor, axes: int) -> Tensor:
        # the kernel's statistics are of x̂, which has the mean 0 and the spread 1; a GPU has them in single precision
        half = tangent.dtype in (torch.float16, torch.bfloat16)
        dtype = torch.float32 if half and tangent.device.type != "cpu" else tangent.dtype
        mean, spread = torch.zeros_like(r, dtype=dtype), torch.ones_like(r, dtype=dtype)
        shape = normalized.shape[normalized.ndim - axes :]
        wanted = [True, False, False]
        found = aten.native_layer_norm_backward.default(tangent, normalized, shape, mean, spread, None, None, wanted)
        moved: Tensor = found[0]
        return moved.mul_(r)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, normalized, r, ctx.axes = inputs
        ctx.save_for_backward(normalized, r)
        ctx.save_for_forward(normalized, r)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        normalized, r = ctx.saved_tensors
        return normalized_tangent(gradient, normalized, r, ctx.axes), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        normalized, r = ctx.saved_tensors
        return normalized_tangent(tangent, normalized, r, ctx.axes)
