"""Normalizations: with x̂ the normalized value and r one over its spread, ``x̂˙ = r (ẋ - mean ẋ - x̂ mean(x̂ ẋ))``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.normalized import normalized_tangent
from gradfeat.linearization.rules.registry import named_arguments, rule
from gradfeat.linearization.schema import Arguments
from gradfeat.linearization.trace import Affine, Dual, Symbol, Trace, total

aten = torch.ops.aten
addcmul = aten.addcmul.default


def normalization(trace: Trace, x: Symbol, tangent: Symbol, dims: list[int], eps: float, centre: bool) -> Any:
    """Return ``x̂`` (value graph) and ``x̂˙`` (tangent graph; None without ẋ) for a normalization over the last axes."""
    if centre:
        x = x - trace.compute(aten.mean.dim, x, dims, True)
    r = trace.compute(aten.rsqrt.default, trace.compute(aten.mean.dim, x * x, dims, True) + eps)
    normalized = x * r
    if tangent is None:
        return normalized, None
    kept = trace.keep(normalized)
    if centre:
        return normalized, trace.emit(normalized_tangent, tangent, kept, trace.keep(r), len(dims))
    inner = trace.emit(addcmul, tangent, kept, trace.emit(aten.mean.dim, kept * tangent, dims, True), value=-1)
    return normalized, inner * trace.keep(r)


def affine(
    trace: Trace, w: Dual | None, b: Dual | None, normalized: Symbol, tangent: Any, axes: list[int] | None
) -> Any:
    """``(w x̂ + b)˙ = w x̂˙ + w̃ x̂ + b̃``; `axes` reshapes w and b so that they broadcast."""

    def shaped(call: Any, value: Any) -> Any:
        return value if axes is None else call(aten.reshape.default, value, axes)

    result = shaped(trace.emit, b.tangent) if b is not None and b.tangent is not None else None
    if w is not None and w.tangent is not None:
        own = shaped(trace.emit, w.tangent), trace.keep(normalized)
        result = own[0] * own[1] if result is None else trace.emit(addcmul, result, *own)
    if tangent is None or w is None:
        return total(tangent, result)
    scale = trace.keep(shaped(trace.compute, w.primal))
    return tangent * scale if result is None else trace.emit(addcmul, result, tangent, scale)


@rule(aten.layer_norm.default, aten.native_layer_norm.default)
@named_arguments
def layer_norm(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Layer norm (Ba et al., 2016) over the last axes."""
    x, w, b = given.input, given.weight, given.bias
    dims = list(range(-len(given.normalized_shape), 0))
    normalized, tangent = normalization(trace, x.primal, x.tangent, dims, given.eps, True)
    trace.affine[node] = Affine(normalized, tangent, w, b)
    result = affine(trace, w, b, normalized, tangent, None)
    several = node.target is aten.native_layer_norm.default
    if x.tangent is None and (w is None or w.tangent is None) and b is not None:
        result = trace.spread(result, node.meta["val"][0] if several else node.meta["val"], like=b.fake)
    return (result, None, None) if several else result


@rule("rms_norm.default")
@named_arguments
def rms_norm(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """RMS norm (Zhang & Sennrich, 2019) over the last axes: no mean is taken off."""
    x = given.input
    dims = list(range(-len(given.normalized_shape), 0))
    eps = torch.finfo(x.fake.dtype).eps if given.eps is None else given.eps
    normalized, tangent = normalization(trace, x.primal, x.tangent, dims, eps, False)
    trace.affine[node] = Affine(normalized, tangent, given.weight, None)
    return affine(trace, given.weight, None, normalized, tangent, None)


@rule(aten.group_norm.default)
@named_arguments
def group_norm(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Group norm (Wu & He, 2018): over each group of channels."""
    return _grouped(trace, node, given, given.num_groups)


@rule(aten.instance_norm.default)
@named_arguments
def instance_norm(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Instance norm (Ulyanov et al., 2016): each channel is a group of its own."""
    if not given.use_input_stats:
        return NotImplemented
    return _grouped(trace, node, given, given.input.fake.shape[1])


def _grouped(trace: Trace, node: fx.Node, given: Arguments, groups: int) -> Any:
    x, w, b = given.input, given.weight, given.bias
    channels = x.fake.shape[1]

    def split(call: Any, value: Any, parts: int) -> Any:  # (n, channels, ...) -> (n, parts, -1)
        return call(aten.unflatten.int, call(aten.flatten.using_ints, value, 1), 1, [parts, -1])

    tangent = split(trace.emit, x.tangent, groups) if x.tangent is not None else None
    normalized, tangent = normalization(trace, split(trace.compute, x.primal, groups), tangent, [-1], given.eps, True)
    normalized = split(trace.compute, normalized, channels)
    tangent = split(trace.emit, tangent, channels) if tangent is not None else None
    result = affine(trace, w, b, normalized, tangent, [1, -1, 1])
    y = node.meta["val"]
    if result is None:
        return None  # only running statistics move, which are not read
    if tangent is None and (w is None or w.tangent is None):  # b̃ alone
        axes = [1, -1] + [1] * (y.ndim - 2)
        return trace.emit(aten.expand.default, trace.emit(aten.reshape.default, result, axes), trace.shape(y))
    return trace.emit(aten.reshape.default, result, trace.shape(y))


@rule(
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    "native_batch_norm.default",
)
@named_arguments
def batch_norm(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Batch norm in evaluation mode, not folded: ``ẏ = w s ẋ + w̃ x̂ + b̃`` with a fixed ``s = 1/√(σ² + ε)``."""
    x, w, b, mean, variance = given.input, given.weight, given.bias, given.running_mean, given.running_var
    if getattr(given, "training", False) or mean is None:  # one operation is of evaluation mode alone
        if not trace.depends_on_data(x):  # a weight that is standardized on its way (NFNet): no sample is in it
            return NotImplemented
        raise BatchDependenceError(
            f"{node.name}: a batch norm uses the statistics of the batch also in evaluation mode "
            "(track_running_stats=False), so that a sample's features depend on the others of its batch"
        )
    if mean.tangent is not None or variance.tangent is not None:
        return NotImplemented
    axes = [1, -1] + [1] * (x.fake.ndim - 2)
    s = trace.compute(aten.rsqrt.default, variance.primal + given.eps)
    own = None
    if w is not None and w.tangent is not None:
        normalized = (x.primal - trace.compute(aten.reshape.default, mean.primal, axes)) * trace.compute(
            aten.reshape.default, s, axes
        )
        own = trace.emit(aten.reshape.default, w.tangent, axes) * trace.keep(normalized)
    passed = None
    if x.tangent is not None:
        scale = s if w is None else s * w.primal
        passed = x.tangent * trace.keep(trace.compute(aten.reshape.default, scale, axes))
    bias = trace.emit(aten.reshape.default, b.tangent, axes) if b is not None and b.tangent is not None else None
    result = total(passed, own, bias)
    several = node.target is not aten.batch_norm.default
    if own is None and passed is None:
        y = node.meta["val"][0] if several else node.meta["val"]
        result = trace.emit(aten.expand.default, bias, trace.shape(y))
    return (result, *[None] * (len(node.meta["val"]) - 1)) if several else result
