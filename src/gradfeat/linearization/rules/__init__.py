"""The tangent rules: one short function for each ATen operation, in a registry.

A rule is called as ``rule(trace, node, *args, **kwargs)`` with a `Dual` for each tensor argument, and returns the
tangent of the node's output (a tuple of tangents for an operation with several outputs), None where there is none, or
NotImplemented to leave the node to the fallback. It is linear in the tangents: what it needs of the primal values it
asks `Trace.keep` for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register a function as the tangent rule of `operations`.

    An operation that this version of torch lacks may be given as a string, ``"rms_norm.default"``, and is passed over.
    """

    def register(function: Rule) -> Rule:
        for operation in operations:
            resolved = operation_of(operation) if isinstance(operation, str) else operation
            if resolved is not None:
                RULES[resolved] = function
        return function

    return register


def operation_of(name: str) -> Any:
    """Return the ATen operation ``"name.overload"`` (``"name"`` means its default), or None if torch lacks it."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet, None), overload or "default", None)


_CONSTANT = {
    *("detach", "sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "argmax", "argmin", "floor_divide", "sym_size", "lift_fresh"),
    "fill.Scalar",
}


def has_derivative(node: fx.Node) -> bool:
    """Whether the output of `node` is a real number that moves with its inputs."""
    fake = node.meta.get("val")
    outputs = fake if isinstance(fake, (tuple, list)) else (fake,)
    if not any(isinstance(output, Tensor) and output.dtype.is_floating_point for output in outputs):
        return False
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return True
    name = schema.name.split("::")[-1]
    return name not in _CONSTANT and f"{name}.{schema.overload_name}" not in _CONSTANT


from gradfeat.linearization.rules import (  # noqa: E402  (they register themselves)
    activation,
    arithmetic,
    attention,
    layer,
    normalization,
    pooling,
    shape,
)

__all__ = [
    "RULES",
    "activation",
    "arithmetic",
    "attention",
    "has_derivative",
    "layer",
    "normalization",
    "operation_of",
    "pooling",
    "rule",
    "shape",
]
