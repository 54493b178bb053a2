"""Scaled dot-product attention: ``Ȯ = Ṗ V + P V̇`` with P = softmax(QKᵀ·scale).

The tangent needs the probabilities P, (n, heads, queries, keys); fused attention, which never forms them, stays below
θ₂.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from gradfeat.linearize.rules import rule
from gradfeat.linearize.rules.activation import softmax_tangent
from gradfeat.linearize.trace import Dual, Trace, total

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
    if dropout_p > 0 or enable_gqa or q.fake.ndim < 3:
        return NotImplemented
    factor = 1.0 / math.sqrt(q.fake.shape[-1]) if scale is None else scale
    keys = trace.compute(aten.transpose.int, k.primal, -2, -1)
    scores = trace.compute(aten.matmul.default, q.primal * factor, keys)
    if is_causal:
        scores = trace.compute(_causal, scores)
    elif attn_mask is not None:
        scores = trace.compute(_masked, scores, attn_mask.primal)
    p = trace.compute(aten._safe_softmax.default, scores, -1)
    trace.replace_value(trace.compute(aten.matmul.default, p, v.primal))

    left = right = None
    if q.tangent is not None:
        left = trace.emit(aten.matmul.default, q.tangent, trace.keep(keys))
    if k.tangent is not None:
        right = trace.emit(aten.matmul.default, trace.keep(q.primal), trace.emit(aten.transpose.int, k.tangent, -2, -1))
    s = total(left, right)
    if s is not None:
        s = s * factor
    if attn_mask is not None and attn_mask.tangent is not None:
        s = total(s, attn_mask.tangent)
    through_p = through_v = None
    if s is not None:
        through_p = trace.emit(aten.matmul.default, softmax_tangent(trace, s, p, -1), trace.keep(v.primal))
    if v.tangent is not None:
        through_v = trace.emit(aten.matmul.default, trace.keep(p), v.tangent)
    return total(through_p, through_v)


def _causal(scores: torch.Tensor) -> torch.Tensor:
    queries, keys = scores.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
