"""Eq. 6 of Mu, Liang & Li (2020): layers that are linear in their input and in their weight.

For ``h(z) = w * z + b`` with w₂'s part (w̃, b̃):  ``ḣ = w̃ * z + b̃ + w * ż``. The first layer of θ₂ has no ż, and no
last term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gradfeat.linearization.one_pixel import is_one_pixel, one_pixel
from gradfeat.linearization.products import linear_sum, normalized_linear_sum, product_sum
from gradfeat.linearization.rules.registry import named_arguments, rule
from gradfeat.linearization.schema import Arguments
from gradfeat.linearization.trace import Affine, Dual, Symbol, Trace, total

aten = torch.ops.aten


def layer_tangent(
    trace: Trace, node: fx.Node, z: Dual, w: Dual, b: Dual | None, apply: Callable[[Any, Any, Any], Any], channel: int
) -> Any:
    """Return ``ḣ = w̃ * z + b̃ + w * ż`` (Eq. 6) for ``h = apply(z, w, b)`` whose bias lies along axis `channel` of h."""
    bias = b.tangent if b is not None else None
    own = None
    if w.tangent is not None:  # w̃ * z + b̃
        own = apply(trace.keep(z.primal), w.tangent, bias)
        bias = None
    passed = None
    if z.tangent is not None:  # w * ż
        passed = apply(z.tangent, trace.keep(w.primal), bias)
        bias = None
    if bias is not None:  # b̃ alone
        h = node.meta["val"]
        axes = [1] * h.ndim
        axes[channel] = -1
        return trace.emit(aten.expand.default, bias.reshape(axes), trace.shape(h))
    return total(own, passed)


@rule(aten.linear.default)
def linear(trace: Trace, node: fx.Node, z: Dual, w: Dual, b: Dual | None = None) -> Any:
    """``h = z wᵀ + b``; behind a normalization in terms of the normalized values."""
    if w.tangent is not None and w.fake.ndim == 2:
        bias = b.tangent if b is not None else None
        affine = trace.affine.get(z.primal.node)
        if affine is not None and affine.w is not None and _folds(affine, z.primal.node):
            return _behind_normalization(trace, affine, affine.w, w, bias)
        if z.tangent is not None:
            factors = trace.keep(z.primal), w.tangent, bias, z.tangent, trace.keep(w.primal)
            return trace.emit(linear_sum, *factors)
    return layer_tangent(trace, node, z, w, b, lambda z, w, b: trace.emit(aten.linear.default, z, w, b), -1)


def _folds(affine: Affine, node: fx.Node) -> bool:
    """Whether a layer reads x̂ and not ``g ⊙ x̂ + s``: that saves a product, or passes if no other operation reads it."""
    w, b = affine.w, affine.b
    if w is None or w.fake.ndim != 1 or (w.tangent is None and (b is None or b.tangent is None)):
        return False
    alone = all(user.target is aten.linear.default and user.args[0] is node for user in node.users)
    return alone or affine.tangent is None


def _behind_normalization(trace: Trace, affine: Affine, gain: Dual, w: Dual, bias: Symbol | None) -> Symbol:
    shift = affine.b
    passed = None
    if affine.tangent is not None:
        passed = affine.tangent, trace.keep(w.primal * gain.primal)
    return trace.emit(
        normalized_linear_sum,
        trace.keep(affine.normalized),
        w.tangent,
        bias,
        trace.keep(w.primal),
        (trace.keep(gain.primal), gain.tangent),
        (None, None) if shift is None else (trace.keep(shift.primal), shift.tangent),
        passed,
    )


@rule(
    *("conv1d", "conv1d.padding", "conv2d", "conv2d.padding", "conv3d", "conv3d.padding", "convolution"),
    *("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input"),
)
def convolution(
    trace: Trace, node: fx.Node, z: Dual, w: Dual, b: Dual | None = None, *settings: Any, **named: Any
) -> Any:
    """``h = w * z + b`` with any stride, padding, dilation and groups, transposed or not."""
    batched = z.fake.ndim == w.fake.ndim
    if not batched:
        return NotImplemented

    whole = is_one_pixel(node)

    def apply(z: Any, w: Any, b: Any) -> Any:
        return trace.emit(one_pixel, z, w, b) if whole else trace.emit(node.target, z, w, b, *settings, **named)

    return layer_tangent(trace, node, z, w, b, apply, 1)


@rule(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def product(trace: Trace, node: fx.Node, a: Dual, b: Dual) -> Any:
    """``(ab)˙ = ȧ b + a ḃ``."""
    if a.tangent is not None and b.tangent is not None:
        return trace.emit(product_sum, a.tangent, trace.keep(b.primal), trace.keep(a.primal), b.tangent)
    if a.tangent is not None:
        return trace.emit(node.target, a.tangent, trace.keep(b.primal))
    return trace.emit(node.target, trace.keep(a.primal), b.tangent)


@rule(aten.addmm.default, aten.baddbmm.default, "addbmm.default", "addmv.default")
def add_product(trace: Trace, node: fx.Node, c: Dual, a: Dual, b: Dual, *, beta: float = 1, alpha: float = 1) -> Any:
    """``(β c + α a b)˙``."""
    name = node.target._schema.name.split("::")[-1]  # type: ignore[union-attr]
    plain = {"addmm": aten.mm.default, "baddbmm": aten.bmm.default, "addmv": aten.mv.default}.get(name)
    if plain is None:
        return NotImplemented
    terms = []
    if a.tangent is not None:
        terms.append(trace.emit(plain, a.tangent, trace.keep(b.primal)))
    if b.tangent is not None:
        terms.append(trace.emit(plain, trace.keep(a.primal), b.tangent))
    result = total(*terms)
    if result is not None and alpha != 1:
        result = result * alpha
    if c.tangent is None:
        return result
    added = c.tangent * beta if beta != 1 else c.tangent
    return trace.spread(added, node.meta["val"], like=c.fake) if result is None else result + added


@rule(aten.einsum.default)
def einsum(trace: Trace, node: fx.Node, equation: str, operands: list[Dual], **named: Any) -> Any:
    """A sum of products is linear in each operand."""
    terms = []
    for i, operand in enumerate(operands):
        if operand.tangent is not None:
            others = [operand.tangent if j == i else trace.keep(other.primal) for j, other in enumerate(operands)]
            terms.append(trace.emit(aten.einsum.default, equation, others))
    return total(*terms)


@rule(aten.embedding.default)
def embedding(trace: Trace, node: fx.Node, w: Dual, index: Dual, *settings: Any) -> Any:
    """Rows of w̃. The padding row is one like any other: f depends on it, though torch's backward pass leaves it out."""
    return trace.emit(aten.embedding.default, w.tangent, trace.keep(index.primal))


@rule("embedding_bag", "embedding_bag.padding_idx", "_embedding_bag", "_embedding_bag_forward_only")
@named_arguments
def embedding_bag(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """Sums (mode 0) and means (mode 1) of rows: linear in the rows, and in the weights of the sum."""
    if given.mode == _MAXIMUM:
        return NotImplemented
    w, factors = given.weight, given.per_sample_weights
    forward_only = node.target is aten._embedding_bag_forward_only.default
    operation = aten._embedding_bag.default if forward_only else node.target
    padding = [given.padding_idx] if hasattr(given, "padding_idx") else []

    def bag(rows: Symbol, factors: Symbol | None) -> Symbol:
        indices, offsets = trace.keep(given.indices.primal), trace.keep(given.offsets.primal)
        settings = False, given.mode, False, factors, given.include_last_offset, *padding
        return trace.emit(operation, rows, indices, offsets, *settings)[0]

    own = passed = None
    if w.tangent is not None:
        own = bag(w.tangent, None if factors is None else trace.keep(factors.primal))
    if factors is not None and factors.tangent is not None:
        passed = bag(trace.keep(w.primal), factors.tangent)
    return total(own, passed), None, None, None


_MAXIMUM = 2
