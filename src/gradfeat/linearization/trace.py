"""The trace: walk the captured graph once and write, beside it, the graph of tangents.

Two graphs grow here. The *value graph* is the captured one; a rule may append values to it that only the tangent needs
(a derivative, a mask, attention probabilities). The *tangent graph* computes ḟ from w₂ and from values that were kept.
A node has a tangent only if a parameter of θ₂ reaches it; an absent tangent is None, never a tensor of zeros.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from gradfeat.errors import BatchDependenceError
from gradfeat.linearization.capture import Captured
from gradfeat.linearization.schema import by_position
from gradfeat.linearization.theta2 import ancestors

aten = torch.ops.aten


Symbol = Any
"""A value yet to be computed, an `fx.Proxy`: arithmetic on it writes the graph (Any, as fx declares no operators)."""

Rule = Callable[..., Any]
"""A tangent rule, ``rule(trace, node, *args, **kwargs)``; see `gradfeat.linearization.rules`."""


@dataclass(frozen=True)
class Dual:
    """A value of the network and its tangent, as a rule sees them.

    Attributes:
        primal: The value, in the value graph.
        tangent: Its tangent, in the tangent graph; None if θ₂ does not reach it.
        fake: A tensor without data that has the value's shape and dtype.
    """

    primal: Symbol
    tangent: Symbol | None
    fake: Tensor


@dataclass(frozen=True)
class Affine:
    """A normalization's output ``w ⊙ x̂ + b``, for the layer behind it.

    Attributes:
        normalized: x̂, in the value graph.
        tangent: x̂˙, in the tangent graph; None if θ₂ does not reach it.
        w: w, or None.
        b: b, or None.
    """

    normalized: Symbol
    tangent: Symbol | None
    w: Dual | None
    b: Dual | None


@dataclass
class Gate:
    """A use of a derivative that is 0 or 1 (or a slope), and how to read it off the operation's output instead."""

    node: fx.Node
    output: fx.Node
    backward: Callable[..., Any]
    extra: tuple[Any, ...]


