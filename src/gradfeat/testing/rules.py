"""The contract of a tangent rule: for one operation and one set of arguments, the derivative that torch gives."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gradfeat.linearization.capture import Captured
from gradfeat.linearization.trace import Trace
from gradfeat.testing.oracle import expect_adjoint, expect_close, jacobian_vector_product, real_outputs


def check_rule(
    operation: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    fixed: Sequence[int] = (),
    fallback: bool = False,
    tolerance: float = 1e-10,
) -> None:
    """Check the tangent rule of an ATen operation on given arguments, whichever of them move.

    Each floating-point tensor argument moves alone, then all together, and the tangent of each real output is compared
    with torch's derivative; the backward pass through the tangent must be its adjoint; the operation's value must not
    change.

    Args:
        operation: The operation, e.g. ``torch.ops.aten.relu.default``.
        args: Its positional arguments; tensors should be float64.
        kwargs: Its keyword arguments.
        reference: A function of the same value that torch can differentiate, where it cannot the operation.
        fixed: Places, among the flattened arguments, of tensors that never move (running statistics).
        fallback: Check the fallback for operations without a rule, even if this one has a rule.
        tolerance: Largest error, relative to the derivative's largest entry (1e-5 where not all is in float64).

    Raises:
        AssertionError: A tangent is wrong; the message has the operation and which argument moved.

    Example:
        >>> check_rule(torch.ops.aten.tanh.default, [torch.randn(3, dtype=torch.float64)])
    """
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs or {})))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    real = [i for i in places if leaves[i].dtype.is_floating_point and i not in fixed]
    value = operation(*args, **(kwargs or {}))
    if any(tensor.dtype is not torch.float64 for tensor in real_outputs([*leaves, *pytree.tree_leaves(value)])):
        tolerance = 1e-5
    several = isinstance(value, (tuple, list))
    outputs = [i for i, o in enumerate(value) if o.dtype.is_floating_point] if several else [None]
    for moving in _subsets(real):
        expected = jacobian_vector_product(
            lambda *moved, at=moving: _call(reference or operation, leaves, spec, at, moved),
            [leaves[i] for i in moving],
            directions := [_direction(leaves[i], i) for i in moving],
        )
        for position, output in enumerate(outputs):
            what = f"{operation} with argument {moving} of {len(leaves)} moving, output {output or 0}"
            graph = _graph(operation, leaves, spec, places, value, output)
            _check(graph, leaves, places, moving, directions, expected[position], what, fallback, tolerance)


def _subsets(places: list[int]) -> Iterator[list[int]]:
    yield from ([place] for place in places)
    if len(places) > 1:
        yield places


def _direction(value: Tensor, seed: int) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=value.dtype)


def _call(
    operation: Callable[..., Any], leaves: list[Any], spec: pytree.TreeSpec, at: list[int], moved: Sequence[Tensor]
) -> Any:
    filled = list(leaves)
    for place, value in zip(at, moved, strict=True):
        filled[place] = value
    args, kwargs = pytree.tree_unflatten(filled, spec)
    return operation(*args, **kwargs)


def _graph(
    operation: Any, leaves: list[Any], spec: pytree.TreeSpec, places: list[int], value: Any, output: int | None
) -> Captured:
    """Write a captured graph of one operation, whose tensors are all constants called by their place."""
    graph = fx.Graph()
    filled = list(leaves)
    constants: dict[fx.Node, str] = {}
    for place in places:
        filled[place] = node = graph.placeholder(f"value_{place}")
        node.meta["val"] = leaves[place]
        constants[node] = str(place)
    args, kwargs = pytree.tree_unflatten(filled, spec)
    result = graph.call_function(operation, args, kwargs)
    result.meta["val"] = value
    if output is not None:
        result = graph.call_function(operator.getitem, (result, output))
        result.meta["val"] = value[output]
    graph.output((result,))
    values = {str(place): leaves[place] for place in places}
    return Captured(graph, values, constants, [], list(values), {}, spec, result)


def _check(
    captured: Captured,
    leaves: list[Any],
    places: list[int],
    moving: list[int],
    directions: list[Tensor],
    expected: Tensor,
    what: str,
    fallback: bool,
    tolerance: float,
) -> None:
    trace = Trace(captured, [str(place) for place in moving], rules={} if fallback else None)
    before = real_outputs(captured.output.meta["val"])[0]
    moved = trace.run()
    values = _interpret(captured, {str(place): leaves[place] for place in places})
    expect_close(values[captured.output], before, 1e-12, f"{what}: the value itself")
    if moved is None:
        expect_close(torch.zeros_like(expected), expected, 0.0, f"{what}: no tangent, where there is one")
        return
    trace.finish(moved)
    program = fx.GraphModule({}, trace.tangents)
    w = [direction.clone().requires_grad_() for direction in directions]
    got = program(0, *w, *[values[node] for node in trace.kept])
    if got.dtype != expected.dtype:
        raise AssertionError(f"{what}: the tangent is {got.dtype}, not {expected.dtype}")
    expect_close(got.detach(), expected, tolerance, what)
    if not torch.isfinite(got).all() or not got.requires_grad:
        return
    u = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    pulled = torch.autograd.grad(got, w, u, allow_unused=True)
    filled = [torch.zeros_like(v) if p is None else p for p, v in zip(pulled, w, strict=True)]
    expect_adjoint([u], [got.detach()], filled, directions, what, tolerance / 100)


def _interpret(captured: Captured, values: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
    """Compute every node of the value graph, with what the rule has added."""
    known: dict[fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            known[node] = values[captured.constants[node]]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    return known
