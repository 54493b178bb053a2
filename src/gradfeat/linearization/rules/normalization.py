"""Normalizations: with x̂ the normalized value and r one over its spread, ``x̂˙ = r (ẋ - mean ẋ - x̂ mean(x̂ ẋ))``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.rules import rule
from gradfeat.linearization.trace import Dual, Symbol, Trace, total

aten = torch.ops.aten


def normalized_tangent(trace: Trace, x: Symbol, tangent: Symbol, dims: list[int], eps: float, centre: bool) -> Any:
    """Return ``x̂`` (value graph) and ``x̂˙`` (tangent graph; None without ẋ) for a normalization over `dims`."""
    if centre:
        x = x - trace.compute(aten.mean.dim, x, dims, True)
    r = trace.compute(aten.rsqrt.default, trace.compute(aten.mean.dim, x * x, dims, True) + eps)
    normalized = x * r
    if tangent is None:
        return normalized, None
    kept = trace.keep(normalized)
    inner = tangent - kept * trace.emit(aten.mean.dim, kept * tangent, dims, True)
    if centre:
        inner = inner - trace.emit(aten.mean.dim, tangent, dims, True)
    return normalized, inner * trace.keep(r)


def affine(
    trace: Trace, w: Dual | None, b: Dual | None, normalized: Symbol, tangent: Any, axes: list[int] | None
) -> Any:
    """``(w x̂ + b)˙ = w x̂˙ + w̃ x̂ + b̃``; `axes` reshapes w and b so that they broadcast."""

    def shaped(call: Any, value: Any) -> Any:
        return value if axes is None else call(aten.reshape.default, value, axes)

    if tangent is not None and w is not None:
        tangent = tangent * trace.keep(shaped(trace.compute, w.primal))
    own = shaped(trace.emit, w.tangent) * trace.keep(normalized) if w is not None and w.tangent is not None else None
    bias = shaped(trace.emit, b.tangent) if b is not None and b.tangent is not None else None
    return total(tangent, own, bias)


@rule(aten.layer_norm.default, aten.native_layer_norm.default, "rms_norm.default")
def layer_norm(
    trace: Trace,
    node: fx.Node,
    x: Dual,
    shape: list[Any],
    w: Dual | None = None,
    b: Any = None,
    eps: Any = 1e-5,
    *_: Any,
) -> Any:
    """Layer norm (Ba et al., 2016) and RMS norm (Zhang & Sennrich, 2019) over the last axes."""
    centre = node.target is not aten.rms_norm.default
    if not centre:
        b, eps = None, b if isinstance(b, float) else torch.finfo(x.fake.dtype).eps
    dims = list(range(-len(shape), 0))
    normalized, tangent = normalized_tangent(trace, x.primal, x.tangent, dims, eps, centre)
    result = affine(trace, w, b, normalized, tangent, None)
    y = node.meta["val"]
    if node.target is aten.native_layer_norm.default:
        y = y[0]
    if x.tangent is None and (w is None or w.tangent is None) and b is not None:
        result = trace.spread(result, y, like=b.fake)
    return (result, None, None) if node.target is aten.native_layer_norm.default else result


@rule(aten.group_norm.default)
def group_norm(
    trace: Trace,
    node: fx.Node,
    x: Dual,
    groups: int,
    w: Dual | None = None,
    b: Dual | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    """Group norm (Wu & He, 2018): over each group of channels."""
    channels = x.fake.shape[1]

    def split(call: Any, value: Any, parts: int) -> Any:  # (n, channels, ...) -> (n, parts, -1)
        return call(aten.unflatten.int, call(aten.flatten.using_ints, value, 1), 1, [parts, -1])

    tangent = split(trace.emit, x.tangent, groups) if x.tangent is not None else None
    normalized, tangent = normalized_tangent(trace, split(trace.compute, x.primal, groups), tangent, [-1], eps, True)
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


@rule(aten.instance_norm.default)
def instance_norm(
    trace: Trace,
    node: fx.Node,
    x: Dual,
    w: Any,
    b: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    _: float,
    eps: float,
    *__: Any,
) -> Any:
    """Instance norm (Ulyanov et al., 2016): each channel is a group of its own."""
    if not use_input_stats:
        return NotImplemented
    return group_norm(trace, node, x, x.fake.shape[1], w, b, eps)


@rule(
    aten.batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
    "native_batch_norm.default",
)
def batch_norm(trace: Trace, node: fx.Node, x: Dual, w: Any, b: Any, mean: Any, variance: Any, *settings: Any) -> Any:
    """Batch norm in evaluation mode, not folded: ``ẏ = w s ẋ + w̃ x̂ + b̃`` with a fixed ``s = 1/√(σ² + ε)``."""
    several = node.target is not aten.batch_norm.default
    if node.target is aten._native_batch_norm_legit_no_training.default:
        training, eps = False, settings[1]
    else:
        training, eps = settings[0], settings[2]
    if training or mean is None:
        if not trace.depends_on_data(x):  # a weight that is standardized on its way (NFNet): no sample is in it
            return NotImplemented
        raise BatchDependenceError(
            f"{node.name}: a batch norm uses the statistics of the batch also in evaluation mode "
            "(track_running_stats=False), so that a sample's features depend on the others of its batch"
        )
    if mean.tangent is not None or variance.tangent is not None:
        return NotImplemented
    axes = [1, -1] + [1] * (x.fake.ndim - 2)
    s = trace.compute(aten.rsqrt.default, variance.primal + eps)
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
    if own is None and passed is None:
        y = node.meta["val"][0] if several else node.meta["val"]
        result = trace.emit(aten.expand.default, bias, trace.shape(y))
    return (result, *[None] * (len(node.meta["val"]) - 1)) if several else result
