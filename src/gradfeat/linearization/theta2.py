"""θ₂: which parameters are linearized, by name, module, glob, or the paper's heuristic."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from gradfeat.errors import Theta2Error, did_you_mean
from gradfeat.linearization.capture import Captured

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Candidate:
    """A choice of θ₂: a layer or block, and all that lies between it and the features.

    Attributes:
        name: Name of its lowest module.
        modules: Names of all its modules, top first.
        parameters: Number of its parameters.
    """

    name: str
    modules: tuple[str, ...]
    parameters: int


def select(network: nn.Module, captured: Captured, theta2: str | Sequence[str]) -> tuple[list[str], set[str]]:
    """Resolve `theta2` to parameter names.

    Args:
        network: The network, for its modules' names.
        captured: Its graph, for what reaches the features.
        theta2: "top" or "auto" (the paper's heuristic), or names of modules or parameters, or globs over either; one or
            a list.

    Returns:
        The names in the network's order; those among them selected through a module or "auto".

    Raises:
        Theta2Error: A name matches nothing, or nothing of it reaches the features.
    """
    patterns = [theta2] if isinstance(theta2, str) else list(theta2)
    if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise Theta2Error(f"theta2 must be 'top', 'auto', a name, a glob, or a list of them, not {theta2!r}")
    if patterns in (["auto"], ["top"]):
        patterns = [topmost(network, captured)]
    modules = [name for name, _ in network.named_modules() if name]
    own = {name: captured.aliases.get(name, name) for name, _ in network.named_parameters(remove_duplicate=False)}
    reaching = reaches_features(captured)
    chosen: set[str] = set()
    by_module: set[str] = set()
    for pattern in patterns:
        parameters = {own[name] for name in own if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        roots = [name for name in modules if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        inside = {own[name] for name in own if any(name.startswith(root + ".") for root in roots)}
        if pattern == "*":
            inside = set(own.values())
        if not parameters | inside:
            if pattern in modules:
                raise Theta2Error(f"theta2: the module {pattern!r} has no parameters")
            raise Theta2Error(
                f"theta2: {pattern!r} matches no module and no parameter of the network."
                f"{did_you_mean(pattern, [*modules, *own]) or _some(modules)}"
            )
        live = (parameters | inside) & reaching
        if not live:
            raise Theta2Error(
                f"theta2: no parameter of {pattern!r} reaches the features f(x): it lies above them, in an unused "
                "branch, or behind an operation without derivative"
            )
        unreal = [name for name in live if not captured.values[name].dtype.is_floating_point]
        if unreal:
            raise Theta2Error(
                f"theta2: {', '.join(unreal)} has the dtype {captured.values[unreal[0]].dtype}, which has no derivative"
            )
        chosen |= live
        by_module |= live & inside
    return [name for name in captured.parameters if name in chosen], by_module


def reaches_features(captured: Captured) -> set[str]:
    """Return the names of the parameters that f(x) depends on."""
    parameters = set(captured.parameters)
    return {
        captured.constants[node] for node in ancestors(captured.output) if captured.constants.get(node) in parameters
    }


def ancestors(node: fx.Node) -> set[fx.Node]:
    """Return `node` and all nodes that it is computed from."""
    return _reached([node], lambda reached: reached.all_input_nodes)


def _reached(start: Iterable[fx.Node], steps: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found = set(start)
    queue = list(found)
    while queue:
        for node in steps(queue.pop()):
            if node not in found:
                found.add(node)
                queue.append(node)
    return found


def weight_layers(captured: Captured) -> list[str]:
    """Return the weights (two or more axes) of layers on the way to the features, in the order of execution."""
    live = ancestors(captured.output)
    parameters = set(captured.parameters)
    of_x = _reached(captured.inputs, lambda node: node.users)
    found: dict[str, None] = {}
    for node in captured.graph.nodes:
        if node.op != "call_function" or node not in live or node not in of_x or not _is_layer(node):
            continue
        for source in node.all_input_nodes:
            if source in of_x:
                continue
            # a view of a parameter, or what a parametrization (weight norm, say) makes of several
            for name in (captured.constants.get(behind) for behind in ancestors(source)):
                if name in parameters and captured.values[name].ndim >= 2:
                    found.pop(name, None)
                    found[name] = None
    return list(found)


_LAYER_PARTS = ("conv", "linear", "mm", "matmul", "einsum", "lstm", "gru", "rnn")


def _is_layer(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(part in schema.name.split("::")[-1] for part in _LAYER_PARTS)


def topmost(network: nn.Module, captured: Captured) -> str:
    """Return the module that the paper takes as θ₂ (Sec. 4): the topmost convolution, residual or transformer block.

    It is the block that holds the last layer before the features: the innermost module around it that its container
    (Sequential, ModuleList) repeats.

    Raises:
        Theta2Error: No layer with a weight reaches the features.
    """
    found = candidates(network, captured)
    if not found:
        raise Theta2Error("theta2='auto': no layer with a weight reaches the features; name the parameters instead")
    return found[0].name


def candidates(network: nn.Module, captured: Captured) -> list[Candidate]:
    """Return the choices of θ₂ from the top down: each adds one layer or block to the one before."""
    blocks: dict[str, None] = {}
    for weight in reversed(weight_layers(captured)):
        layer = weight.rpartition(".")[0].partition(".parametrizations.")[0]
        if layer and not any(f"{layer}.".startswith(f"{block}.") for block in blocks):
            blocks[_block_of(network, layer)] = None
    reaching = reaches_features(captured)
    result: list[Candidate] = []
    taken: list[str] = []
    for block in blocks:
        taken.append(block)
        names = [name for name in reaching if any(name.startswith(module + ".") for module in taken)]
        count = sum(captured.values[name].numel() for name in names)
        result.append(Candidate(block, tuple(taken), count))
    return result


def _block_of(network: nn.Module, name: str) -> str:
    """Return the block that a layer belongs to: the innermost module around it that its container repeats.

    Parts of a block may lie in containers too (branches, a small Sequential), but those hold different things. Where no
    container repeats anything, the block is the layer's module in the innermost container, or at the top.
    """
    modules: dict[str, nn.Module] = dict(network.named_modules())
    path = name.split(".")
    around = [".".join(path[:i]) for i in range(len(path), 0, -1)]
    contained = [inner for inner in around if isinstance(modules[inner.rpartition(".")[0]], _CONTAINERS)]
    for inner in contained:
        siblings = modules[inner.rpartition(".")[0]].children()
        if sum(type(child) is type(modules[inner]) for child in siblings) > 1:
            return inner
    return contained[0] if contained else around[-1]


def _some(names: Iterable[str], most: int = 8) -> str:
    shown = [name for name in names if "." not in name][:most]
    return f" Modules at the top are {', '.join(shown)}." if shown else ""


def layers_of(parameters: Sequence[str], most: int = 4) -> str:
    """Return names of parameters in a line: all of a few, or else how many there are, and the layers they belong to.

    Example:
        >>> layers_of([f"{i}.{j}.weight" for i in range(2) for j in range(3)])
        '6 parameters: 0.0, 0.1, 0.2, 1.0, 1.1, 1.2'
        >>> layers_of([f"{i}.{j}.weight" for i in range(4) for j in range(3)])
        '12 parameters of 12 layers: 0.0, 0.1 ... 3.1, 3.2'
    """
    if len(parameters) <= most:
        return ", ".join(parameters)
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters))
    if len(layers) <= 2 * most:
        return f"{len(parameters)} parameters: {', '.join(layers)}"
    return f"{len(parameters)} parameters of {len(layers)} layers: {', '.join(layers[:2])} ... {', '.join(layers[-2:])}"
