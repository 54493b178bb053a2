"""Scaled dot-product attention: ``Ȯ = Ṗ V + P V̇`` with P = softmax(QKᵀ·scale).

The tangent needs the probabilities P, (n, heads, queries, keys); fused attention, which never forms them, stays below
θ₂.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.products import product_sum
from gradfeat.linearization.rules.activation import softmax_tangent
from gradfeat.linearization.rules.registry import named_arguments, rule
from gradfeat.linearization.schema import Arguments
from gradfeat.linearization.trace import Symbol, Trace, total

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
@named_arguments
def attention(trace: Trace, node: fx.Node, given: Arguments) -> Any:
    """``Ṡ = (q̇ kᵀ + q k̇ᵀ)·scale + ṁ``, ``Ṗ = P ⊙ (Ṡ - Σ P ⊙ Ṡ)``, ``ȯ = Ṗ v + P v̇``."""
    if given.dropout_p > 0:
        raise BatchDependenceError(
            f"{node.name}: attention draws random numbers also in evaluation mode; give it dropout_p=0.0 there"
        )
    q, k, v = given.query, given.key, given.value
    scale = 1.0 / math.sqrt(q.fake.shape[-1]) if given.scale is None else given.scale
    repeats = int(q.fake.shape[-3] // k.fake.shape[-3]) if given.enable_gqa else 1

    def per_head(call: Any, value: Symbol) -> Symbol:  # grouped queries: several heads share keys and values
        return value if repeats == 1 else call(aten.repeat_interleave.self_int, value, repeats, -3)

    def flipped(call: Any, value: Symbol) -> Symbol:
        return call(aten.transpose.int, per_head(call, value), -2, -1)

    scaled = q.primal * scale
    scores = trace.compute(aten.matmul.default, scaled, flipped(trace.compute, k.primal))
    if given.is_causal:
        scores = trace.compute(_causal, scores)
    elif given.attn_mask is not None:
        scores = trace.compute(_masked, scores, given.attn_mask.primal)
    p = trace.compute(aten._safe_softmax.default, scores, -1)
    trace.replace_value(trace.compute(aten.matmul.default, p, per_head(trace.compute, v.primal)))

    left = right = None  # of the scores; the scale is in what is kept, and costs no pass over them
    if q.tangent is not None:
        left = q.tangent, flipped(trace.emit, _kept_in_one_piece(trace, k.primal * scale))
    if k.tangent is not None:
        right = _kept_in_one_piece(trace, scaled), flipped(trace.emit, k.tangent)
    moved = _product_sum(trace, left, right)
    if given.attn_mask is not None:
        moved = total(moved, given.attn_mask.tangent)
    through_p = through_v = None
    if moved is not None:
        values = per_head(trace.emit, _kept_in_one_piece(trace, v.primal))
        through_p = softmax_tangent(trace, moved, p, -1), values
    if v.tangent is not None:
        through_v = trace.keep(p), per_head(trace.emit, v.tangent)
    return _product_sum(trace, through_p, through_v)


def _product_sum(trace: Trace, *pairs: tuple[Symbol, Symbol] | None) -> Symbol | None:
    """Return the sum of the products that are there; None if none is."""
    present = [pair for pair in pairs if pair is not None]
    if len(present) == 2:
        return trace.emit(product_sum, *present[0], *present[1])
    return trace.emit(aten.matmul.default, *present[0]) if present else None


def _kept_in_one_piece(trace: Trace, value: Symbol) -> Symbol:
    """Keep queries, keys or values with the numbers of a head side by side: no pass copies them for its products."""
    return trace.keep(trace.compute(aten.contiguous.default, value))


def _causal(scores: torch.Tensor) -> torch.Tensor:
    queries, keys = scores.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
