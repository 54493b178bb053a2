"""Capture: a network and an example become one functional ATen graph with a free batch size.

`torch.export` does the work. Its graph may still write in place (``relu_``); such writes are rewritten (see
`inplace`), and left to torch's own functionalization where that cannot be done.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from gradfeat.contexts import callers_device
from gradfeat.errors import ConfigurationError, GradfeatWarning, LinearizationError, did_you_mean
from gradfeat.linearization.inplace import write_out_of_place
from gradfeat.linearization.quiet import quiet

Features = None | str | Callable[[Any], Tensor]


@dataclass
class Captured:
    """A network as a functional graph.

    Attributes:
        graph: The ATen graph; its placeholders are constants and inputs, its output is f(x) of shape (n, d).
        values: Constant tensors by name; parameters and buffers carry the network's own names.
        constants: The placeholder of each constant.
        inputs: The placeholders of the network's inputs, in the order of the flattened example.
        parameters: Names in `values` that are parameters.
        aliases: Other names of shared parameters, and the name each goes by here.
        output: The node of f(x).
        notes: What the user should know about the network.
    """

    graph: fx.Graph
    values: dict[str, Tensor]
    constants: dict[fx.Node, str]
    inputs: list[fx.Node]
    parameters: list[str]
    aliases: dict[str, str]
    output: fx.Node
    notes: list[str] = field(default_factory=list)

    def constant(self, name: str) -> fx.Node:
        """Return the placeholder of the constant called `name`."""
        return next(node for node, known in self.constants.items() if known == name)


class FeatureExtractor(nn.Module):
    """The part of a network that computes f(x), as a module to export.

    Args:
        network: The network.
        features: None: the network's output is f(x). ``"name"``: the output of that module. ``"input:name"``: the first
            input of that module (a head's input). A callable: applied to the network's output.
    """

    def __init__(self, network: nn.Module, features: Features) -> None:
        super().__init__()
        self.network = network
        self._features = features
        if isinstance(features, str):
            name = features.removeprefix("input:")
            modules = dict(network.named_modules())
            if name not in modules:
                raise ConfigurationError(
                    f"features={features!r}: the network has no module {name!r}.{did_you_mean(name, modules)}"
                )
            self._tap = name

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return f(x), (n, d); a feature map (n, d, h, w) is average-pooled."""
        if isinstance(self._features, str):
            value = self._run_and_tap(args, kwargs)
        else:
            value = self.network(*args, **kwargs)
            if self._features is not None:
                value = self._features(value)
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"the network's output is a {type(value).__name__}, not a tensor: pass features=, the name of the "
                "module whose output is f(x), or a function from the network's output to a tensor (n, d)"
            )
        if value.ndim == 4:
            value = value.mean((2, 3))
        if value.ndim != 2:
            shape = ", ".join(str(size) if isinstance(size, int) else "n" for size in value.shape)
            raise ConfigurationError(
                f"features must have the shape (n, d) or (n, d, height, width), not ({shape}): pass "
                "features=, a module's name or a function from the network's output to a tensor (n, d)"
            )
        return value

    def _run_and_tap(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen: list[Any] = []
        module = self.network.get_submodule(self._tap)
        if str(self._features).startswith("input:"):
            handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        else:
            handle = module.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            self.network(*args, **kwargs)
        finally:
            handle.remove()
        if not seen:
            raise ConfigurationError(f"features={self._features!r}: the network never runs that module")
        return seen[-1]


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put every module of `network` in evaluation mode, and back as it was afterwards."""
    training = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, was in training.items():
            module.training = was


def as_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read an example as positional and keyword arguments: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(example, dict):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    return (example,), {}


def flatten_inputs(example: Any) -> list[Any]:
    """Return the tensors of an example in the order of the captured inputs."""
    args, kwargs = as_inputs(example)
    return list(pytree.tree_leaves((args, kwargs)))


def capture(network: nn.Module, example: Any, features: Features, keep: set[Any]) -> Captured:
    """Export `network` in evaluation mode as a functional graph from x to f(x).

    Args:
        network: Any module; its values are copied, it is not changed.
        example: A batch of at least two samples: a tensor, a tuple of arguments, or a dict of keywords.
        features: See `FeatureExtractor`.
        keep: Operations that a decomposition must leave whole.

    Raises:
        LinearizationError: The network cannot be exported; the message has torch's reason.
    """
    refuse_modules(network)
    extractor = FeatureExtractor(network, features)
    extractor.training = network.training
    args, kwargs = as_inputs(example)
    notes: list[str] = []
    if network.training:
        notes.append("the network was in training mode; it is linearized in evaluation mode")
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            warnings.warn(
                "the network is in training mode; gradfeat uses it in evaluation mode, where batch norm applies its "
                "running statistics (the network itself stays as it is)",
                GradfeatWarning,
                stacklevel=4,
            )
    program = _exported(extractor, args, kwargs)
    _erase_checks(program.graph)
    if not write_out_of_place(program.graph):
        program = _functionalized(program, keep)
    return _read_program(program, network, notes)


def _exported(extractor: FeatureExtractor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    # On a GPU batch norm is cuDNN's up to this size, and another's beyond; export wants one of the two. The bound goes
    # with the other checks, and the programs have no such kernel.
    batch = torch.export.Dim("batch", max=65_535)
    shapes = pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, (args, kwargs))
    try:
        with quiet(), evaluation_mode(extractor), torch.no_grad(), callers_device():
            return torch.export.export(extractor, (args, kwargs), dynamic_shapes=shapes)
    except ConfigurationError:
        raise
    except Exception as error:  # torch.export raises many types; the reason is in the message
        _refuse_input(extractor, args, kwargs)
        raise LinearizationError(
            f"{type(extractor.network).__name__} cannot be captured with a free batch size: {_why(error)}"
        ) from error


def _functionalized(program: ExportedProgram, keep: set[Any]) -> ExportedProgram:
    """Let torch itself rewrite what writes in place, which decomposes all operations but those of `keep`."""
    with quiet():
        table = torch.export.default_decompositions()
        for operation in keep & set(table):
            table.pop(operation)
        functional: ExportedProgram = program.run_decompositions(table)
        return functional


def refuse_modules(network: nn.Module) -> None:
    """Refuse modules that no linearization can serve, with the way out."""
    if isinstance(network, fx.GraphModule) and "train" in vars(network):
        raise ConfigurationError(
            "the network is a program of torch.export, which has no modules: pass the nn.Module that it was made from"
        )
    for name, module in network.named_modules():
        where = f"{name or 'the network'} ({type(module).__name__})"
        if any(isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)) for value in _values_of(module)):
            raise ConfigurationError(f"{where} has no weights yet: run the network once on a batch, then linearize it")
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigurationError(f"{where} is a TorchScript module: pass the nn.Module that it was made from")
        if _is_quantized(module):
            raise ConfigurationError(
                f"{where} is quantized, and its weights have no derivative: pass the network before quantization, or "
                "dequantize it"
            )
        own = type(module).__module__.startswith(
            "torch.nn."
        )  # a layer of another library may know what to do with them
        for value in _values_of(module):
            if (problem := _problem_of(value, own)) is not None:
                raise ConfigurationError(f"{where} {problem}")


def _values_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _is_quantized(module: nn.Module) -> bool:
    kinds = (type(module), *map(type, _values_of(module)))
    named = any(".quantized" in kind.__module__ or kind.__module__.startswith(_QUANTIZERS) for kind in kinds)
    return named or hasattr(module, "qweight") or any(value.is_quantized for value in _values_of(module))


_QUANTIZERS = ("bitsandbytes.", "torchao.quantization", "torchao.dtypes", "auto_gptq.", "gptqmodel.", "awq.", "quanto.")


def _problem_of(value: Tensor, own: bool) -> str | None:
    """Say why a parameter or buffer cannot be used as it stands."""
    if value.is_meta:
        return (
            "has no values (it is on the meta device): load them, network.load_state_dict(..., assign=True), before it "
            "is used"
        )
    if own and value.layout is not torch.strided:
        return "has sparse weights, which have no derivative here: lay them out, weight.to_dense(), before it is used"
    if own and value.is_floating_point() and value.element_size() == 1:
        kind = str(value.dtype).removeprefix("torch.")
        return f"has weights in 8-bit floats ({kind}), which torch cannot compute with: cast it, network.bfloat16()"
    return None


def _refuse_input(extractor: FeatureExtractor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Say so if the network cannot take the example at all, exported or not."""
    try:
        with evaluation_mode(extractor), torch.no_grad(), callers_device():
            extractor(args, kwargs)
    except ConfigurationError:
        return  # it takes the example; what it returns is another matter
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise ConfigurationError(
            f"{type(extractor.network).__name__} cannot take an input of shape {', '.join(map(str, shapes))}: {error}"
        ) from error


def _why(error: Exception) -> str:
    """Say why torch.export refuses a network, and the way out where the reason is a usual one."""
    text = str(error)
    place = next((line.strip() for line in text.splitlines() if line.strip().startswith("File ")), "")
    at = f" ({place})" if place else ""
    if fixed := re.search(r"specialized it to be a constant \((\d+)\)", text):
        return (
            f"its code works for {fixed[1]} samples only. It has the number of samples written into a shape or a loop; "
            "use x.shape[0], or -1, in its place"
        )
    if "data-dependent" in text:
        return (
            f"it takes a path, or makes a shape, that depends on the values of its data{at}. Choose with torch.where, "
            "or name a module before that place as features="
        )
    lines = [line for line in text.strip().splitlines() if line.strip() and not _ADVICE.search(line)]
    return "\n".join([f"torch.export says {type(error).__name__}: {lines[0] if lines else ''}", *lines[1:12]])


_ADVICE = re.compile("TORCH_LOGS|TORCHDYNAMO|draft_export|docs.google.com|TORCH_COMPILE")


_CHECKS_ONLY = {
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}


def _erase_checks(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.name.split("::")[-1] in _CHECKS_ONLY:
            graph.erase_node(node)


def _write_dtypes(graph: fx.Graph) -> None:
    """Write into operations that make tensors the dtype they made them in, which else is the process's default."""
    for node in graph.nodes:
        made, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
        if schema is None or not isinstance(made, Tensor) or node.kwargs.get("dtype") is not None:
            continue
        from_tensors = any(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes)
        if not from_tensors and any(argument.name == "dtype" and argument.kwarg_only for argument in schema.arguments):
            node.kwargs = {**node.kwargs, "dtype": made.dtype}


def _read_program(program: ExportedProgram, network: nn.Module, notes: list[str]) -> Captured:
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise LinearizationError(
            f"{type(network).__name__} changes its own state in a forward pass: "
            f"{sorted(signature.buffers_to_mutate.values())}"
        )
    graph: fx.Graph = program.graph
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    values: dict[str, Tensor] = {}
    constants: dict[fx.Node, str] = {}
    inputs: list[fx.Node] = []
    parameters: list[str] = []
    for spec in signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
            continue
        name = str(spec.target)
        store = program.state_dict if name in program.state_dict else program.constants
        short = name.removeprefix("network.")
        constants[node] = short
        values[short] = store[name].detach().clone()
        if spec.kind is InputKind.PARAMETER:
            parameters.append(short)
    aliases = _shared_names(network)
    _merge_shared(graph, values, constants, parameters, aliases)
    _erase_checks(graph)
    _write_dtypes(graph)
    (output,) = (node for node in graph.nodes if node.op == "output")
    features = output.args[0][0]
    graph.eliminate_dead_code()
    return Captured(graph, values, constants, inputs, parameters, aliases, features, notes)


def _merge_shared(
    graph: fx.Graph,
    values: dict[str, Tensor],
    constants: dict[fx.Node, str],
    parameters: list[str],
    aliases: dict[str, str],
) -> None:
    """Let a shared parameter be one constant, under its first name: torch.export reads it under any of its names."""
    node_of = {name: node for node, name in constants.items()}
    for alias, first in aliases.items():
        if alias in node_of and first in node_of:
            node_of[alias].replace_all_uses_with(node_of[first])
            graph.erase_node(node_of[alias])
            del values[alias], constants[node_of[alias]]
            parameters.remove(alias)


def _shared_names(network: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            aliases[name] = known
    return aliases
