"""The network above z₀ as it is trained with its batch norms in training mode.

The programs have batch norms folded into the layers of θ₂. Here they stand behind these layers again, and the network's
own weights, gains and offsets are free. Of a minibatch they take its own mean and variance, and keep running ones, as
torch's do. `TrainableNetwork.folded` is a θ₂ of the programs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gradfeat.contexts import plain
from gradfeat.linearization.fold import Folding
from gradfeat.linearization.lengths import LengthGroups
from gradfeat.linearization.linearization import Linearization, Residuals

MOMENTUM = 0.1
"""Share of a minibatch in the running mean and variance: torch's default."""


def has_batch_norms(linearization: Linearization) -> bool:
    """Whether a layer of θ₂ has a folded batch norm whose offset is in θ₂ too, in single or double precision.

    Programs of several lengths have none: a minibatch would have as many means as lengths.
    """
    plain_dtype = linearization.dtype in (torch.float32, torch.float64)
    return bool(_trainable(linearization)) and plain_dtype and not isinstance(linearization, LengthGroups)


def _trainable(linearization: Linearization) -> list[Folding]:
    names = linearization.theta2
    return [folding for folding in linearization.foldings if folding.weight in names and folding.bias in names]


class TrainableNetwork(nn.Module):
    """f(x; θ₂) above z₀ in the network's own parameters, with the batch norms of θ₂'s layers in training mode.

    In evaluation mode (`eval`) it is what `Linearization.network` returns for `folded`.

    Args:
        linearization: Of one length; it starts as f(x; θ̄₂).
    """

    __call__: Callable[..., Any] = nn.Module.__call__
    __getattr__ = nn.Module.__getattr__

    @plain()
    def __init__(self, linearization: Linearization) -> None:
        super().__init__()
        self._names = list(linearization.theta2)
        self._foldings = _trainable(linearization)
        self._unpack = linearization._unpack_z0
        own = _own_values(linearization, self._foldings)
        before_norms = {folding.bias for folding in self._foldings}  # a batch norm takes them off again
        self.weights = nn.ParameterList(
            nn.Parameter(own.get(name, value).clone(), requires_grad=name not in before_norms)
            for name, value in linearization.theta2.items()
        )
        self.norms = nn.ModuleList(_BatchNorm(folding, own) for folding in self._foldings)
        self._program = self._with_norms(linearization.programs["network"])

    def forward(self, z0: Tensor | Residuals) -> Tensor:
        """Return f(x; θ₂), (n, d), of samples whose z₀ is known."""
        n, values = self._unpack(z0)
        return cast(Tensor, self._program(n, *self.weights, *values)[0])

    def folded(self) -> dict[str, Tensor]:
        """Return θ₂ by the names of the programs, each batch norm with its running mean and variance."""
        values = {name: value.detach().clone() for name, value in zip(self._names, self.weights, strict=True)}
        for folding, norm in zip(self._foldings, self.norms, strict=True):
            values[folding.weight], values[folding.bias] = folding.fold(values | cast(_BatchNorm, norm).state())
        return values

    def _with_norms(self, program: fx.GraphModule) -> fx.GraphModule:
        """Return the `network` program with batch norms behind the layers that they were folded into."""
        root = nn.Module()
        for name, buffer in program.named_buffers():
            root.register_buffer(name, buffer, persistent=False)
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.graph, {}))
        placeholders = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
        for k, (folding, norm) in enumerate(zip(self._foldings, self.norms, strict=True)):
            (layer,) = placeholders[f"theta2_{self._names.index(folding.weight)}"].users
            if not folding.had_bias:
                layer.args = (*layer.args[:2], None, *layer.args[3:])
            root.add_module(f"norm_{k}", norm)
            with graph.inserting_after(layer):
                normed = graph.call_module(f"norm_{k}", (layer,))
            layer.replace_all_uses_with(normed)
            normed.args = (layer,)
        return fx.GraphModule(root, graph)


class _BatchNorm(nn.Module):
    """A batch norm; its running mean and variance are parameters without gradient, as what is kept of a training is."""

    __call__: Callable[..., Any] = nn.Module.__call__
    __getattr__ = nn.Module.__getattr__

    def __init__(self, folding: Folding, own: dict[str, Tensor]) -> None:
        super().__init__()
        self.folding = folding
        self.mean = nn.Parameter(own[folding.mean].clone(), requires_grad=False)
        self.variance = nn.Parameter(own[folding.variance].clone(), requires_grad=False)
        self.gamma = None if folding.gamma is None else nn.Parameter(own[folding.gamma].clone())
        self.beta = None if folding.beta is None else nn.Parameter(own[folding.beta].clone())

    def forward(self, z: Tensor) -> Tensor:
        several = z.numel() > z.shape[1]  # a single value has no variance
        return functional.batch_norm(
            z,
            self.mean,
            self.variance,
            self.gamma,
            self.beta,
            training=self.training and several,
            momentum=MOMENTUM,
            eps=self.folding.eps,
        )

    def state(self) -> dict[str, Tensor]:
        """Return its values by the network's names."""
        folding = self.folding
        names = (folding.mean, folding.variance, folding.gamma, folding.beta)
        values = (self.mean, self.variance, self.gamma, self.beta)
        return {name: value.detach() for name, value in zip(names, values, strict=True) if name and value is not None}


def _own_values(linearization: Linearization, foldings: list[Folding]) -> dict[str, Tensor]:
    """Return the network's own values, by name, of the folded layers, under which it is where θ̄₂ is."""
    original, theta2 = linearization.original, linearization.theta2
    own: dict[str, Tensor] = {}
    for folding in foldings:
        names = (folding.weight, folding.gamma, folding.beta, folding.mean, folding.variance)
        values = {name: original[name] for name in (*names, folding.bias if folding.had_bias else None) if name}
        weight, bias = (
            theta2[folding.weight].to(values[folding.weight]),
            theta2[folding.bias].to(values[folding.weight]),
        )
        if not all(map(torch.equal, folding.fold(values), (weight, bias))):  # θ̄₂ has moved
            values |= folding.unfold(values, weight, bias)
        own |= values
    like = next(iter(theta2.values()))
    return {name: value.to(like.device, like.dtype) for name, value in own.items()}
