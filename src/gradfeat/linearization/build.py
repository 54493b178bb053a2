"""`linearize`: capture, fold, trace, cut, check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradfeat.contexts import alone, plain
from gradfeat.errors import BatchDependenceError, ConfigurationError, Theta2Error
from gradfeat.linearization.capture import Captured, Features, capture, flatten_inputs
from gradfeat.linearization.check import check_programs, in_double
from gradfeat.linearization.copies import with_ordinary_tensors
from gradfeat.linearization.fold import Folding, fold_batchnorms
from gradfeat.linearization.layout import Layout, doubtful, find_layout, refuse_doubtful
from gradfeat.linearization.linearization import Blueprint, Linearization, Residuals
from gradfeat.linearization.programs import Parts, build_module, emit_program, emit_tangent
from gradfeat.linearization.rules import RULES
from gradfeat.linearization.rules.fallback import fallback
from gradfeat.linearization.theta2 import Candidate, candidates, select
from gradfeat.linearization.trace import Trace


def linearize(
    network: nn.Module,
    example_input: Any,
    theta2: str | Sequence[str],
    *,
    features: Features = None,
    fold_batchnorm: bool = True,
    check: bool = True,
) -> Linearization:
    """Partially evaluate a network into the programs of Eq. 2: bottom, primal and tangent.

    The network is used in evaluation mode and is not changed; its values are copied.

    Args:
        network: Any module from a batch x to features f(x), (n, d). A feature map (n, d, h, w) is average-pooled.
        example_input: A batch as the network takes it: a tensor, a tuple of arguments, or a dict of keyword arguments.
            Its first axis is the batch, which stays free.
        theta2: The parameters to linearize: names of modules or parameters, globs over either, one or a list; or
            "auto", the topmost convolution, residual or transformer block (Sec. 4).
        features: What f(x) is: None, the network's output; ``"name"``, the output of that module; ``"input:name"``,
            its input; or a function of the network's output.
        fold_batchnorm: Fold each batch norm into the layer before it. The layer's names in θ₂ then mean the folded
            weight and bias. With False, names of θ₂ are the network's own.
        check: Test on the example that the programs compute what the network does, and that the tangent is its
            derivative.

    Returns:
        The linearization at the network's present values.

    Raises:
        ConfigurationError: An argument cannot be meant.
        Theta2Error: A name of θ₂ matches nothing, or does not reach f(x).
        BatchDependenceError: The features of one sample depend on the others of its batch, or on chance.
        LinearizationError: The network cannot be exported.

    Example:
        >>> network = nn.Linear(3, 2)
        >>> x = torch.randn(5, 3)
        >>> lin = linearize(network, x, ["weight"])
        >>> f, residuals = lin.primal(lin.bottom(x))
        >>> w2 = {"weight": torch.ones(2, 3)}
        >>> torch.allclose(lin.tangent(w2, residuals), x.sum(1, keepdim=True).expand(5, 2))  # J w2 = w2 x
        True
    """
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"network must be a torch module, not {type(network).__name__}; "
            "gradfeat.backbones.resolve(name).network is the one of a name"
        )
    with alone(), plain():
        return _linearize(
            with_ordinary_tensors(network), _three_samples(example_input), theta2, features, fold_batchnorm, check
        )


def _linearize(
    network: nn.Module,
    example: Any,
    theta2: str | Sequence[str],
    features: Features,
    fold_batchnorm: bool,
    check: bool,
) -> Linearization:
    captured = capture(network, example, features, set(RULES))
    chosen, by_module = select(network, captured, theta2)
    original, names = dict(captured.values), set(chosen)
    foldings: list[Folding] = []
    if fold_batchnorm:
        foldings, names = fold_batchnorms(captured, names, by_module)
    changed = {name for f in foldings for name in (f.weight, f.bias, f.gamma, f.beta, f.mean, f.variance) if name}
    blueprint = _draw(
        captured,
        [name for name in captured.parameters if name in names],
        foldings,
        {name: value for name, value in original.items() if name in changed},
    )
    start = {name: captured.values[name] for name in blueprint.names}
    two = pytree.tree_map(lambda leaf: leaf[[1, 0]] if isinstance(leaf, Tensor) else leaf, example)
    z0 = _find_layouts(blueprint, start, example, two)
    for node in captured.graph.nodes:
        node.meta.clear()  # shapes and stack traces have served
    linearization = Linearization(blueprint, start)
    if check:
        blueprint.checks[:] = check_programs(network, features, linearization, two, z0)
    return linearization


def _draw(captured: Captured, names: list[str], foldings: list[Folding], original: dict[str, Tensor]) -> Blueprint:
    """Trace the tangent, and cut both graphs into the four programs; where samples lie in them is not known yet.

    Args:
        captured: The network's graph, batch norms folded; rules append to it.
        names: θ₂, in the network's order.
        foldings: What was folded.
        original: The network's own values of what folding changed.
    """
    before = set(captured.graph.nodes)
    trace = Trace(captured, names)
    moved = trace.run(RULES, fallback)
    if moved is None:
        raise Theta2Error(
            f"theta2: no derivative of f(x) along {', '.join(names[:4])}: an operation above them has none"
        )
    trace.finish(moved)
    parts = Parts.of(captured, names, before)
    residuals, tangent_attributes = emit_tangent(parts, trace)
    boundary = parts.boundary([captured.output, *residuals])
    programs = {
        "tangent": (trace.tangents, tangent_attributes),
        "bottom": emit_program(parts, captured.inputs, boundary),
        "primal": emit_program(parts, boundary, [captured.output, *residuals]),
        "network": emit_program(parts, boundary, [captured.output], free=names),
    }
    return Blueprint(
        parts=parts,
        graphs={name: graph for name, (graph, _) in programs.items()},
        attributes={name: attributes for name, (_, attributes) in programs.items()},
        z0_layouts=[],
        residual_layouts=[],
        names=names,
        foldings=foldings,
        original=original,
        by_rule=trace.by_rule,
        layer_kinds=_layer_kinds(captured),
        notes=captured.notes,
    )


def theta2_candidates(network: nn.Module, example_input: Any, *, features: Features = None) -> list[Candidate]:
    """Return the choices of θ₂ from the top down, each one layer or block more; arguments as of `linearize`."""
    with alone(), plain():
        network = with_ordinary_tensors(network)
        return candidates(network, capture(network, _three_samples(example_input), features, set(RULES)))


def _three_samples(example: Any) -> Any:
    """Return the example with three different samples a, b, c: made from the given ones where there are fewer."""
    leaves, spec = pytree.tree_flatten(example)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise ConfigurationError("example_input must hold at least one tensor, with the batch as first axis")
    if any(leaf.ndim == 0 or leaf.shape[0] != tensors[0].shape[0] or leaf.shape[0] == 0 for leaf in tensors):
        shapes = [tuple(leaf.shape) for leaf in tensors]
        raise ConfigurationError(
            f"example_input must have the same number of samples, at least one, as first axis of each tensor: {shapes}"
        )
    return pytree.tree_unflatten([_three_rows(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)


def _three_rows(leaf: Tensor) -> Tensor:
    leaf = leaf.detach()
    if leaf.shape[0] < 3:
        leaf = leaf[torch.arange(3, device=leaf.device) % leaf.shape[0]]
    leaf = leaf[:3].clone()
    if leaf.dtype.is_floating_point and (
        torch.equal(leaf[0], leaf[1]) or torch.equal(leaf[1], leaf[2]) or torch.equal(leaf[0], leaf[2])
    ):
        generator = torch.Generator().manual_seed(0)
        spread = leaf.float().std().item() or 1.0
        noise = torch.randn(leaf.shape, generator=generator).to(leaf) * spread
        leaf = leaf + noise
    elif (
        leaf.ndim > 1
        and not leaf.dtype.is_floating_point
        and torch.equal(leaf[0], leaf[1])
        and leaf.dtype != torch.bool
    ):
        leaf[1] = leaf[1].roll(1, -1)
        leaf[2] = leaf[2].flip(-1)
    return leaf


def _find_layouts(blueprint: Blueprint, theta2: dict[str, Tensor], three: Any, two: Any) -> Tensor | Residuals:
    """Run the programs on samples (a, b, c) and (b, a), and see where the samples lie in what they return.

    Returns:
        z₀ of the two, with the sample as first axis.
    """
    needed = {node for name in ("bottom", "primal") for node in blueprint.attributes[name].values()}
    values = blueprint.parts.constant_values(needed, theta2)
    bottom, primal = (
        build_module(blueprint.graphs[name], blueprint.attributes[name], values) for name in ("bottom", "primal")
    )
    z0, out = _outputs(bottom, primal, three, two)
    if out[0][0].ndim != 2 or (out[0][0].shape[0], out[1][0].shape[0]) != (3, 2):
        raise BatchDependenceError(f"f(x) has the shape {tuple(out[0][0].shape)} for 3 samples; (3, d) is needed")
    find_layout(out[0][0], out[1][0], "f(x)")
    blueprint.z0_layouts[:] = [find_layout(a, b, "an activation below θ₂") for a, b in zip(*z0, strict=True)]
    blueprint.residual_layouts[:] = [
        find_layout(a, b, "an activation") for a, b in zip(out[0][1:], out[1][1:], strict=True)
    ]
    layouts = [Layout(0), *blueprint.z0_layouts, *blueprint.residual_layouts]
    names = ["f(x)", *("an activation below θ₂" for _ in z0[0]), *("an activation" for _ in out[0][1:])]
    found = _paired(z0, out)
    if any(doubtful(layout, *pair) for layout, pair in zip(layouts, found, strict=True)):
        # entries that differ: rounding at a jump, which double precision moves elsewhere, or a wrong value, which stays
        exact: list[tuple[Tensor, Tensor]] = []
        with suppress(RuntimeError, TypeError, NotImplementedError):  # not every network runs in double precision
            again, of_double = _outputs(*(in_double(part) for part in (bottom, primal, three, two)))
            exact = _paired(again, of_double)
        for layout, pair, name in zip(layouts, exact, names, strict=bool(exact)):
            refuse_doubtful(layout, *pair, name)
    blueprint.sizes = {"z0": _size(z0[0], 3), "residuals": _size(out[0][1:], 3)}
    packed = tuple(layout.pack(value, 2) for layout, value in zip(blueprint.z0_layouts, z0[1], strict=True))
    return packed[0] if len(packed) == 1 else packed


def _outputs(
    bottom: nn.Module, primal: nn.Module, three: Any, two: Any
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """Return z₀, and f(x) with the residuals, of three samples and of two."""
    with torch.no_grad():
        z0 = [bottom(n, *_tensors(batch)) for n, batch in ((3, three), (2, two))]
        return z0, [primal(n, *z) for n, z in zip((3, 2), z0, strict=True)]


def _paired(z0: list[tuple[Tensor, ...]], out: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Return f(x), z₀ and the residuals, each of three samples and of two."""
    return [(out[0][0], out[1][0]), *zip(*z0, strict=True), *zip(out[0][1:], out[1][1:], strict=True)]


def _size(values: Iterable[Tensor], n: int) -> tuple[int, int]:
    """Return how many floating-point numbers and how many other bytes there are for each of n samples."""
    numbers = others = 0
    for value in values:
        if value.dtype.is_floating_point:
            numbers += value.numel()
        else:
            others += value.numel() * value.element_size()
    return numbers // n, others // n


def _tensors(example: Any) -> list[Tensor]:
    return [leaf for leaf in flatten_inputs(example) if isinstance(leaf, Tensor)]


def _layer_kinds(captured: Captured) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for node, name in captured.constants.items():
        for user in node.users:
            schema = getattr(user.target, "_schema", None)
            if schema is None:
                continue
            for argument, value in zip(schema.arguments, user.args, strict=False):
                if value is node:
                    kinds[name] = f"{schema.name.split('::')[-1]}.{argument.name}"
    return kinds
