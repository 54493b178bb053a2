"""Elementwise arithmetic, selection and reductions that are not linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gradfeat.linearization.rules.registry import rule
from gradfeat.linearization.trace import Dual, Trace, total

aten = torch.ops.aten


def spread(trace: Trace, node: fx.Node, tangent: Any, source: Any) -> Any:
    """Broadcast the tangent of one operand to the shape of the result, in the dtype of the result."""
    if source.fake.dtype != node.meta["val"].dtype:
        tangent = trace.emit(aten._to_copy.default, tangent, dtype=node.meta["val"].dtype)
    return trace.spread(tangent, node.meta["val"], like=source.fake)


def scaled(value: Any, factor: Any) -> Any:
    """Return ``factor * value`` without a multiplication by one; None stays None."""
    if value is None or factor == 1:
        return value
    return -value if factor == -1 else value * factor


def tangent_of(value: Any) -> Any:
    """Return the tangent of an operand that may also be a plain number."""
    return value.tangent if isinstance(value, Dual) else None


def kept(trace: Trace, value: Any) -> Any:
    """Return an operand for use in the tangent graph: a kept value, or the plain number itself."""
    return trace.keep(value.primal) if isinstance(value, Dual) else value


def primal(value: Any) -> Any:
    """Return an operand for use in the value graph."""
    return value.primal if isinstance(value, Dual) else value


def linear_sum(trace: Trace, node: fx.Node, a: Any, b: Any, factor_a: Any, factor_b: Any) -> Any:
    """``(α a + β b)˙``, broadcast to the result where only one operand moves."""
    left, right = scaled(tangent_of(a), factor_a), scaled(tangent_of(b), factor_b)
    if left is not None and right is not None:
        return left + right
    return spread(trace, node, left, a) if left is not None else spread(trace, node, right, b)


@rule(aten.add.Tensor, aten.add.Scalar)
def add(trace: Trace, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``(a + α b)˙ = ȧ + α ḃ``."""
    return linear_sum(trace, node, a, b, 1, alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(trace: Trace, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``(a - α b)˙ = ȧ - α ḃ``."""
    return linear_sum(trace, node, a, b, 1, -alpha)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(trace: Trace, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``(b - α a)˙ = ḃ - α ȧ``."""
    return linear_sum(trace, node, a, b, -alpha, 1)


@rule(aten.lerp.Scalar)
def lerp(trace: Trace, node: fx.Node, a: Dual, b: Dual, weight: float) -> Any:
    """``(a + t (b - a))˙``."""
    return linear_sum(trace, node, a, b, 1 - weight, weight)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def mul(trace: Trace, node: fx.Node, a: Any, b: Any) -> Any:
    """``(a b)˙ = ȧ b + a ḃ``."""
    left = tangent_of(a) * kept(trace, b) if tangent_of(a) is not None else None
    right = kept(trace, a) * tangent_of(b) if tangent_of(b) is not None else None
    return total(left, right)


@rule(aten.div.Tensor, aten.div.Scalar)
def div(trace: Trace, node: fx.Node, a: Any, b: Any) -> Any:
    """``(a / b)˙ = ȧ / b - (a / b) ḃ / b``."""
    left = tangent_of(a) / kept(trace, b) if tangent_of(a) is not None else None
    if tangent_of(b) is None:
        return left
    right = -trace.keep(trace.output(node) / b.primal) * tangent_of(b)
    return total(left, right)


@rule(aten.addcmul.default)
def addcmul(trace: Trace, node: fx.Node, c: Dual, a: Dual, b: Dual, *, value: float = 1) -> Any:
    """``(c + v a b)˙``."""
    product = scaled(mul(trace, node, a, b), value)
    if product is None:
        return spread(trace, node, c.tangent, c)
    if c.tangent is None:  # a b may be smaller than c
        return trace.emit(aten.expand.default, product, trace.shape(node.meta["val"]))
    return c.tangent + product


@rule(aten.neg.default)
def neg(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(-z)˙ = -ż``."""
    return scaled(z.tangent, -1)


@rule(aten.pow.Tensor_Scalar)
def power(trace: Trace, node: fx.Node, z: Dual, exponent: float) -> Any:
    """``(zᵖ)˙ = p zᵖ⁻¹ ż``."""
    if exponent == 0:
        return NotImplemented
    if exponent == 1:
        return z.tangent
    if exponent == 2:
        return z.tangent * trace.keep(z.primal) * 2
    return z.tangent * trace.keep(trace.compute(aten.pow.Tensor_Scalar, z.primal, exponent - 1) * exponent)


@rule(aten.square.default)
def square(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(z²)˙ = 2 z ż``."""
    return z.tangent * trace.keep(z.primal) * 2


@rule(aten.exp.default)
def exp(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(eᶻ)˙ = eᶻ ż``."""
    return z.tangent * trace.keep(trace.output(node))


@rule(aten.expm1.default)
def expm1(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(eᶻ - 1)˙ = eᶻ ż``."""
    return z.tangent * trace.keep(trace.output(node) + 1)


@rule(aten.log.default)
def log(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(log z)˙ = ż / z``."""
    return z.tangent / trace.keep(z.primal)


@rule(aten.log1p.default)
def log1p(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(log(1 + z))˙ = ż / (1 + z)``."""
    return z.tangent / trace.keep(z.primal + 1)


@rule(aten.sqrt.default)
def sqrt(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(√z)˙ = ż / (2 √z)``."""
    return z.tangent / trace.keep(trace.output(node) * 2)


@rule(aten.rsqrt.default)
def rsqrt(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(z^-½)˙ = -½ z^-³ᐟ² ż``."""
    y = trace.output(node)
    return z.tangent * trace.keep(y * y * y * -0.5)


@rule(aten.reciprocal.default)
def reciprocal(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(1/z)˙ = -ż / z²``."""
    y = trace.output(node)
    return z.tangent * trace.keep(-y * y)


@rule(aten.sin.default)
def sin(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(sin z)˙ = cos z ż``."""
    return z.tangent * trace.keep(trace.compute(aten.cos.default, z.primal))


@rule(aten.cos.default)
def cos(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(cos z)˙ = -sin z ż``."""
    return z.tangent * trace.keep(-trace.compute(aten.sin.default, z.primal))


@rule(aten.erf.default)
def erf(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``(erf z)˙ = 2/√π e^(-z²) ż``."""
    return z.tangent * trace.keep(trace.compute(aten.exp.default, -z.primal * z.primal) * 1.1283791670955126)


@rule(aten.abs.default)
def absolute(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``|z|˙ = sign(z) ż``."""
    return z.tangent * trace.keep(trace.compute(aten.sign.default, z.primal))


@rule(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def clamp(trace: Trace, node: fx.Node, z: Dual, low: Any = None, high: Any = None) -> Any:
    """1 within the bounds, which belong to the inside."""
    if node.target is aten.clamp_max.default:
        low, high = None, low
    inside = None if low is None else z.primal >= low
    if high is not None:
        below = z.primal <= high
        inside = below if inside is None else inside & below
    return z.tangent * trace.keep(inside)


@rule(aten.where.self)
def where(trace: Trace, node: fx.Node, condition: Dual, a: Dual, b: Dual) -> Any:
    """The tangent of the operand that is chosen; zero where that one has none."""
    mask = trace.keep(condition.primal)
    if a.tangent is not None and b.tangent is not None:
        return trace.emit(aten.where.self, mask, a.tangent, b.tangent)
    if b.tangent is None:
        return trace.emit(aten.where.ScalarOther, mask, spread(trace, node, a.tangent, a), 0.0)
    return trace.emit(aten.where.ScalarSelf, mask, 0.0, spread(trace, node, b.tangent, b))


@rule(aten.masked_fill.Scalar)
def masked_fill(trace: Trace, node: fx.Node, z: Dual, mask: Dual, value: float) -> Any:
    """Zero where a number was filled in."""
    return trace.emit(aten.masked_fill.Scalar, z.tangent, trace.keep(mask.primal), 0)


@rule(aten.maximum.default, aten.minimum.default)
def extremum(trace: Trace, node: fx.Node, a: Dual, b: Dual) -> Any:
    """The tangent of the larger (smaller); half of each where they are equal, as in torch."""
    larger, smaller = (a.primal, b.primal) if node.target is aten.maximum.default else (b.primal, a.primal)
    dtype = node.meta["val"].dtype
    share = trace.compute(aten._to_copy.default, larger > smaller, dtype=dtype)  # of a: 1, 0, or ½
    share = (
        share + trace.compute(aten._to_copy.default, trace.compute(aten.eq.Tensor, larger, smaller), dtype=dtype) / 2
    )
    left = a.tangent * trace.keep(share) if a.tangent is not None else None
    right = b.tangent * trace.keep(1 - share) if b.tangent is not None else None
    return total(left, right)


@rule(aten.logsumexp.default)
def logsumexp(trace: Trace, node: fx.Node, z: Dual, dims: list[int], keepdim: bool = False) -> Any:
    """``ẏ = Σ P ⊙ ż``."""
    y = trace.compute(aten.logsumexp.default, z.primal, dims, True)
    p = trace.compute(aten.exp.default, z.primal - y)
    return trace.emit(aten.sum.dim_IntList, trace.keep(p) * z.tangent, dims, keepdim)


@rule(aten.linalg_vector_norm.default)
def vector_norm(
    trace: Trace, node: fx.Node, z: Dual, order: float = 2, dims: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    """Euclidean norm: ``ẏ = Σ (z / y) ż``."""
    if order != 2 or dims is None or dtype is not None:
        return NotImplemented
    y = trace.compute(aten.linalg_vector_norm.default, z.primal, 2, dims, True)
    unit = trace.compute(aten.nan_to_num.default, z.primal / y, 0.0)
    return trace.emit(aten.sum.dim_IntList, trace.keep(unit) * z.tangent, dims, keepdim)


@rule(aten.var.correction, aten.std.correction)
def variance(
    trace: Trace, node: fx.Node, z: Dual, dims: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> Any:
    """``(var z)˙ = 2/(m - correction) Σ (z - z̄) ż``; the standard deviation divides by twice itself."""
    if dims is None or not all(isinstance(z.fake.shape[d], int) for d in dims):
        return NotImplemented
    count = 1
    for d in dims:
        count *= z.fake.shape[d]
    centred = z.primal - trace.compute(aten.mean.dim, z.primal, dims, True)
    summed = trace.emit(aten.sum.dim_IntList, trace.keep(centred) * z.tangent, dims, keepdim)
    freedom = count - (1 if correction is None else correction)
    if node.target is aten.var.correction:
        return summed * (2.0 / freedom)
    return summed / trace.keep(trace.output(node) * freedom)
