"""Partial evaluation: the value graph and the tangent graph, cut into straight-line programs.

    bottom :  x             -> z₀                     all that θ₂ does not reach
    primal :  z₀            -> f(x), residuals        what the tangent needs
    tangent:  w₂, residuals -> J(x) w₂                linear in w₂: Eqs. 6 and 7, and nothing else
    network:  θ₂, z₀        -> f(x; θ₂)               the same layers with θ₂ free: fine-tuning, and checks

What depends on no input is computed once, and is a constant of the programs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gradfeat.linearization.capture import Captured
from gradfeat.linearization.one_pixel import is_one_pixel, one_pixel
from gradfeat.linearization.trace import Trace, samples_factor

aten = torch.ops.aten

# Operations that make a value no smaller and cost nothing: never worth being part of z₀.
_FREE = {
    *(
        "view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "expand",
        "flatten",
        "unflatten",
        "alias",
        "clone",
    ),
    *("contiguous", "dropout", "repeat", "movedim", "detach", "_unsafe_view"),
}


@dataclass
class Parts:
    """The value graph sorted: what is constant, what θ₂ reaches, and what a rule added.

    Attributes:
        varying: Nodes that an input reaches.
        reached: Nodes that θ₂ reaches.
        added: Nodes that rules added; they belong to `primal`.
        sizes: Nodes that are symbolic sizes.
    """

    graph: fx.Graph
    values: dict[str, Tensor]
    constants: dict[fx.Node, str]
    varying: set[fx.Node]
    reached: set[fx.Node]
    added: set[fx.Node]
    sizes: set[fx.Node]

    @classmethod
    def of(cls, captured: Captured, theta2: Iterable[str], original: set[fx.Node]) -> Parts:
        """Sort the nodes of a captured graph; `original` are those that were there before the trace."""
        chosen = set(theta2)
        varying, reached, sizes = set(captured.inputs), set(), set()
        for node in captured.graph.nodes:
            if captured.constants.get(node) in chosen:
                reached.add(node)
            if any(source in varying for source in node.all_input_nodes):
                varying.add(node)
            if isinstance(node.meta.get("val"), torch.SymInt):
                sizes.add(node)
            elif any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        added = {node for node in captured.graph.nodes if node not in original}
        return cls(captured.graph, captured.values, captured.constants, varying, reached, added, sizes)

    def constant_values(self, nodes: Iterable[fx.Node], theta2: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
        """Compute the constants among `nodes` with θ₂'s values replaced."""
        known: dict[fx.Node, Any] = {}

        def value(node: fx.Node) -> Any:
            if node not in known:
                if node in self.constants:
                    name = self.constants[node]
                    known[node] = theta2[name] if name in theta2 else self.values[name]
                else:
                    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
                    known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return known[node]

        with torch.no_grad():
            return {node: value(node) for node in nodes}

    def boundary(self, needed: Iterable[fx.Node]) -> list[fx.Node]:
        """Return z₀: the nodes below θ₂ whose values the nodes above use, `needed` being the outputs above."""
        seen: set[fx.Node] = set()
        found: dict[fx.Node, None] = {}
        queue = list(needed)
        while queue:
            node = queue.pop()
            if node in seen or node not in self.varying or node in self.sizes:
                continue
            seen.add(node)
            if self._above(node):
                queue.extend(node.all_input_nodes)
            else:
                found[node] = None
        order = {node: index for index, node in enumerate(self.graph.nodes)}
        return sorted(found, key=order.__getitem__)

    def _above(self, node: fx.Node) -> bool:
        if node in self.reached or node in self.added:
            return True
        if node.op != "call_function":
            return False
        name = getattr(getattr(node.target, "_schema", None), "name", "").split("::")[-1]
        sources = [source for source in node.all_input_nodes if source in self.varying and source not in self.sizes]
        return name in _FREE and bool(sources)


