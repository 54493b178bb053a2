"""Jᵀu of each sample by itself, factored where a layer has many weights: what leverages are computed from.

A weight of (o, i) that met its input at p positions has of one sample the gradient ``Σ_p δ_p a_pᵀ``, with a the input
and δ the cotangent of the output. Both factors are far smaller than the product, so they are what is returned. Biases,
gains and whatever else θ₂ holds are returned as they are. The transposed program of one sample is traced once, and
mapped over the samples of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gradfeat.contexts import alone
from gradfeat.linearization.layout import Layout
from gradfeat.linearization.record import LayerCall, Recorder
from gradfeat.linearization.rules.fallback import node_jvp
from gradfeat.linearization.transposed import drop_forward

_MOST = 16  # traced programs that are kept: one for each shape of a sample


@dataclass(frozen=True)
class SampleGradients:
    """Jᵀu of the samples of a batch, one cotangent each.

    Attributes:
        factors: By the names of weights: for each use of one its inputs a, (n, p, i · taps), and cotangents δ,
            (n, p, o). The gradient is ``Σ δᵀ a`` over uses, of the weight's shape.
        whole: By the other names of θ₂: the gradients, (n, ...).
    """

    factors: dict[str, list[tuple[Tensor, Tensor]]]
    whole: dict[str, Tensor]


@dataclass
class PerSample:
    """Pulls cotangents back for each sample of a batch by itself.

    Args:
        names: The names of θ₂, in the order of the tangent program's first placeholders.
    """

    names: Sequence[str]
    _traced: dict[Any, _Program | None] = field(default_factory=dict)

    def __call__(
        self,
        program: fx.GraphModule,
        theta2: Mapping[str, Tensor],
        residuals: Sequence[Tensor],
        layouts: Sequence[Layout],
        cotangents: Sequence[Tensor],
    ) -> list[SampleGradients]:
        """Return Jᵀu of each sample, for several cotangents.

        Args:
            program: The tangent program.
            theta2: θ̄₂, for shapes.
            residuals: What `Linearization.primal` returned for n samples.
            layouts: Of the residuals.
            cotangents: Each (d,), of all samples, or (n, d), one a sample.
        """
        constants = dict(program.named_buffers())
        parameters = [theta2[name] for name in self.names]

        def unpacked(*of_one: Tensor) -> list[Tensor]:
            return [layout.unpack(value[None]) for layout, value in zip(layouts, of_one, strict=False)]

        first = cotangents[0] if cotangents[0].ndim == 1 else cotangents[0][0]
        values, every = unpacked(*(value[0] for value in residuals)), list(constants.values())
        key = tuple((v.shape, v.stride(), v.dtype, v.device) for v in (*values, *every, first))
        if key not in self._traced and len(self._traced) < _MOST:
            with alone():
                arguments = (parameters, values, every, first[None])
                self._traced[key] = _trace(program, self.names, list(constants), arguments)
        traced = self._traced.get(key)
        if traced is None:
            tangent = _Tangent(program, self.names, list(constants))
            return [self._one_by_one(tangent, (parameters, every), unpacked, residuals, u) for u in cotangents]

        def inputs(*of_one: Tensor) -> tuple[Tensor, ...]:
            return tuple(traced.inputs(parameters, unpacked(*of_one), every))

        def pull(u: Tensor, *of_one: Tensor) -> tuple[Tensor, ...]:
            return tuple(traced.pull(parameters, unpacked(*of_one), every, u[None]))

        over = (0,) * len(residuals)
        a = torch.func.vmap(inputs, in_dims=over)(*residuals) if traced.calls else ()
        found = []
        for u in cotangents:
            parts = torch.func.vmap(pull, in_dims=(None if u.ndim == 1 else 0, *over))(u, *residuals)
            whole = dict(zip(traced.rest, parts, strict=False))
            factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
            for name, x, delta in zip(traced.calls, a, parts[len(traced.rest) :], strict=True):
                factors.setdefault(name, []).append((x, delta))
            found.append(SampleGradients(factors, whole))
        return found

    def _one_by_one(
        self,
        tangent: _Tangent,
        arguments: Sequence[Any],
        of_one: Callable[..., list[Tensor]],
        residuals: Any,
        u: Tensor,
    ) -> SampleGradients:
        """Return the same where the program cannot be traced: all gradients whole, sample by sample."""
        parameters, every = arguments
        rows = [
            tangent.pull(
                parameters, of_one(*(v[i] for v in residuals)), every, (u if u.ndim == 1 else u[i])[None], self.names
            )[0]
            for i in range(len(residuals[0]))
        ]
        return SampleGradients({}, {name: torch.stack([row[j] for row in rows]) for j, name in enumerate(self.names)})


@dataclass(frozen=True)
class _Program:
    """The traced programs of one sample.

    Attributes:
        inputs: θ₂, residuals, constants -> the inputs of each call of a layer, (p, i · taps).
        pull: θ₂, residuals, constants, u -> gradients of `rest`, then the cotangents of each call, (p, o).
        calls: The weight of each call.
        rest: The other names of θ₂.
    """

    inputs: fx.GraphModule
    pull: fx.GraphModule
    calls: list[str]
    rest: list[str]


def _trace(
    program: fx.GraphModule, names: Sequence[str], attributes: Sequence[str], arguments: tuple[Any, ...]
) -> _Program | None:
    """Return the programs of one sample; None where they cannot be traced or mapped."""
    if any(node.target is node_jvp for node in program.graph.nodes):
        return None
    tangent = _Tangent(program, names, attributes)
    calls = tangent.calls(*arguments[:3])
    uses = {name: len(node.users) for name, node in zip(names, tangent.weights, strict=True)}
    # a weight that is used otherwise too has no factors
    whole = [name for name in names if not [call.name for call in calls].count(name) == uses[name] > 0]
    kept = [i for i, call in enumerate(calls) if call.name not in whole]

    def inputs(theta2: Any, values: Any, constants: Any) -> list[Tensor]:
        found = tangent.calls(theta2, values, constants)
        return [found[i].inputs() for i in kept]

    def pull(theta2: Any, values: Any, constants: Any, u: Any) -> list[Tensor]:
        gradients, outputs = tangent.pull(theta2, values, constants, u, whole)
        return [*gradients, *(outputs[i] for i in kept)]

    try:
        of_inputs, of_pull = make_fx(inputs)(*arguments[:3]), make_fx(pull)(*arguments)
    except RuntimeError:  # an operation that reads values, say
        return None
    for traced in (of_inputs, of_pull):
        drop_forward(traced)
    return _Program(of_inputs, of_pull, [calls[i].name for i in kept], whole)


class _Tangent:
    """A tangent program, run with what its layers meet recorded.

    Args:
        program: The program.
        names: The names of θ₂.
        attributes: The names of its constants.

    Attributes:
        weights: Its placeholders of θ₂, which follow the number of samples.
    """

    def __init__(self, program: fx.GraphModule, names: Sequence[str], attributes: Sequence[str]) -> None:
        self._program, self._names, self._attributes = program, names, attributes
        self.weights = [node for node in program.graph.nodes if node.op == "placeholder"][1 : 1 + len(names)]
        self._placeholders = {node.name: name for node, name in zip(self.weights, names, strict=True)}

    def _recorder(self, constants: Sequence[Tensor]) -> Recorder:
        return Recorder(self._program, self._placeholders, dict(zip(self._attributes, constants, strict=True)))

    def calls(self, theta2: Sequence[Tensor], values: Sequence[Tensor], constants: Sequence[Tensor]) -> list[LayerCall]:
        """Return the uses of weights in layers, for one sample."""
        recorder = self._recorder(constants)
        recorder.run(1, *[torch.zeros_like(value) for value in theta2], *values)
        return recorder.calls

    def pull(
        self,
        theta2: Sequence[Tensor],
        values: Sequence[Tensor],
        constants: Sequence[Tensor],
        u: Tensor,
        whole: Sequence[str],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradients of some names of θ₂, and the cotangents of the uses of weights, each (p, o)."""
        recorder = self._recorder(constants)
        with torch.enable_grad():
            w2 = {name: torch.zeros_like(v).requires_grad_() for name, v in zip(self._names, theta2, strict=True)}
            moved = recorder.run(1, *w2.values(), *values)
            wanted = [*(w2[name] for name in whole), *(call.output for call in recorder.calls)]
            found = torch.autograd.grad(moved, wanted, u, materialize_grads=True)
        outputs = [
            replace(call, output=g).outputs() for call, g in zip(recorder.calls, found[len(whole) :], strict=True)
        ]
        return list(found[: len(whole)]), outputs
