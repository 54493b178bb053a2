"""Pooling: an average is linear, a maximum is a gather at the place of the maximum."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from gradfeat.linearization.rules.registry import named_arguments, rule
from gradfeat.linearization.schema import Arguments
from gradfeat.linearization.trace import Dual, Trace

aten = torch.ops.aten

_WITH_INDICES: dict[Any, tuple[Any, int]] = {
    aten.max_pool1d.default: (aten.max_pool1d_with_indices.default, 1),
    aten.max_pool2d.default: (aten.max_pool2d_with_indices.default, 2),
    aten.max_pool3d.default: (aten.max_pool3d_with_indices.default, 3),
    aten.max_pool2d_with_indices.default: (aten.max_pool2d_with_indices.default, 2),
    aten.max_pool3d_with_indices.default: (aten.max_pool3d_with_indices.default, 3),
    aten.adaptive_max_pool2d.default: (aten.adaptive_max_pool2d.default, 2),
    aten.adaptive_max_pool3d.default: (aten.adaptive_max_pool3d.default, 3),
    aten.adaptive_max_pool1d.default: (aten.adaptive_max_pool1d.default, 1),
}


@rule(*_WITH_INDICES)
def max_pool(trace: Trace, node: fx.Node, z: Dual, *settings: Any) -> Any:
    """The tangent at the place of each maximum; places are kept as 32-bit integers."""
    function, axes = _WITH_INDICES[node.target]
    several = isinstance(node.meta["val"], (tuple, list))
    y = node.meta["val"][0] if several else node.meta["val"]
    if z.fake.ndim != axes + 2:
        return NotImplemented
    both = trace.output(node) if several else trace.compute(function, z.primal, *settings)
    if not several:
        trace.replace_value(trace.compute(operator.getitem, both, 0))
    places = trace.compute(aten._to_copy.default, trace.compute(operator.getitem, both, 1), dtype=torch.int32)
    flat = trace.emit(aten.flatten.using_ints, z.tangent, 2)
    index = trace.emit(
        aten._to_copy.default, trace.emit(aten.flatten.using_ints, trace.keep(places), 2), dtype=torch.int64
    )
    taken = trace.emit(aten.gather.default, flat, 2, index)
    result = trace.emit(aten.reshape.default, taken, trace.shape(y))
    return (result, None) if several else result


@rule(
    aten.max.dim,
    aten.min.dim,
    aten.topk.default,
    aten.sort.default,
    "sort.stable",
    aten.kthvalue.default,
    aten.median.dim,
)
@named_arguments
def take_along(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Values with their places along one axis: the tangents at those places."""
    dim = given.dim
    squeezed = not getattr(given, "keepdim", True)  # sorting takes no axis away
    places = trace.compute(operator.getitem, trace.output(node), 1)
    if squeezed:
        places = trace.compute(aten.unsqueeze.default, places, dim)
    taken = trace.emit(aten.gather.default, given.self.tangent, dim, trace.keep(places))
    return (trace.emit(aten.squeeze.dim, taken, dim) if squeezed else taken, None)
