"""The registry of tangent rules: which function is the rule of which ATen operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gradfeat.linearization.schema import Arguments, by_name
from gradfeat.linearization.trace import Rule, Trace

aten = torch.ops.aten

RULES: dict[Any, Rule] = {}


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register a function as the tangent rule of `operations`.

    An operation that this version of torch lacks may be given as a string, ``"rms_norm.default"``, and is passed over.
    """

    def register(function: Rule) -> Rule:
        for operation in operations:
            resolved = _operation_of(operation) if isinstance(operation, str) else operation
            if resolved is not None:
                RULES[resolved] = function
        return function

    return register


def named_arguments(function: Callable[[Trace, fx.Node, Arguments], Any]) -> Rule:
    """Let a rule of an operation with many arguments read those it needs by name: ``function(trace, node, given)``.

    The names and defaults are those of torch's schema, so that one rule serves operations that order them differently.
    """

    @functools.wraps(function)
    def with_names(trace: Trace, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        return function(trace, node, by_name(node.target, args, kwargs))

    return with_names


def _operation_of(name: str) -> Any:
    """Return the ATen operation ``"name.overload"`` (``"name"`` means its default), or None if torch lacks it."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet, None), overload or "default", None)
