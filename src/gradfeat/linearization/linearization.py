"""`Linearization`: a network as bottom, primal and tangent programs, at one point θ̄₂."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from gradfeat.contexts import computing, plain, single_precision
from gradfeat.errors import ConfigurationError, did_you_mean
from gradfeat.linearization.capture import flatten_inputs
from gradfeat.linearization.fold import Folding
from gradfeat.linearization.layout import Layout
from gradfeat.linearization.per_sample import PerSample, SampleGradients
from gradfeat.linearization.programs import Parts, build_module, channels_last, lay_out_weights, prefer_channels_last
from gradfeat.linearization.record import LayerCall
from gradfeat.linearization.transposed import Transposer

Residuals = tuple[Tensor, ...]


@dataclass(frozen=True)
class Report:
    """What was built.

    Attributes:
        theta2: Names and shapes of θ₂, after folding.
        folded: "batch norm -> layer" for each batch norm folded into a layer of θ₂ or of the rest.
        rules: How many nodes each tangent rule served.
        fallbacks: Nodes without a rule, whose Jacobian-vector product torch computes: (node, operation).
        nodes: Number of operations of each program.
        z0_bytes: Memory of z₀, bytes per sample.
        residual_bytes: Memory of the residuals, bytes per sample.
        notes: What else the user should know.
        checks: What the programs were compared with on the example, and how; empty with ``check=False``.
    """

    theta2: dict[str, tuple[int, ...]]
    folded: list[str]
    rules: dict[str, int]
    fallbacks: list[tuple[str, str]]
    nodes: dict[str, int]
    z0_bytes: int
    residual_bytes: int
    notes: list[str]
    checks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parameters = sum(int(torch.Size(shape).numel()) for shape in self.theta2.values())
        lines = [f"θ₂: {parameters:,} parameters in {len(self.theta2)} tensors: {', '.join(self.theta2)}"]
        lines.append("operations: " + ", ".join(f"{name} {count}" for name, count in self.nodes.items()))
        lines.append("tangent rules: " + ", ".join(f"{name} ×{count}" for name, count in sorted(self.rules.items())))
        lines.append(
            "without a rule: "
            + (", ".join(f"{node} ({op})" for node, op in self.fallbacks) if self.fallbacks else "none")
        )
        lines.append(f"kept per sample: z₀ {self.z0_bytes:,} bytes, residuals {self.residual_bytes:,} bytes")
        if self.folded:
            lines.append(f"folded batch norms: {len(self.folded)}")
        lines.append("checked: " + ("; ".join(self.checks) if self.checks else "nothing"))
        return "\n".join([*lines, *self.notes])


@dataclass
class Blueprint:
    """All that does not depend on the values of θ₂; shared by linearizations at different points."""

    parts: Parts
    graphs: dict[str, fx.Graph]
    attributes: dict[str, dict[str, fx.Node]]
    z0_layouts: list[Layout]
    residual_layouts: list[Layout]
    names: list[str]
    foldings: list[Folding]
    original: dict[str, Tensor]
    by_rule: list[tuple[str, str, str]]
    layer_kinds: dict[str, str]
    notes: list[str]
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of a sample: floating-point numbers, other bytes
    checks: list[str] = field(default_factory=list)  # that the programs have passed
    transposer: Transposer = field(init=False)
    per_sample: PerSample = field(init=False)

    def __post_init__(self) -> None:
        self.transposer, self.per_sample = Transposer(self.names), PerSample(self.names)

    def __deepcopy__(self, memo: dict[int, Any]) -> Blueprint:
        return self  # nothing in it ever changes but what was traced, which serves all


class Linearization(nn.Module):
    """A network linearized in θ₂ at θ̄₂: ``f(x; θ̄₂ + w₂) ≈ f(x) + J(x) w₂``.

    Made by `gradfeat.linearize`. Its constants are buffers: `to`, `double` and the like move and convert them (no
    state dict carries them). Samples are always the first axis of z₀ and of each residual, so that both can be indexed
    by sample.
    """

    # one's own, so that a network that another thread traces meanwhile, which replaces nn.Module's, is another matter
    __call__: Callable[..., Any] = nn.Module.__call__
    __getattr__ = nn.Module.__getattr__

    @plain()
    def __init__(self, blueprint: Blueprint, theta2: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._blueprint = blueprint
        self._channels_last = prefer_channels_last(blueprint.graphs.values())
        for i, name in enumerate(blueprint.names):
            value = theta2[name].detach().clone()
            if self._channels_last and blueprint.layer_kinds.get(name, "").startswith("conv"):
                value = channels_last(value)
            self.register_buffer(f"theta2_{i}", value, persistent=False)
        needed = {node for attributes in blueprint.attributes.values() for node in attributes.values()}
        values = blueprint.parts.constant_values(needed, theta2)
        for program, graph in blueprint.graphs.items():
            module = build_module(graph, blueprint.attributes[program], values)
            if self._channels_last:
                lay_out_weights(module)
            self.add_module(f"_{program}", module)
        self.eval()

    @property
    def theta2(self) -> dict[str, Tensor]:
        """Names and values of θ̄₂, after folding."""
        return {name: getattr(self, f"theta2_{i}") for i, name in enumerate(self._blueprint.names)}

    @property
    def foldings(self) -> list[Folding]:
        """The batch norms that were folded."""
        return list(self._blueprint.foldings)

    @property
    def original(self) -> dict[str, Tensor]:
        """The network's own values, by name, of what folding changed."""
        return dict(self._blueprint.original)

    @property
    def state(self) -> dict[str, Tensor]:
        """The network's own values, by name, as they were captured: all that f(x) is computed from."""
        made = {folding.bias for folding in self._blueprint.foldings if not folding.had_bias}
        values = {name: value for name, value in self._blueprint.parts.values.items() if name not in made}
        return values | self._blueprint.original

    @property
    def layer_kinds(self) -> dict[str, str]:
        """For each name of θ₂ the operation that uses it and its place there, e.g. ``"conv2d.weight"``."""
        return dict(self._blueprint.layer_kinds)

    @property
    def programs(self) -> dict[str, fx.GraphModule]:
        """The programs "bottom", "primal", "tangent" and "network", whose graphs and constants can be looked at."""
        return {name: getattr(self, f"_{name}") for name in ("bottom", "primal", "tangent", "network")}

    @property
    def bytes_per_sample(self) -> dict[str, int]:
        """Memory of "z0" and "residuals" for one sample, bytes, in the dtype that the programs compute in."""
        sizes = self._blueprint.sizes
        return {name: numbers * self.dtype.itemsize + others for name, (numbers, others) in sizes.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the programs compute in."""
        return self.theta2[self._blueprint.names[0]].dtype

    @property
    def device(self) -> torch.device:
        """The device that the programs compute on."""
        return self.theta2[self._blueprint.names[0]].device

    def forward(self, x: Any) -> Tensor:
        """Return f(x), (n, d)."""
        return self.primal(self.bottom(x))[0]

    @computing()
    @plain()
    def bottom(self, x: Any) -> Tensor | Residuals:
        """Run what lies below θ₂, once for each sample.

        Args:
            x: A batch, nested as the example was; n samples.

        Returns:
            z₀: a tensor, or a tuple of tensors, each with n samples as first axis.
        """
        inputs = [self._cast(leaf) for leaf in flatten_inputs(x) if isinstance(leaf, Tensor)]
        n = inputs[0].shape[0]
        if self._channels_last:
            inputs = [channels_last(value) for value in inputs]
        with torch.no_grad():
            values = self._bottom(n, *inputs)
        packed = tuple(layout.pack(value, n) for layout, value in zip(self._blueprint.z0_layouts, values, strict=True))
        return packed[0] if len(packed) == 1 else packed

    @computing()
    @plain()
    def primal(self, z0: Tensor | Residuals) -> tuple[Tensor, Residuals]:
        """Run the layers of θ₂ at θ̄₂.

        Args:
            z0: What `bottom` returned, for n samples.

        Returns:
            f(x), (n, d), and the residuals: all that `tangent` needs of these samples, each with n samples as first
            axis.
        """
        n, values = self._unpack_z0(z0)
        with torch.no_grad():
            features, *kept = self._primal(n, *values)
        packed = [layout.pack(value, n) for layout, value in zip(self._blueprint.residual_layouts, kept, strict=True)]
        if not packed:  # J does not depend on x: only the number of samples matters
            packed = [features.new_empty((n, 0))]
        return features, tuple(packed)

    @computing()
    @single_precision()
    def tangent(self, w2: Mapping[str, Tensor], residuals: Residuals) -> Tensor:
        """Return J(x) w₂, (n, d): linear in w₂, and differentiable by autograd.

        Args:
            w2: A tensor for each name of θ₂, of its shape.
            residuals: What `primal` returned, for n samples (or an index into the first axis of each).

        Raises:
            ConfigurationError: A name or a shape is not that of θ₂.
        """
        dtype = self.dtype
        given = [self._checked(name, w2, dtype) for name in self._blueprint.names]
        if len(w2) != len(given):
            unknown = next(name for name in w2 if name not in self._blueprint.names)
            raise ConfigurationError(
                f"w2 has the name {unknown!r}, which θ₂ has not.{did_you_mean(unknown, self._blueprint.names)}"
            )
        values = [
            layout.unpack(value) for layout, value in zip(self._blueprint.residual_layouts, residuals, strict=False)
        ]
        moved: Tensor = self._tangent(residuals[0].shape[0], *given, *values)
        return moved

    def transpose(self, u: Tensor, residuals: Residuals) -> dict[str, Tensor]:
        """Return Σₙ J(xₙ)ᵀ uₙ, with the names and shapes of θ₂.

        Args:
            u: One cotangent for each sample, (n, d).
            residuals: What `primal` returned for these samples.
        """
        return self._pull(u, residuals, layers=False)[0]

    def layer_calls(self, u: Tensor, residuals: Residuals) -> tuple[dict[str, Tensor], list[LayerCall]]:
        """Return Σₙ J(xₙ)ᵀ uₙ as `transpose` does, and where each weight of θ₂ met its input and its cotangent.

        Args:
            u: One cotangent for each sample, (n, d).
            residuals: What `primal` returned for these samples.
        """
        return self._pull(u, residuals, layers=True)

    @computing()
    @plain()
    def sample_gradients(self, cotangents: Sequence[Tensor], residuals: Residuals) -> list[SampleGradients]:
        """Return J(xₙ)ᵀ u of each sample by itself, for several cotangents u.

        Args:
            cotangents: Each (d,), the same of all samples, or (n, d).
            residuals: What `primal` returned for n samples.
        """
        cotangents = [u.to(residuals[0].device, self.dtype) for u in cotangents]
        layouts = self._blueprint.residual_layouts
        return self._blueprint.per_sample(self._tangent, self.theta2, residuals, layouts, cotangents)

    @computing()
    @plain()
    def _pull(self, u: Tensor, residuals: Residuals, layers: bool) -> tuple[dict[str, Tensor], list[LayerCall]]:
        values = [
            layout.unpack(value) for layout, value in zip(self._blueprint.residual_layouts, residuals, strict=False)
        ]
        u = u.to(residuals[0].device, self.dtype)
        return self._blueprint.transposer(self._tangent, self.theta2, values, u, layers=layers)

    @computing()
    @single_precision()
    def network(self, theta2: Mapping[str, Tensor], z0: Tensor | Residuals) -> Tensor:
        """Return f(x; θ₂), (n, d), for any θ₂: the ordinary network above z₀, differentiable by autograd (fine-tuning).

        Args:
            theta2: A tensor for each name of θ₂, of its shape.
            z0: What `bottom` returned.
        """
        n, values = self._unpack_z0(z0)
        dtype = self.dtype
        return self._network(n, *[self._checked(name, theta2, dtype) for name in self._blueprint.names], *values)[0]

    @computing()
    @plain()
    def at(self, theta2: Mapping[str, Tensor]) -> Linearization:
        """Return the linearization of the same network at another θ̄₂; z₀ is the same."""
        checked = {name: self._checked(name, theta2, self.dtype) for name in self._blueprint.names}
        parts = self._blueprint.parts
        moved = Linearization(self._blueprint, {name: value.to(parts.values[name]) for name, value in checked.items()})
        return moved.to(device=self.device, dtype=self.dtype)

    @computing()
    @plain()
    def full_precision(self) -> Linearization:
        """Return the linearization in the precision of the captured network, at its θ̄₂, where this one is in half."""
        if self.dtype not in (torch.float16, torch.bfloat16):
            return self
        values = self._blueprint.parts.values
        return Linearization(self._blueprint, {name: values[name] for name in self._blueprint.names}).to(self.device)

    @plain()
    def share_constants(self, other: Linearization) -> None:
        """Take the weights that a linearization of the same network has too from there, which frees one's own."""
        mine, theirs = self._blueprint.parts, other._blueprint.parts
        for name, value in mine.values.items():
            if _same(value, theirs.values.get(name)):
                mine.values[name] = theirs.values[name]
        for program, attributes in self._blueprint.attributes.items():
            module, source = self.get_submodule(f"_{program}"), other.get_submodule(f"_{program}")
            known = {theirs.constants.get(node): a for a, node in other._blueprint.attributes[program].items()}
            for attribute, node in attributes.items():
                constant = mine.constants.get(node)
                if constant is not None and constant in known:
                    value = source.get_buffer(known[constant])
                    if _same(module.get_buffer(attribute), value):
                        module.register_buffer(attribute, value, persistent=False)

    def report(self) -> Report:
        """Say what was built, and which operations have no rule of their own."""
        blueprint = self._blueprint
        rules = Counter(rule for _, _, rule in blueprint.by_rule)
        rules.pop("fallback", None)
        return Report(
            theta2={name: tuple(value.shape) for name, value in self.theta2.items()},
            folded=[f"{f.mean.rpartition('.')[0]} -> {f.weight.rpartition('.')[0]}" for f in blueprint.foldings],
            rules=dict(rules),
            fallbacks=[(node, operation) for node, operation, rule in blueprint.by_rule if rule == "fallback"],
            nodes={
                name: sum(node.op == "call_function" for node in graph.nodes)
                for name, graph in blueprint.graphs.items()
                if name != "network"
            },
            z0_bytes=self.bytes_per_sample["z0"],
            residual_bytes=self.bytes_per_sample["residuals"],
            notes=list(blueprint.notes),
            checks=list(blueprint.checks),
        )

    def _unpack_z0(self, z0: Tensor | Residuals) -> tuple[int, list[Tensor]]:
        packed = (z0,) if isinstance(z0, Tensor) else tuple(z0)
        values = [
            layout.unpack(self._cast(value)) for layout, value in zip(self._blueprint.z0_layouts, packed, strict=True)
        ]
        return packed[0].shape[0], values

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype) if value.dtype.is_floating_point else value.to(self.device)

    def _checked(self, name: str, given: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        if name not in given:
            raise ConfigurationError(f"the name {name!r} of θ₂ is missing; given are {', '.join(list(given)[:6])}")
        value, shape = given[name], self.theta2[name].shape
        if value.shape != shape:
            raise ConfigurationError(f"{name!r} has the shape {tuple(value.shape)}; θ₂ has {tuple(shape)}")
        return value if value.dtype == dtype else value.to(dtype)

    _bottom: fx.GraphModule
    _primal: Callable[..., tuple[Tensor, ...]]
    _tangent: fx.GraphModule
    _network: Callable[..., tuple[Tensor, ...]]


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