class Trace:
    """What a tangent rule may do: read duals, keep primal values, and emit tangents.

    Args:
        captured: The network's graph; rules append to it.
        theta2: Names of the parameters that move.
    """

    def __init__(self, captured: Captured, theta2: Sequence[str]) -> None:
        self.captured = captured
        self.values = captured.graph
        self.tangents = fx.Graph()
        self.samples = self.tangents.placeholder("n")
        self.w2 = {name: self.tangents.placeholder(f"w2_{i}") for i, name in enumerate(theta2)}
        self.kept: dict[fx.Node, fx.Node] = {}
        self.gates: list[Gate] = []
        self.affine: dict[fx.Node, Affine] = {}
        self.by_rule: list[tuple[str, str, str]] = []
        self._value_tracer = fx.proxy.GraphAppendingTracer(self.values)
        self._tangent_tracer = fx.proxy.GraphAppendingTracer(self.tangents)
        self._tangent_of: dict[fx.Node, Any] = {}
        self._head = self.tangents.call_function(_nothing)  # placeholders of kept values go before this node
        self._replacement: fx.Node | None = None

    # ---- what rules use ----

    def keep(self, value: Symbol) -> Symbol:
        """Return a primal value for use in the tangent graph: a residual, or a constant if x does not reach it."""
        node = value.node
        if node not in self.kept:
            with self.tangents.inserting_before(self._head):
                self.kept[node] = self.tangents.placeholder(f"kept_{len(self.kept)}")
        return fx.Proxy(self.kept[node], self._tangent_tracer)

    def gate(
        self,
        tangent: Symbol,
        mask: Symbol,
        output: Symbol,
        backward: Callable[..., Any],
        *extra: Any,
        slope: float = 0.0,
    ) -> Symbol:
        """Return `tangent` where `mask`, else `slope` × `tangent`.

        If `output` is kept for another reason, the mask is not: ``backward(tangent, output, *extra)`` says the same.
        """
        out = self.emit(_gate, tangent, self.keep(mask), slope)
        self.gates.append(Gate(out.node, output.node, backward, extra))
        return out

    def emit(self, function: Any, *args: Any, **kwargs: Any) -> Symbol:
        """Call `function` in the tangent graph."""
        return self._tangent_tracer.create_proxy("call_function", function, args, kwargs)

    def compute(self, function: Any, *args: Any, **kwargs: Any) -> Symbol:
        """Call `function` in the value graph, just after the node whose rule is running."""
        return self._value_tracer.create_proxy("call_function", function, args, kwargs)

    def depends_on_data(self, value: Dual) -> bool:
        """Whether a value is computed from the network's inputs, and not from its parameters alone."""
        return not ancestors(value.primal.node).isdisjoint(self.captured.inputs)

    def shape(self, fake: Tensor) -> list[Any]:
        """Return the shape of a value as the tangent graph can know it: numbers, and multiples of n."""
        return [self.size(entry) for entry in fake.shape]

    def size(self, entry: Any) -> Any:
        """Return an integer, or a symbolic size as an expression in n in the tangent graph."""
        if isinstance(entry, int):
            return entry
        n: Symbol = fx.Proxy(self.samples, self._tangent_tracer)
        return n * samples_factor(entry)

    def spread(self, tangent: Symbol, fake: Tensor, *, like: Tensor) -> Symbol:
        """Broadcast a tangent with the shape of `like` to the shape of `fake`, where they differ."""
        if same_shape(fake, like):
            return tangent
        return self.emit(aten.expand.default, tangent, self.shape(fake))

    def zeros(self, fake: Tensor, beside: Symbol) -> Symbol:
        """Return a tangent of zeros (needed only where one of several joined values has none)."""
        return self.emit(aten.new_zeros.default, beside, self.shape(fake))

    # ---- the walk ----

    def run(self, rules: Mapping[Any, Rule], fallback: Rule) -> Symbol | None:
        """Apply rules along the graph.

        Args:
            rules: Operation -> rule.
            fallback: The rule of an operation that has none, or that its own returns NotImplemented for.

        Returns:
            The tangent of f(x), or None if θ₂ does not reach it.
        """
        for node, name in self.captured.constants.items():
            if name in self.w2:
                self._tangent_of[node] = fx.Proxy(self.w2[name], self._tangent_tracer)
        for node in list(self.values.nodes):
            if node.op == "call_function" and any(source in self._tangent_of for source in node.all_input_nodes):
                self._visit(node, rules.get(node.target), fallback)
        return self._tangent_of.get(self.captured.output)

    def _visit(self, node: fx.Node, rule: Rule | None, fallback: Rule) -> None:
        if node.target is operator.getitem:
            source, index = cast(tuple[fx.Node, int], node.args)
            tangents = self._tangent_of[source]
            if tangents is not None and tangents[index] is not None:
                self._tangent_of[node] = tangents[index]
            return
        if not _has_derivative(node):
            return
        with self.values.inserting_before(node.next):
            args, kwargs = fx.map_arg(by_position(node), self._dual)
            tangent = NotImplemented if rule is None else rule(self, node, *args, **kwargs)
            if tangent is NotImplemented or _misses_one(node, tangent):
                rule = None
                self._replacement = None
                tangent = fallback(self, node, *args, **kwargs)
        self.by_rule.append((node.name, str(node.target), "fallback" if rule is None else rule.__name__))
        node = self._replace(node)
        if tangent is not None:
            self._tangent_of[node] = tangent

    def _replace(self, node: fx.Node) -> fx.Node:
        made, self._replacement = self._replacement, None
        if made is None:
            return node
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        if self.captured.output is node:
            self.captured.output = made
        return made

    def _dual(self, node: fx.Node) -> Any:
        fake = node.meta.get("val")
        if isinstance(fake, Tensor):
            return Dual(fx.Proxy(node, self._value_tracer), self._tangent_of.get(node), fake)
        if isinstance(fake, (torch.SymInt, int)):
            return self.size(fake)
        raise BatchDependenceError(
            f"{node.name} ({node.target}) is used as a {type(fake).__name__} that depends on the data"
        )

    def output(self, node: fx.Node) -> Symbol:
        """Return the output of the node whose rule is running, in the value graph."""
        return fx.Proxy(node, self._value_tracer)

    def replace_value(self, value: Symbol) -> None:
        """Let later uses of the running rule's node read `value`: the same number, needed for the tangent anyway."""
        self._replacement = value.node

    def finish(self, tangent: Symbol) -> None:
        """Write the output, read masks off kept activations, and drop what nothing uses."""
        self.tangents.output(tangent.node)
        self.tangents.erase_node(self._head)
        self.tangents.eliminate_dead_code()
        for gate in self.gates:
            kept = self.kept.get(gate.output)
            if kept is not None and any(user is not gate.node for user in kept.users) and gate.node.users:
                with self.tangents.inserting_before(gate.node):
                    read = self.tangents.call_function(gate.backward, (gate.node.args[0], kept, *gate.extra))
                gate.node.replace_all_uses_with(read)
                self.tangents.erase_node(gate.node)
        for value, placeholder in list(self.kept.items()):
            if not placeholder.users:
                self.tangents.erase_node(placeholder)
                del self.kept[value]
        self.tangents.lint()


_CONSTANT = {
    *("detach", "sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "argmax", "argmin", "floor_divide", "sym_size", "lift_fresh"),
    "fill.Scalar",
}


def _has_derivative(node: fx.Node) -> bool:
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


def _misses_one(node: fx.Node, tangent: Any) -> bool:
    """Whether a rule left out the tangent of an output that is read and has one."""
    if not isinstance(tangent, tuple):
        return False
    return any(
        "val" in user.meta and tangent[cast(int, user.args[1])] is None and user.meta["val"].dtype.is_floating_point
        for user in node.users
    )


def _nothing() -> None:
    """Mark a place in the tangent graph."""


def _gate(tangent: Tensor, mask: Tensor, slope: float) -> Tensor:
    if slope == 0.0:
        return tangent * mask.to(tangent.dtype)  # torch multiplies by floats much faster than by booleans
    return torch.where(mask, tangent, tangent * slope)


def total(*terms: Symbol | None) -> Symbol | None:
    """Sum the tangents that are there; None if none is."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    result = present[0]
    for term in present[1:]:
        result = result + term
    return result


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two fake tensors have the same shape, told without guarding on the free batch size."""
    return a.ndim == b.ndim and all(str(i) == str(j) for i, j in zip(a.shape, b.shape, strict=True))


def samples_factor(entry: Any) -> int:
    """Return k of a symbolic size k·n.

    Raises:
        BatchDependenceError: The size is not a multiple of the batch size.
    """
    expression = entry.node.expr
    symbols = list(expression.free_symbols)
    if len(symbols) == 1:
        factor = (expression / symbols[0]).simplify()
        if factor.is_Integer:
            return int(factor)
    if expression.is_Integer:
        raise ValueError(f"{expression} is a number")
    raise BatchDependenceError(f"a tensor has the size {expression}, which is no multiple of the batch size")
