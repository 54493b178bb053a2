"""What the weights of θ₂ meet in the tangent program: the input z and the output h of each ``h = w̃ * z``.

Their second moments are the Kronecker factors of the gradient features (see `gradfeat.solvers.kronecker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from gradfeat.linearization.one_pixel import one_pixel
from gradfeat.linearization.products import linear_sum, normalized_input, normalized_linear_sum
from gradfeat.linearization.schema import by_name

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCall:
    """One use of a weight of θ₂.

    Attributes:
        name: The weight's name in θ₂; it has the shape (o, i) or (o, i, h, w).
        z: The layer's input.
        output: What the operation returned; or, where a cotangent was pulled back, the gradient in it.
        window: For a convolution its (kernel, dilation, padding, stride), each a pair; None for a linear layer.
    """

    name: str
    z: Tensor
    output: Tensor
    window: tuple[Sequence[int], ...] | None

    def inputs(self) -> Tensor:
        """Return what multiplies the weight's rows at each position, (positions, i · h · w)."""
        if self.window is None:
            return self.z.reshape(-1, self.z.shape[-1])
        kernel, dilation, padding, stride = self.window
        if tuple(kernel) == (1, 1) and tuple(padding) == (0, 0):
            return self.z[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).reshape(-1, self.z.shape[1])
        patches = F.unfold(self.z, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])

    def channels(self) -> Tensor:
        """Return the layer's input channels at each position of its input, (positions, i)."""
        return self.z.reshape(-1, self.z.shape[-1]) if self.window is None else _rows(self.z)

    def outputs(self) -> Tensor:
        """Return the output, or the gradient in it, at each position, (positions, o)."""
        return self.output.reshape(-1, self.output.shape[-1]) if self.window is None else _rows(self.output)


def _rows(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


class Recorder(fx.Interpreter):
    """Runs a tangent program and keeps its `LayerCall`s; a weight that is used otherwise has none.

    Args:
        program: The tangent program.
        names: θ₂'s names by the program's placeholders.
        constants: Values of the program's attributes, by name.
    """

    def __init__(self, program: fx.GraphModule, names: Mapping[str, str], constants: Mapping[str, Tensor]) -> None:
        super().__init__(program)
        self._names = names
        self._constants = constants
        self.calls: list[LayerCall] = []

    def fetch_attr(self, target: str) -> Any:
        """Return a constant of the program."""
        return self._constants[target]

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation; keep it if it applies a weight of θ₂."""
        result = super().run_node(n)
        if n.op == "call_function" and len(n.args) > 1 and isinstance(n.args[1], fx.Node):
            weight = n.args[1]
            name = self._names.get(weight.name) if weight.op == "placeholder" else None
            if name is not None and isinstance(n.args[0], fx.Node):
                arguments, _ = self.fetch_args_kwargs_from_env(n)
                window = _window(n.target, arguments)
                if window is not None:
                    z = arguments[0]
                    if n.target is normalized_linear_sum:
                        z = normalized_input(z, arguments[4][0], arguments[5][0])
                    self.calls.append(LayerCall(name, z, result, window or None))
        return result


def _window(target: Any, arguments: Sequence[Any]) -> tuple[Sequence[int], ...] | None:
    """Return a convolution's window, an empty one for a linear layer, None for anything else."""
    if target in (aten.linear.default, linear_sum, normalized_linear_sum):
        return ()
    kernel = arguments[1].shape[2:]
    if target is one_pixel and len(kernel) == 2:
        return kernel, (1, 1), (0, 0), (1, 1)
    if target is not aten.conv2d.default:
        return None
    given = by_name(target, arguments)
    return (kernel, given.dilation, given.padding, given.stride) if given.groups == 1 else None
