"""The contract of a tangent rule: for one operation and one set of arguments, the derivative that torch gives."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gradfeat.linearization.capture import Captured
from gradfeat.linearization.rules import RULES
from gradfeat.linearization.rules.fallback import fallback as by_torch
from gradfeat.linearization.trace import Rule, Trace
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
        fixed: Which of the flattened arguments are tensors that never move (running statistics).
        fallback: Check the fallback for operations without a rule, even if this one has a rule.
        tolerance: Largest error, relative to the derivative's largest entry (1e-5 where not all is in float64).

    Raises:
        AssertionError: A tangent is wrong; the message has the operation and which argument moved.

    Example:
        >>> check_rule(torch.ops.aten.tanh.default, [torch.randn(3, dtype=torch.float64)])
    """
    call = _Call.of(operation, args, kwargs or {})
    real = [i for i in call.places if call.leaves[i].dtype.is_floating_point and i not in fixed]
    if any(tensor.dtype is not torch.float64 for tensor in real_outputs([*call.leaves, *call.outputs])):
        tolerance = 1e-5
    for moving in _subsets(real):
        directions = {i: _direction(call.leaves[i], i) for i in moving}
        expected = jacobian_vector_product(
            lambda *moved, at=moving: call.value_of(reference or operation, dict(zip(at, moved, strict=True))),
            [call.leaves[i] for i in moving],
            list(directions.values()),
        )
        for position, output in enumerate(call.real_outputs):
            what = f"{operation} with argument {moving} of {len(call.leaves)} moving, output {output or 0}"
            expectation = _Expectation(expected[position], tolerance, what)
            _check(call, output, directions, expectation, {} if fallback else RULES)


@dataclass(frozen=True)
class _Call:
    """One call of an operation.

    Attributes:
        operation: What is called.
        leaves: Its arguments, flattened.
        spec: How they are nested.
        value: What the operation returns.
    """

    operation: Any
    leaves: list[Any]
    spec: pytree.TreeSpec
    value: Any

    @classmethod
    def of(cls, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Call:
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        return cls(operation, leaves, spec, operation(*args, **kwargs))

    @property
    def places(self) -> list[int]:
        """Which of the arguments are tensors."""
        return [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]

    @property
    def outputs(self) -> list[Any]:
        """The value's tensors."""
        return pytree.tree_leaves(self.value)

    @property
    def real_outputs(self) -> list[int | None]:
        """Which outputs are real numbers; None is the value of an operation with one output."""
        if not isinstance(self.value, (tuple, list)):
            return [None]
        return [i for i, output in enumerate(self.value) if output.dtype.is_floating_point]

    def filled(self, changed: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments, some of them changed."""
        leaves = [changed.get(i, leaf) for i, leaf in enumerate(self.leaves)]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    def value_of(self, function: Callable[..., Any], changed: Mapping[int, Tensor]) -> Any:
        """Return what `function` makes of the arguments, some of them changed."""
        args, kwargs = self.filled(changed)
        return function(*args, **kwargs)

    def captured(self, output: int | None) -> Captured:
        """Return a captured graph of the call alone, whose tensors are all constants called by their place."""
        graph = fx.Graph()
        placeholders: dict[int, fx.Node] = {}
        for place in self.places:
            placeholders[place] = node = graph.placeholder(f"value_{place}")
            node.meta["val"] = self.leaves[place]
        args, kwargs = self.filled(placeholders)
        result = graph.call_function(self.operation, args, kwargs)
        result.meta["val"] = self.value
        if output is not None:
            result = graph.call_function(operator.getitem, (result, output))
            result.meta["val"] = self.value[output]
        graph.output((result,))
        values = {str(place): self.leaves[place] for place in self.places}
        constants = {node: str(place) for place, node in placeholders.items()}
        return Captured(graph, values, constants, [], list(values), {}, result)


@dataclass(frozen=True)
class _Expectation:
    """The derivative of one output by torch, and how near to it a rule must come."""

    tangent: Tensor
    tolerance: float
    what: str


def _subsets(places: list[int]) -> Iterator[list[int]]:
    yield from ([place] for place in places)
    if len(places) > 1:
        yield places


def _direction(value: Tensor, seed: int) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=value.dtype)


def _check(
    call: _Call,
    output: int | None,
    directions: Mapping[int, Tensor],
    expected: _Expectation,
    rules: Mapping[Any, Rule],
) -> None:
    """Trace one output of a call, and compare its value, its tangent and the tangent's adjoint."""
    captured, what, tolerance = call.captured(output), expected.what, expected.tolerance
    trace = Trace(captured, [str(place) for place in directions])
    before = real_outputs(captured.output.meta["val"])[0]
    moved = trace.run(rules, by_torch)
    values = _interpret(captured)
    expect_close(values[captured.output], before, 1e-12, f"{what}: the value itself")
    if moved is None:
        none = torch.zeros_like(expected.tangent)
        expect_close(none, expected.tangent, 0.0, f"{what}: no tangent, where there is one")
        return
    trace.finish(moved)
    program = fx.GraphModule({}, trace.tangents)
    w = [direction.clone().requires_grad_() for direction in directions.values()]
    got = program(0, *w, *[values[node] for node in trace.kept])
    if got.dtype != expected.tangent.dtype:
        raise AssertionError(f"{what}: the tangent is {got.dtype}, not {expected.tangent.dtype}")
    expect_close(got.detach(), expected.tangent, tolerance, what)
    if not torch.isfinite(got).all() or not got.requires_grad:
        return
    u = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    pulled = torch.autograd.grad(got, w, u, allow_unused=True)
    filled = [torch.zeros_like(v) if p is None else p for p, v in zip(pulled, w, strict=True)]
    expect_adjoint([u], [got.detach()], filled, list(directions.values()), what, tolerance / 100)


def _interpret(captured: Captured) -> dict[fx.Node, Any]:
    """Compute every node of the value graph, with what the rule has added."""
    known: dict[fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            known[node] = captured.values[captured.constants[node]]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    return known
