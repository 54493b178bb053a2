"""Scaled dot-product attention: ``Ȯ = Ṗ V + P V̇`` with P = softmax(QKᵀ·scale).

The tangent needs the probabilities P, (n, heads, queries, keys); fused attention, which never forms them, stays below
θ₂.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gradfeat.errors import BatchDependenceError
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

    scores = trace.compute(aten.matmul.default, q.primal * scale, flipped(trace.compute, k.primal))
    if given.is_causal:
        scores = trace.compute(_causal, scores)
    elif given.attn_mask is not None:
        scores = trace.compute(_masked, scores, given.attn_mask.primal)
    p = trace.compute(aten._safe_softmax.default, scores, -1)
    trace.replace_value(trace.compute(aten.matmul.default, p, per_head(trace.compute, v.primal)))

    moved = _score_tangent(trace, given, scale, lambda keys: flipped(trace.emit, keys))
    through_p = through_v = None
    if moved is not None:
        values = per_head(trace.emit, trace.keep(v.primal))
        through_p = trace.emit(aten.matmul.default, softmax_tangent(trace, moved, p, -1), values)
    if v.tangent is not None:
        through_v = trace.emit(aten.matmul.default, trace.keep(p), per_head(trace.emit, v.tangent))
    return total(through_p, through_v)


def _score_tangent(trace: Trace, given: Arguments, scale: float, flipped: Callable[[Symbol], Symbol]) -> Symbol | None:
    """Return ``Ṡ``, (n, heads, queries, keys); `flipped` makes keys of the tangent graph the right factor of S."""
    q, k, mask = given.query, given.key, given.attn_mask
    left = right = None
    if q.tangent is not None:
        left = trace.emit(aten.matmul.default, q.tangent, flipped(trace.keep(k.primal)))
    if k.tangent is not None:
        right = trace.emit(aten.matmul.default, trace.keep(q.primal), flipped(k.tangent))
    moved = total(left, right)
    if moved is not None:
        moved = moved * scale
    return moved if mask is None else total(moved, mask.tangent)


def _causal(scores: torch.Tensor) -> torch.Tensor:
    queries, keys = scores.shape[-2:]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    return scores.masked_fill(~allowed, -math.inf)


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
