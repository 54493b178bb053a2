"""The transposed program: u, residuals -> Σₙ J(xₙ)ᵀ uₙ, the backward half of the tangent program alone.

The tangent is linear in w₂, so nothing in its backward depends on the values of its forward. Traced as a program of its
own, the forward is dead code; what is left costs half as much as `tangent` and its backward.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gradfeat.contexts import alone
from gradfeat.linearization.record import LayerCall, Recorder
from gradfeat.linearization.rules.fallback import node_jvp

aten = torch.ops.aten

_MOST = 16  # programs that are kept: one for each size of batch in use


@dataclass
class Transposer:
    """Pulls cotangents back through a tangent program; by a traced program from the second batch of a size on.

    One serves all linearizations of a network, since constants are arguments of its programs.

    Args:
        names: The names of θ₂, in the order of the tangent program's first placeholders.
    """

    names: Sequence[str]
    _seen: set[Any] = field(default_factory=set)
    _traced: dict[Any, tuple[fx.GraphModule, list[LayerCall]] | None] = field(default_factory=dict)

    def __call__(
        self,
        program: fx.GraphModule,
        theta2: Mapping[str, Tensor],
        values: Sequence[Tensor],
        u: Tensor,
        *,
        layers: bool = False,
    ) -> tuple[dict[str, Tensor], list[LayerCall]]:
        """Return Σₙ J(xₙ)ᵀ uₙ; with `layers` also where each weight met its input, and the cotangent there.

        Args:
            program: The tangent program.
            theta2: θ̄₂, for shapes.
            values: The residuals, as the program takes them.
            u: (n, d).
            layers: Whether calls of layers are wanted.
        """
        constants = dict(program.named_buffers())
        leaves = [u, *values, *constants.values()]
        key = (layers, *((v.shape, v.stride(), v.dtype, v.device) for v in leaves))
        arguments = ([theta2[name] for name in self.names], list(values), list(constants.values()), u)
        if key not in self._traced and key in self._seen:
            with alone():
                if key not in self._traced and len(self._traced) < _MOST:  # no other thread has traced it meanwhile
                    self._traced[key] = self._trace(program, list(constants), arguments, layers)
        self._seen.add(key)
        ready = self._traced.get(key)
        if ready is not None:
            traced, calls = ready
            found = traced(*arguments)
        else:
            calls = []
            found = self._pull(program, list(constants), *arguments, calls=calls if layers else None)
        gradients = dict(zip(self.names, found, strict=False))
        rest = found[len(self.names) :]
        return gradients, [
            replace(call, z=z, output=cotangent)
            for call, z, cotangent in zip(calls, rest[::2], rest[1::2], strict=True)
        ]

    def _trace(
        self, program: fx.GraphModule, attributes: Sequence[str], arguments: Sequence[Any], layers: bool
    ) -> tuple[fx.GraphModule, list[LayerCall]] | None:
        """Return the transposed program and its calls of layers, or None where it cannot be traced."""
        calls: list[LayerCall] = []

        def pull(*given: Any) -> list[Tensor]:
            calls.clear()
            return self._pull(program, attributes, *given, calls=calls if layers else None)

        if any(node.target is node_jvp for node in program.graph.nodes):
            return None
        try:
            traced = make_fx(pull)(*arguments)
        except RuntimeError:  # an operation that reads values, say: autograd goes on to serve
            return None
        drop_forward(traced)
        blank = torch.empty(0)
        return traced, [replace(call, z=blank, output=blank) for call in calls]

    def _pull(
        self,
        program: fx.GraphModule,
        attributes: Sequence[str],
        theta2: Sequence[Tensor],
        values: Sequence[Tensor],
        constants: Sequence[Tensor],
        u: Tensor,
        *,
        calls: list[LayerCall] | None,
    ) -> list[Tensor]:
        """Return the gradients in w₂, then for each call of a layer its input and the gradient in its output."""
        placeholders = {f"w2_{i}": name for i, name in enumerate(self.names)}
        recorder = Recorder(program, placeholders, dict(zip(attributes, constants, strict=True)))
        with torch.enable_grad():
            w2 = [torch.zeros_like(value).requires_grad_() for value in theta2]
            moved = recorder.run(u.shape[0], *w2, *values)
            if calls is None:
                return list(torch.autograd.grad(moved, w2, u))
            calls.extend(recorder.calls)
            found = torch.autograd.grad(moved, [*w2, *(call.output for call in calls)], u)
        cotangents = found[len(w2) :]
        return [*found[: len(w2)], *(x for call, g in zip(calls, cotangents, strict=True) for x in (call.z, g))]


def drop_forward(program: fx.GraphModule) -> None:
    """Leave out of a traced program what its outputs do not depend on."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is aten.convolution_backward.default and not node.args[-1][1]:
            # the gradient in a convolution's input asks for that input's shape alone
            like = node.args[1]
            value = like.meta["val"]
            with graph.inserting_before(node):
                empty = graph.call_function(
                    aten.new_empty_strided.default, (node.args[0], list(value.shape), list(value.stride()))
                )
            node.replace_input_with(like, empty)
    live: set[fx.Node] = set()
    queue = [node for node in graph.nodes if node.op in ("output", "placeholder")]
    writes: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            writes.setdefault(_base(node.args[0]), []).append(node)
    while queue:
        node = queue.pop()
        if node not in live:
            live.add(node)
            queue.extend(node.all_input_nodes)
            queue.extend(writes.get(_base(node), ()))
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)
    program.recompile()


def _base(node: fx.Node) -> fx.Node:
    """Return the node whose memory a node shares: its own, or that of what it is a view of."""
    while node.args and isinstance(node.args[0], fx.Node):
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            shares = any(result.alias_info is not None for result in target._schema.returns)
        else:
            shares = target is operator.getitem
        if not shares:
            break
        node = node.args[0]
    return node
