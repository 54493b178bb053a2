"""Eq. 7 of Mu, Liang & Li (2020): activations, ``ẏ = φ'(z) ⊙ ż``.

Where φ' is 0 or 1, what is kept is a mask of booleans, or nothing at all if the activation is kept for another layer
anyway. Where φ' is smooth, φ'(z) is computed once and kept.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from gradfeat.linearization.rules.registry import rule
from gradfeat.linearization.trace import Dual, Symbol, Trace

aten = torch.ops.aten


@rule(aten.relu.default)
def relu(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """Eq. 7: ``ẏ = ż ⊙ 1[z > 0]``."""
    y = trace.output(node)
    return trace.gate(z.tangent, y > 0, y, aten.threshold_backward.default, 0)


@rule(aten.hardtanh.default, aten.relu6.default)
def hardtanh(trace: Trace, node: fx.Node, z: Dual, low: float = -1.0, high: float = 1.0) -> Any:
    """1 strictly between the bounds."""
    if node.target is aten.relu6.default:
        low, high = 0.0, 6.0
    y = trace.output(node)
    inside = trace.compute(operator.and_, y > low, y < high)
    return trace.gate(z.tangent, inside, y, aten.hardtanh_backward.default, low, high)


@rule(aten.leaky_relu.default)
def leaky_relu(trace: Trace, node: fx.Node, z: Dual, slope: float = 0.01) -> Any:
    """1 above zero, the slope below."""
    if slope <= 0:
        return NotImplemented
    y = trace.output(node)
    return trace.gate(z.tangent, y > 0, y, aten.leaky_relu_backward.default, slope, True, slope=slope)


@rule(aten.threshold.default)
def threshold(trace: Trace, node: fx.Node, z: Dual, at: float, value: float) -> Any:
    """1 above the threshold."""
    return z.tangent * trace.keep(z.primal > at)


@rule(aten.prelu.default)
def prelu(trace: Trace, node: fx.Node, z: Dual, slope: Dual) -> Any:
    """1 above zero, a learned slope a below: ``ẏ = (1[z>0] + a 1[z≤0]) ż + ã min(z, 0)``."""
    if z.fake.ndim < 2:
        return NotImplemented
    axes = [1, -1] + [1] * (z.fake.ndim - 2)
    positive = z.primal > 0
    result = None
    if z.tangent is not None:
        shaped = trace.compute(aten.reshape.default, slope.primal, axes)
        scale = trace.compute(aten.where.self, positive, trace.compute(aten.ones_like.default, shaped), shaped)
        result = z.tangent * trace.keep(scale)
    if slope.tangent is not None:
        below = trace.emit(aten.reshape.default, slope.tangent, axes) * trace.keep(
            trace.compute(aten.clamp.default, z.primal, None, 0)
        )
        result = below if result is None else result + below
    return result


def smooth(trace: Trace, z: Dual, derivative: Symbol) -> Any:
    """``ẏ = φ'(z) ⊙ ż`` with φ'(z) kept."""
    return z.tangent * trace.keep(derivative)


_BACKWARD_OF_INPUT: dict[Any, Any] = {
    aten.gelu.default: aten.gelu_backward.default,
    aten.silu.default: aten.silu_backward.default,
    aten.hardswish.default: aten.hardswish_backward.default,
    aten.hardsigmoid.default: aten.hardsigmoid_backward.default,
    aten.mish.default: aten.mish_backward.default,
    aten.hardshrink.default: aten.hardshrink_backward.default,
    aten.softshrink.default: aten.softshrink_backward.default,
}


@rule(*_BACKWARD_OF_INPUT)
def activation(trace: Trace, node: fx.Node, z: Dual, *settings: Any, **named: Any) -> Any:
    """GELU (both), SiLU, hard swish and the like: φ'(z) is what torch's own backward makes of ones."""
    backward = _BACKWARD_OF_INPUT[node.target]
    if backward in (aten.hardshrink_backward.default, aten.softshrink_backward.default) and not settings:
        settings = (named.pop("lambd", 0.5),)
    ones = trace.compute(aten.ones_like.default, z.primal)
    return smooth(trace, z, trace.compute(backward, ones, z.primal, *settings, **named))


@rule(aten.elu.default)
def elu(trace: Trace, node: fx.Node, z: Dual, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """ELU, and SELU and CELU through its scales."""
    ones = trace.compute(aten.ones_like.default, z.primal)
    return smooth(trace, z, trace.compute(aten.elu_backward.default, ones, alpha, scale, input_scale, False, z.primal))


@rule(aten.selu.default)
def selu(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """ELU with the constants of Klambauer et al. (2017)."""
    return elu(trace, node, z, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)


@rule(aten.celu.default)
def celu(trace: Trace, node: fx.Node, z: Dual, alpha: float = 1.0) -> Any:
    """ELU whose negative side is stretched by α."""
    return elu(trace, node, z, alpha, 1.0, 1.0 / alpha)


@rule(aten.softplus.default)
def softplus(trace: Trace, node: fx.Node, z: Dual, beta: float = 1, threshold: float = 20) -> Any:
    """``φ' = σ(β z)``, 1 beyond the threshold."""
    ones = trace.compute(aten.ones_like.default, z.primal)
    return smooth(trace, z, trace.compute(aten.softplus_backward.default, ones, z.primal, beta, threshold))


