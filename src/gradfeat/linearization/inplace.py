"""Writes in place become their functional twins, where nothing else sees the overwritten memory.

`torch.export` leaves ``relu_`` and ``x[:, 0] = y`` as they are, and torch's own functionalization of a whole graph
takes twice as long as the export itself. Most networks need little of it, and that little is done here.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_SOMETIMES_VIEWS = {
    *("reshape", "reshape_as", "contiguous", "flatten", "unflatten", "to", "type_as", "dropout", "alpha_dropout"),
    *("feature_dropout", "chunk", "split", "tensor_split", "movedim", "squeeze", "expand_as", "view_as", "narrow"),
    *("detach", "einsum", "ravel"),
}

_WRITTEN_BACK: dict[Any, Any] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}


def write_out_of_place(graph: fx.Graph) -> bool:
    """Rewrite in-place operations as their functional twins.

    ``y = relu_(x)`` becomes ``y = relu(x)``, and later uses of x become uses of y. A write into ``x[1:, 2]`` becomes
    the twin's result written back by ``select_scatter`` and ``slice_scatter``, and later uses of x become uses of that.
    Both are right unless another view of the same memory is read later, which is checked. Regions where autocast is
    turned off become part of the graph, which is captured without autocast.

    Args:
        graph: Of `torch.export`; changed.

    Returns:
        False if one operation cannot be rewritten here. The graph then still computes the same.
    """
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.HigherOrderOperator) and not _inlined(graph, node):
            return False
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            return False  # a nested graph, or a tensor that is no parameter and no buffer
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target._schema.is_mutable and not _rewritten(graph, node, position):
            return False
    return True


def _rewritten(graph: fx.Graph, node: fx.Node, position: dict[fx.Node, int]) -> bool:
    """Rewrite one write in place; `position` orders the nodes as they were, and learns of new ones."""
    functional = _functional_twin(node.target)
    target = node.args[0] if node.args else None
    if functional is None or not isinstance(target, fx.Node) or node.kwargs.get("out"):
        return False
    chain = [target]  # the written view, what it is a view of, and so on
    while chain[-1].target in _WRITTEN_BACK:
        chain.append(chain[-1].args[0])  # type: ignore[arg-type]
    if any(link.op == "placeholder" for link in chain) or _promoted(node, target):
        return False
    now = position[node]
    others = {alias for alias in _aliases(target) if alias not in chain and position[alias] < now}
    if any(position[user] > now for alias in others for user in alias.users):
        return False
    node.target = functional
    _hand_on(target, node, now, position)
    after, written = node, node
    for view, base in itertools.pairwise(chain):
        with graph.inserting_after(after):
            written = after = graph.call_function(_WRITTEN_BACK[view.target], (base, written, *view.args[1:]))
        position[written] = now
        if "val" in base.meta:
            written.meta["val"] = base.meta["val"]
        _hand_on(base, written, now, position)
    return True


def _promoted(node: fx.Node, target: fx.Node) -> bool:
    """Whether the twin would return another floating dtype than the tensor that is written to."""
    if node.target is aten.copy_.default:
        return False  # its twin casts
    values = [source.meta.get("val") for source in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor) and value.dtype.is_floating_point}
    return bool(dtypes - {target.meta["val"].dtype})


def _hand_on(old: fx.Node, new: fx.Node, now: int, position: dict[fx.Node, int]) -> None:
    """Let the later users of an overwritten value use the new one."""
    for user in [user for user in old.users if position[user] > now]:
        user.replace_input_with(old, new)


def _inlined(graph: fx.Graph, node: fx.Node) -> bool:
    """Put the nodes of a region in which autocast is off in the place of the region."""
    if node.target is not torch.ops.higher_order.wrap_with_autocast:
        return False
    _, _, enabled, _, region, *arguments = node.args
    if enabled or not isinstance(region, fx.Node):
        return False
    inner = getattr(graph.owning_module, str(region.target)).graph
    if any(user.target is not operator.getitem for user in node.users) or inner.find_nodes(op="get_attr"):
        return False  # an attribute, such as a region within the region, is named in the region's own module
    copies: dict[fx.Node, Any] = dict(zip(inner.find_nodes(op="placeholder"), arguments, strict=True))
    with graph.inserting_before(node):
        result = graph.graph_copy(inner, copies)
    for old, new in copies.items():
        if old.op != "placeholder":
            new.meta.update(old.meta)
    results = result if isinstance(result, tuple | list) else (result,)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)
    if not region.users:
        graph.erase_node(region)
    return True


def _functional_twin(target: Any) -> torch._ops.OpOverload | None:
    name = target._schema.name.split("::")[-1]
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(aten, name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _aliases(node: fx.Node) -> set[fx.Node]:
    """All nodes that may share memory with `node`, through views up and down."""
    found = {node}
    queue = [node]
    while queue:
        current = queue.pop()
        neighbours = [user for user in current.users if _is_view(user)]
        if _is_view(current):
            neighbours += [source for source in current.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
        for neighbour in neighbours:
            if neighbour not in found:
                found.add(neighbour)
                queue.append(neighbour)
    return found


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    if node.target._schema.is_mutable:
        return False  # its result is the overwritten value itself, which the rewriting follows
    # operations that return a view only sometimes (reshape, contiguous ...) do not say so in their schema
    return node.target.is_view or node.target._schema.name.split("::")[-1] in _SOMETIMES_VIEWS
