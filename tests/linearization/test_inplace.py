"""Writes in place: which are rewritten, and that a network with them keeps its values and its tangent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradfeat.linearization.inplace import write_out_of_place
from gradfeat.testing import check_linearization


class Written(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def _windows(y: Tensor) -> Tensor:
    mask = torch.zeros(6)
    for count, (start, stop) in enumerate(((0, 2), (2, 5), (5, 6))):
        mask[start:stop] = count + 1
    return y * mask


def _columns(y: Tensor) -> Tensor:
    grid = y.new_zeros(y.shape[0], 2, 3)
    grid[:, 1, 1:] = y[:, :2].sin()
    grid[:, 0] = y[:, 3:]
    grid[:, :, 0] += 3.0
    return grid.flatten(1)


def _no_autocast(y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = torch.tanh(y)
        z = y * y
    return y + z


def _later_view(y: Tensor) -> Tensor:
    y = y * 1.0
    whole = y.view(-1, 2, 3)
    y[:, 0] = 5.0
    return whole.flatten(1).sin()


def _view_written(y: Tensor) -> Tensor:
    y = y * 1.0
    y.view(-1, 2, 3)[:, 1] *= 2.0
    return y.cos()


def _nested(y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = torch.tanh(y)
        with torch.autocast("cpu", enabled=True):
            scale = y.square() + 1.0
    return y * scale


def _promoted(y: Tensor) -> Tensor:
    z = torch.zeros(6)
    z.add_(torch.linspace(0, 1, 6, dtype=torch.float64))
    return y * z


def _autocast(y: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=True):
        return torch.tanh(y).float()


REWRITTEN = {"windows": _windows, "columns": _columns, "autocast off": _no_autocast}
LEFT = {
    "view read later": _later_view,
    "view written, base read": _view_written,
    "region in a region": _nested,
    "wider numbers added": _promoted,
}


@pytest.mark.parametrize("name", [*REWRITTEN, *LEFT])
def test_network(name: str) -> None:
    torch.manual_seed(0)
    network = Written({**REWRITTEN, **LEFT}[name]).eval()
    check_linearization(network, torch.randn(3, 4), "*")


@pytest.mark.parametrize("name", [*REWRITTEN, *LEFT, "autocast on"])
def test_what_is_rewritten(name: str) -> None:
    network = Written({**REWRITTEN, **LEFT, "autocast on": _autocast}[name]).eval()
    batch = torch.export.Dim("batch")
    x = torch.randn(3, 4)
    with torch.no_grad():
        program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
        expected = network(x)
        done = write_out_of_place(program.graph)
        program.graph.lint()
        program.graph_module.recompile()
        assert torch.equal(program.module()(x), expected)  # rewritten or not
    assert done == (name in REWRITTEN)
    mutable = [node for node in program.graph.nodes if getattr(getattr(node.target, "_schema", None), "is_mutable", 0)]
    assert not done or not mutable