def emit_program(
    parts: Parts, inputs: list[fx.Node], outputs: list[fx.Node], *, free: Iterable[str] = ()
) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Write the nodes between `inputs` and `outputs` as a graph of its own.

    Its placeholders are ``n``, then the parameters named in `free`, then `inputs`. What depends on no input and no
    free parameter is a constant.

    Returns:
        The graph, and its constants: attribute name -> node of the value graph.
    """
    graph = fx.Graph()
    samples = graph.placeholder("n")
    copied: dict[fx.Node, Any] = {}
    node_of = {name: node for node, name in parts.constants.items()}
    moving = set()
    for i, name in enumerate(free):
        copied[node_of[name]] = graph.placeholder(f"theta2_{i}")
        moving.add(node_of[name])
    for i, node in enumerate(inputs):
        copied[node] = graph.placeholder(f"input_{i}")
    attributes: dict[str, fx.Node] = {}
    fixed = _fixed(parts, moving)

    def copy(node: fx.Node) -> Any:
        if node in copied:
            return copied[node]
        if node in parts.sizes:
            made = graph.call_function(operator.mul, (samples, samples_factor(node.meta["val"])))
        elif node in fixed:
            attribute = f"constant_{len(attributes)}"
            attributes[attribute] = node
            made = graph.create_node("get_attr", attribute)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), copied.__getitem__)
            target = _any_layout(node.target)
            if is_one_pixel(node):
                target, args = one_pixel, args[:3]
            made = graph.create_node("call_function", target, args, kwargs)
        copied[node] = made
        return made

    needed = _needed(outputs, set(copied) | fixed | parts.sizes)
    for node in parts.graph.nodes:
        if node in needed:
            copy(node)
    graph.output(tuple(copied[node] for node in outputs))
    return graph, attributes


def _fixed(parts: Parts, moving: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes that neither an input nor a moving parameter reaches."""
    touched = set(moving)
    for node in parts.graph.nodes:
        if any(source in touched for source in node.all_input_nodes):
            touched.add(node)
    return {
        node for node in parts.graph.nodes if node not in touched and node not in parts.varying and node.op != "output"
    }


def _needed(outputs: Iterable[fx.Node], stops: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = list(outputs)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            if node not in stops:
                queue.extend(node.all_input_nodes)
    return found


def emit_tangent(parts: Parts, trace: Trace) -> tuple[list[fx.Node], dict[str, fx.Node]]:
    """Turn kept constants of the tangent graph into attributes; return the residuals' value nodes, and the constants.

    The placeholders of the finished graph are ``n``, those of w₂, then the residuals.
    """
    attributes: dict[str, fx.Node] = {}
    residuals: list[fx.Node] = []
    for value, placeholder in trace.kept.items():
        if value in parts.varying:
            residuals.append(value)
            continue
        attribute = f"constant_{len(attributes)}"
        attributes[attribute] = value
        with trace.tangents.inserting_before(placeholder):
            read = trace.tangents.create_node("get_attr", attribute)
        placeholder.replace_all_uses_with(read)
        trace.tangents.erase_node(placeholder)
    for node in trace.tangents.nodes:
        if node.op == "call_function":
            node.target = _any_layout(node.target)
    trace.tangents.lint()
    return residuals, attributes


def build_module(
    graph: fx.Graph, attributes: Mapping[str, fx.Node], values: Mapping[fx.Node, Tensor]
) -> fx.GraphModule:
    """Make a module of a program; its constants are buffers that no state dict carries."""
    root = {attribute: values[node] for attribute, node in attributes.items()}
    module = fx.GraphModule(root, graph)
    module._non_persistent_buffers_set.update(root)
    return module


def _any_layout(target: Any) -> Any:
    """Return the operation that does the same however its input lies in memory."""
    return aten.reshape.default if target is aten.view.default else target


_CONVOLUTIONS = {
    *(aten.conv2d.default, aten.conv2d.padding, aten.convolution.default, aten.conv_transpose2d.input),
    one_pixel,
}
_READS_STRIDES = {aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default}


def prefer_channels_last(graphs: Iterable[fx.Graph]) -> bool:
    """Whether images and weights should lie channels-last, as torch's convolutions run fastest.

    They should where there are 2-d convolutions, and no operation that sees how its input lies. The bottom of
    MobileNetV2 then takes less than half the time on a CPU, and the weight gradients of a convolution a tenth less.
    """
    targets = {node.target for graph in graphs for node in graph.nodes}
    return bool(targets & _CONVOLUTIONS) and not targets & _READS_STRIDES


def channels_last(value: Tensor) -> Tensor:
    """Lay an image or the weight of a 2-d convolution out channels-last; leave anything else."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


def lay_out_weights(program: fx.GraphModule) -> None:
    """Lay the constant weights of a program's 2-d convolutions out channels-last."""
    for node in program.graph.nodes:
        if node.target in _CONVOLUTIONS:
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    buffer = program.get_buffer(str(source.target))
                    buffer.data = channels_last(buffer)
