"""Batch-norm folding: a batch norm in evaluation mode behind a convolution or linear layer becomes part of it.

``γ (W * z + b - μ) / √(σ² + ε) + β`` is the layer with weight ``s W`` and bias ``β + s (b - μ)``, with
``s = γ / √(σ² + ε)``, channel by channel: for every stride, padding mode, dilation and number of groups, transposed or
not, with or without b, γ and β. In θ₂ the layer's names then mean the folded weight and bias. `Folding.unfold` writes a
folded change back into the network's own parameters, so that a merged model keeps the network's architecture.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from gradfeat.linearization.capture import Captured
from gradfeat.linearization.schema import by_name

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_LAYERS = {aten.linear.default, *_CONVOLUTIONS, *_TRANSPOSED}
_BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}


@dataclass(frozen=True)
class Folding:
    """One batch norm folded into one layer.

    Attributes:
        weight: Name of the layer's weight, now the folded one.
        bias: Name of the layer's bias, now the folded one (it may be new).
        had_bias: Whether the layer had a bias of its own.
        gamma: Name of the batch norm's weight, or None.
        beta: Name of the batch norm's bias, or None.
        mean: Name of the running mean.
        variance: Name of the running variance.
        eps: The batch norm's ε.
        groups: Groups of a transposed convolution, whose weight is (in, out / groups, ...); 0 for other layers.
    """

    weight: str
    bias: str
    had_bias: bool
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float
    groups: int

    def scale_weight(self, weight: Tensor, s: Tensor) -> Tensor:
        """Multiply each output channel of `weight` by its entry of `s`, (out,)."""
        if self.groups:
            grouped: Tensor = weight.unflatten(0, (self.groups, -1))  # (groups, in / groups, out / groups, ...)
            shape = [self.groups, 1, weight.shape[1]] + [1] * (weight.ndim - 2)
            return (grouped * s.reshape(shape)).flatten(0, 1)
        return weight * s.reshape([-1] + [1] * (weight.ndim - 1))

    def fold(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the folded weight and bias of the network's own values in `state`."""
        spread = torch.rsqrt(state[self.variance].double() + self.eps)
        s = spread if self.gamma is None else spread * state[self.gamma].double()
        bias = -state[self.mean].double()
        if self.had_bias:
            bias = bias + state[self.bias].double()
        bias = bias * s
        if self.beta is not None:
            bias = bias + state[self.beta].double()
        dtype = state[self.weight].dtype
        return self.scale_weight(state[self.weight].double(), s).to(dtype), bias.to(dtype)

    def unfold(self, state: dict[str, Tensor], weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Return new values of the network's own parameters under which its layer computes (`weight`, `bias`) folded.

        The layer's weight takes the change divided by s. A channel with s = 0 cannot; its batch norm is set to the
        identity. Without β, the running mean carries the bias.
        """
        spread = torch.sqrt(state[self.variance].double() + self.eps)
        gamma = torch.ones_like(spread) if self.gamma is None else state[self.gamma].double()
        lost = gamma.abs() < 1e-12
        gamma = torch.where(lost, spread, gamma)
        s = gamma / spread
        new = {self.weight: self.scale_weight(weight.double(), 1 / s)}
        if self.gamma is not None:
            new[self.gamma] = gamma
        own = state[self.bias].double() if self.had_bias else torch.zeros_like(s)
        mean = torch.where(lost, own, state[self.mean].double())
        if self.beta is not None:
            new[self.beta] = bias.double() - s * (own - mean)
        else:
            mean = own - bias.double() / s
        new[self.mean] = mean
        return {name: value.to(state[name].dtype) for name, value in new.items()}


def fold_batchnorms(captured: Captured, theta2: set[str], by_module: set[str]) -> tuple[list[Folding], set[str]]:
    """Fold every batch norm that follows a layer, in place of the captured graph.

    Args:
        captured: The graph; changed in place.
        theta2: Names of θ₂ in the network's own parameters.
        by_module: Those of them that were selected by a module's name or "auto": a folded layer of such a module has
            its bias in θ₂.

    Returns:
        What was folded, and the names of θ₂ after folding.
    """
    name_of = captured.constants
    done: list[Folding] = []
    after = set(theta2)
    for norm in [node for node in captured.graph.nodes if node.op == "call_function" and node.target in _BATCH_NORMS]:
        folding = _match(captured, norm)
        if folding is None:
            continue
        affine = {name for name in (folding.gamma, folding.beta) if name}
        if affine & theta2 and folding.weight not in theta2:
            continue  # the batch norm itself was asked for, and not its layer
        _apply(captured, cast(fx.Node, norm.args[0]), norm, folding)
        after -= affine
        if folding.weight in theta2 and (
            {folding.gamma, folding.beta, folding.bias} & theta2 or folding.weight in by_module
        ):
            after.add(folding.bias)
        done.append(folding)
    if done:
        captured.graph.eliminate_dead_code()
        for node, name in list(name_of.items()):
            if not node.users and name not in theta2:
                captured.graph.erase_node(node)
                del name_of[node]
    return done, after


def _match(captured: Captured, norm: fx.Node) -> Folding | None:
    """Return how `norm` folds into the layer before it, or None where it must stay."""
    given = by_name(norm.target, norm.args, norm.kwargs)
    layer, gamma, beta, mean, variance = given.input, given.weight, given.bias, given.running_mean, given.running_var
    training = getattr(given, "training", False)  # one operation is of evaluation mode alone
    if training or mean is None or not isinstance(layer, fx.Node) or layer.op != "call_function":
        return None
    if len(layer.users) != 1 or layer is captured.output:
        return None  # something else sees the value before the batch norm
    if layer.target not in _LAYERS:
        return None
    of_layer = by_name(layer.target, layer.args, layer.kwargs)
    groups = of_layer.groups if layer.target in _TRANSPOSED else 0
    weight, bias = of_layer.weight, of_layer.bias
    if layer.meta["val"].ndim != weight.meta["val"].ndim:
        return None  # a linear layer's channels are the last axis, the batch norm's the second
    used = [node for node in (weight, bias, gamma, beta, mean, variance) if node is not None]
    if any(node not in captured.constants or len(node.users) != 1 for node in used):
        return None  # shared or computed values stay as they are
    name_of = {node: captured.constants[node] for node in used}
    own = name_of[weight]
    if own not in captured.parameters:
        return None
    new = own.removesuffix("weight") + "bias" if own.endswith("weight") else own + "_bias"
    if bias is None and new in captured.values:
        return None
    return Folding(
        weight=own,
        bias=new if bias is None else name_of[bias],
        had_bias=bias is not None,
        gamma=name_of.get(gamma),
        beta=name_of.get(beta),
        mean=name_of[mean],
        variance=name_of[variance],
        eps=given.eps,
        groups=groups,
    )


def _apply(captured: Captured, layer: fx.Node, norm: fx.Node, folding: Folding) -> None:
    weight, bias = folding.fold(captured.values)
    captured.values[folding.weight], captured.values[folding.bias] = weight, bias
    if folding.had_bias:
        node = captured.constant(folding.bias)
    else:
        with captured.graph.inserting_before(captured.inputs[0]):
            node = captured.graph.placeholder("folded_" + folding.bias.replace(".", "_"))
        node.meta["val"] = cast(fx.Node, norm.args[3]).meta["val"]
        captured.constants[node] = folding.bias
        captured.parameters.insert(captured.parameters.index(folding.weight) + 1, folding.bias)
    layer.args = (*layer.args[:2], node, *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
    layer.meta["val"] = norm.meta["val"] if isinstance(norm.meta["val"], Tensor) else norm.meta["val"][0]
    if norm.target is aten.batch_norm.default:
        norm.replace_all_uses_with(layer)
        if captured.output is norm:
            captured.output = layer
    else:
        for user in list(norm.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(layer)
                if captured.output is user:
                    captured.output = layer
