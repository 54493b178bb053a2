"""Operations that are linear in all that moves: the tangent goes through the operation itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.rules.registry import rule
from gradfeat.linearization.trace import Dual, Trace

aten = torch.ops.aten


@rule(
    *("permute", "transpose.int", "t", "numpy_T", "mT", "movedim.int", "movedim.intlist", "swapaxes", "swapdims"),
    *(
        "squeeze",
        "squeeze.dim",
        "squeeze.dims",
        "unsqueeze",
        "expand",
        "broadcast_to",
        "flatten.using_ints",
        "unflatten.int",
    ),
    *("slice.Tensor", "select.int", "narrow", "diagonal", "tril", "triu", "flip", "roll", "rot90", "repeat", "tile"),
    *(
        "split.Tensor",
        "split.sizes",
        "split_with_sizes",
        "tensor_split.sections",
        "chunk",
        "unbind.int",
        "unfold",
        "atleast_1d",
    ),
    *("mean", "mean.dim", "sum", "sum.dim_IntList", "cumsum", "trace", "repeat_interleave.self_int", "unsafe_chunk"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *(
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "im2col",
        "col2im",
    ),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"),
    *(
        "upsample_trilinear3d",
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "_upsample_nearest_exact2d",
    ),
    *(
        "upsample_nearest1d.vec",
        "upsample_nearest2d.vec",
        "upsample_nearest3d.vec",
        "upsample_linear1d.vec",
        "upsample_bilinear2d.vec",
    ),
    *(
        "upsample_trilinear3d.vec",
        "upsample_bicubic2d.vec",
        "_upsample_nearest_exact2d.vec",
        "_upsample_bilinear2d_aa.vec",
    ),
    *(
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
    ),
    *("_to_copy", "to.dtype", "to.dtype_layout", "real", "conj", "_pad_circular"),
)
def linear_map(trace: Trace, node: fx.Node, *args: Any, **named: Any) -> Any:
    """``(L x)˙ = L ẋ``."""
    result = trace.emit(node.target, *_tangents(trace, args), **_tangents(trace, named))
    fake = node.meta["val"]
    return result if isinstance(fake, torch.Tensor) else tuple(result[i] for i in range(len(fake)))


def _tangents(trace: Trace, arguments: Any) -> Any:
    if isinstance(arguments, dict):
        return {name: _tangents(trace, value) for name, value in arguments.items()}
    if isinstance(arguments, (tuple, list)):
        return [_tangents(trace, value) for value in arguments]
    return arguments.tangent if isinstance(arguments, Dual) else arguments


@rule("view", "reshape", "_unsafe_view", "_reshape_alias")
def reshape(trace: Trace, node: fx.Node, x: Dual, shape: Any, *_: Any) -> Any:
    """A view, but of a tangent that may lie differently in memory."""
    return trace.emit(aten.reshape.default, x.tangent, shape)


@rule("view_as", "reshape_as", "expand_as")
def shape_as(trace: Trace, node: fx.Node, x: Dual, other: Dual) -> Any:
    """The shape of another tensor, known from the graph."""
    if x.tangent is None:
        return None
    function = aten.expand.default if node.target is aten.expand_as.default else aten.reshape.default
    return trace.emit(function, x.tangent, trace.shape(node.meta["val"]))


@rule("type_as")
def type_as(trace: Trace, node: fx.Node, x: Dual, other: Dual) -> Any:
    """The dtype of another tensor, known from the graph."""
    if x.tangent is None or x.fake.dtype == other.fake.dtype:
        return x.tangent
    return trace.emit(aten._to_copy.default, x.tangent, dtype=other.fake.dtype)


@rule(
    "clone", "contiguous", "alias", "dropout", "alpha_dropout", "feature_dropout", "native_dropout", "lift_fresh_copy"
)
def identity(trace: Trace, node: fx.Node, x: Dual, *settings: Any, **named: Any) -> Any:
    """What changes no number; dropout, too, in evaluation mode."""
    name = node.target._schema.name.split("::")[-1]  # type: ignore[union-attr]
    if "dropout" in name and settings[0] > 0 and settings[1] is not False:
        raise BatchDependenceError(
            f"{node.name}: dropout draws random numbers also in evaluation mode; give it training=self.training"
        )
    return (x.tangent, None) if name == "native_dropout" else x.tangent


@rule("cat", "concat", "concatenate", "stack")
def join(trace: Trace, node: fx.Node, parts: list[Dual], dim: int = 0) -> Any:
    """Tangents joined as the values are; zeros for a part that has none."""
    beside = next(part.tangent for part in parts if part.tangent is not None)
    filled = [part.tangent if part.tangent is not None else trace.zeros(part.fake, beside) for part in parts]
    return trace.emit(node.target, filled, dim)


@rule(
    *("slice_scatter", "select_scatter", "diagonal_scatter", "scatter.src", "scatter_add", "masked_scatter"),
    *("index_put", "index_add", "index_copy"),
)
def place(trace: Trace, node: fx.Node, *args: Any, **named: Any) -> Any:
    """One tensor written into places of another: linear in both."""
    beside = next(arg.tangent for arg in args if isinstance(arg, Dual) and arg.tangent is not None)

    def linear(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [linear(entry) for entry in value]
        if not isinstance(value, Dual):
            return value
        if not value.fake.dtype.is_floating_point:
            return trace.keep(value.primal)
        return trace.zeros(value.fake, beside) if value.tangent is None else value.tangent

    return trace.emit(node.target, *linear(args), **named)


@rule("copy")
def overwrite(trace: Trace, node: fx.Node, x: Dual, source: Dual, *_: Any) -> Any:
    """All of x overwritten: nothing of ẋ is left."""
    if source.tangent is None:
        return None
    moved = source.tangent
    if source.fake.dtype != x.fake.dtype:
        moved = trace.emit(aten._to_copy.default, moved, dtype=x.fake.dtype)
    return trace.spread(moved, node.meta["val"], like=source.fake)


@rule("index.Tensor", "index_select", "gather", "take_along_dim", "masked_select", "_unsafe_index.Tensor")
def pick(trace: Trace, node: fx.Node, x: Dual, *places: Any, **named: Any) -> Any:
    """Entries at places that do not move."""

    def kept(value: Any) -> Any:
        if isinstance(value, Dual):
            return trace.keep(value.primal)
        return [kept(entry) for entry in value] if isinstance(value, (list, tuple)) else value

    return trace.emit(node.target, x.tangent, *[kept(place) for place in places])


@rule("constant_pad_nd")
def constant_pad(trace: Trace, node: fx.Node, x: Dual, amounts: Any, *_: Any) -> Any:
    """A constant that fills the margin has the tangent zero."""
    return trace.emit(aten.constant_pad_nd.default, x.tangent, amounts, 0)


@rule("pad")
def pad(trace: Trace, node: fx.Node, x: Dual, amounts: Any, mode: str = "constant", *_: Any) -> Any:
    """As above; other margins than constants are copies."""
    return trace.emit(aten.pad.default, x.tangent, amounts, mode, None)
