"""The arguments of an ATen operation as torch's schema has them: by name, or by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import fx


class Arguments(SimpleNamespace):
    """The arguments of one call, as attributes with the names of the operation's schema; defaults are filled in."""


def by_name(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Arguments:
    """Return the arguments of a call by their names.

    Args:
        operation: An overload of an ATen operation.
        args: The arguments that were given by position.
        kwargs: Those that were given by name.

    Example:
        >>> import torch
        >>> by_name(torch.ops.aten.max_pool1d.default, ["z", [3]], {"padding": [1]})
        Arguments(stride=[], padding=[1], dilation=[1], ceil_mode=False, self='z', kernel_size=[3])
    """
    arguments = operation._schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    positional = [argument.name for argument in arguments if not argument.kwarg_only]
    return Arguments(**{**defaults, **dict(zip(positional, args, strict=False)), **(kwargs or {})})


def by_position(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a node by position, and by name those that cannot be given otherwise."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not node.kwargs:
        return node.args, dict(node.kwargs)
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    given = [argument.name in node.kwargs for argument in positional]
    last = max([i for i, named in enumerate(given) if named], default=-1)
    between = [
        node.kwargs.get(argument.name, argument.default_value) for argument in positional[len(node.args) : last + 1]
    ]
    taken = {argument.name for argument in positional}
    return (*node.args, *between), {name: value for name, value in node.kwargs.items() if name not in taken}
