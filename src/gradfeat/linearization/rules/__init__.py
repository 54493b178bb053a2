"""The tangent rules: one short function for each ATen operation, in a registry.

A rule is called as ``rule(trace, node, *args, **kwargs)`` with a `Dual` for each tensor argument, or, with
`named_arguments`, as ``rule(trace, node, given)``. It returns the tangent of the node's output (a tuple of tangents for
an operation with several outputs), None where there is none, or NotImplemented to leave the node to the fallback. It is
linear in the tangents: what it needs of the primal values it asks `Trace.keep` for.
"""

from __future__ import annotations

from gradfeat.linearization.rules import (  # they register themselves
    activation,
    arithmetic,
    attention,
    layer,
    normalization,
    pooling,
    shape,
)
from gradfeat.linearization.rules.registry import RULES, named_arguments, rule

__all__ = [
    "RULES",
    "activation",
    "arithmetic",
    "attention",
    "layer",
    "named_arguments",
    "normalization",
    "pooling",
    "rule",
    "shape",
]
