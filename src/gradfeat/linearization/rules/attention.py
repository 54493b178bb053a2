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
from gradfeat.linearization.rules import rule
from gradfeat.linearization.rules.activation import softmax_tangent
from gradfeat.linearization.trace import Dual, Symbol, Trace, total

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(
    trace: Trace,
    node: fx.Node,
    q: Dual,
    k: Dual,
    v: Dual,
    attn_mask: Dual | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``Ṡ = (q̇ kᵀ + q k̇ᵀ)·scale + ṁ``, ``Ṗ = P ⊙ (Ṡ - Σ P ⊙ Ṡ)``, ``ȯ = Ṗ v + P v̇``."""
    if dropout_p > 0:
        raise BatchDependenceError(
            f"{node.name}: attention draws random numbers also in evaluation mode; give it dropout_p=0.0 there"
        )
    factor = 1.0 / math.sqrt(q.fake.shape[-1]) if scale is None else scale
    repeats = int(q.fake.shape[-3] // k.fake.shape[-3]) if enable_gqa else 1

    def per_head(call: Any, value: Symbol) -> Symbol:  # grouped queries: several heads share keys and values
        return value if repeats == 1 else call(aten.repeat_interleave.self_int, value, repeats, -3)

    def flipped(call: Any, value: Symbol) -> Symbol:
        return call(aten.transpose.int, per_head(call, value), -2, -1)

    keys = flipped(trace.compute, k.primal)
    scores = trace.compute(aten.matmul.default, q.primal * factor, keys)
    if is_causal:
        scores = trace.compute(_causal, scores)
    elif attn_mask is not None:
        scores = trace.compute(_masked, scores, attn_mask.primal)
    p = trace.compute(aten._safe_softmax.default, scores, -1)
    trace.replace_value(trace.compute(aten.matmul.default, p, per_head(trace.compute, v.primal)))

    left = right = None
    if q.tangent is not None:
        left = trace.emit(aten.matmul.default, q.tangent, flipped(trace.emit, trace.keep(k.primal)))
    if k.tangent is not None:
        right = trace.emit(aten.matmul.default, trace.keep(q.primal), flipped(trace.emit, k.tangent))
    s = total(left, right)
    if s is not None:
        s = s * factor
    if attn_mask is not None and attn_mask.tangent is not None:
        s = total(s, attn_mask.tangent)
    through_p = through_v = None
    if s is not None:
        values = per_head(trace.emit, trace.keep(v.primal))
        through_p = trace.emit(aten.matmul.default, softmax_tangent(trace, s, p, -1), values)
    if v.tangent is not None:
        through_v = trace.emit(aten.matmul.default, trace.keep(p), per_head(trace.emit, v.tangent))
    return total(through_p, through_v)


def _causal(scores: torch.Tensor) -> torch.Tensor:
    queries, keys = scores.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