@rule(aten.sigmoid.default)
def sigmoid(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``φ' = y (1 - y)``."""
    y = trace.output(node)
    return smooth(trace, z, y * (1 - y))


@rule(aten.log_sigmoid.default)
def log_sigmoid(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``φ' = σ(-z)``."""
    return smooth(trace, z, trace.compute(aten.sigmoid.default, -z.primal))


@rule(aten.tanh.default)
def tanh(trace: Trace, node: fx.Node, z: Dual) -> Any:
    """``φ' = 1 - y²``."""
    y = trace.output(node)
    return smooth(trace, z, 1 - y * y)


@rule(aten.glu.default)
def glu(trace: Trace, node: fx.Node, z: Dual, dim: int = -1) -> Any:
    """``y = a σ(c)``: ``ẏ = σ(c) ȧ + a σ'(c) ċ``."""
    a, c = (trace.compute(operator.getitem, trace.compute(aten.chunk.default, z.primal, 2, dim), i) for i in (0, 1))
    gate = trace.compute(aten.sigmoid.default, c)
    parts = trace.emit(aten.chunk.default, z.tangent, 2, dim)
    return parts[0] * trace.keep(gate) + parts[1] * trace.keep(a * gate * (1 - gate))


@rule(aten._softmax.default, aten.softmax.int)
def softmax(trace: Trace, node: fx.Node, z: Dual, dim: int, dtype: Any = None) -> Any:
    """``Ṗ = P ⊙ (ż - Σ P ⊙ ż)``."""
    return softmax_tangent(trace, cast(trace, z, dtype), trace.output(node), dim)


def softmax_tangent(trace: Trace, tangent: Symbol, probabilities: Symbol, dim: int) -> Symbol:
    """Return the tangent of probabilities P = softmax(z), given ż."""
    return trace.emit(_softmax_tangent, tangent, trace.keep(probabilities), dim)


def _softmax_tangent(tangent: Tensor, p: Tensor, dim: int) -> Tensor:
    """Return ``P ⊙ (ż - Σ P ⊙ ż)``, one pass: the derivative is symmetric, and torch has it as a backward."""
    moved: Tensor = aten._softmax_backward_data.default(tangent.to(p.dtype).expand_as(p), p, dim, p.dtype)
    return moved


@rule(aten._log_softmax.default, aten.log_softmax.int)
def log_softmax(trace: Trace, node: fx.Node, z: Dual, dim: int, dtype: Any = None) -> Any:
    """``ẏ = ż - Σ P ⊙ ż``."""
    tangent = cast(trace, z, dtype)
    p = trace.keep(trace.compute(aten.exp.default, trace.output(node)))
    return tangent - trace.emit(aten.sum.dim_IntList, p * tangent, [dim], True)


def cast(trace: Trace, z: Dual, dtype: Any) -> Any:
    """Return ż in the dtype that the operation was told to compute in, if it was."""
    if isinstance(dtype, torch.dtype) and dtype != z.fake.dtype:
        return trace.emit(aten._to_copy.default, z.tangent, dtype=dtype)
    return z.tangent
