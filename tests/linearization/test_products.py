"""Layers behind a normalization, and tangents by torch's backward kernels: exact, with all derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradfeat.linearization import linearize
from gradfeat.linearization.normalized import normalized_tangent
from gradfeat.linearization.products import linear_sum, normalized_linear_sum, product_sum
from gradfeat.testing import check_linearization


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A normalization whose output goes through two layers, or also around them; its input moves if θ₂ has `first`."""

    def __init__(self, norm: nn.Module, around: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), norm
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5, bias=False)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(x))
        y = torch.tanh(self.left(z)) * self.right(z)
        return (torch.cat([y, z], -1) if self.around else y).mean(1)


def _block(kind: str, around: bool) -> Block:
    torch.manual_seed(0)
    norms = {"layer": nn.LayerNorm(4), "no-shift": nn.LayerNorm(4, bias=False), "rms": nn.RMSNorm(4)}
    block = Block(norms[kind], around).double()
    for parameter in block.norm.parameters():
        nn.init.normal_(parameter)
    return block.eval()


THETA2 = ["*", "norm", ["norm", "left"], ["norm.weight", "left.weight", "right"], ["first", "left", "right"]]


@pytest.mark.parametrize("kind", ["layer", "no-shift", "rms"])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("theta2", THETA2, ids=str)
def test_a_layer_behind_a_normalization(kind: str, around: bool, theta2: str | list[str]) -> None:
    check_linearization(_block(kind, around), draw(3, 2, 3), theta2)


@pytest.mark.parametrize("theta2", ["*", ["norm", "left", "right"]], ids=str)
def test_factors_see_the_layer_s_input(theta2: str | list[str]) -> None:
    lin = linearize(_block("layer", False), draw(3, 2, 3), theta2)
    x, u = draw(6, 2, 3, seed=1), draw(6, 5, seed=2)
    residuals = lin.primal(lin.bottom(x))[1]
    for _ in range(3):  # from the second batch of a size on by a traced program
        gradients, calls = lin.layer_calls(u, residuals)
        assert {"left.weight", "right.weight"} <= {call.name for call in calls}
        for call in calls:
            torch.testing.assert_close(call.outputs().T @ call.inputs(), gradients[call.name])


def test_normalized_values_alone_are_kept() -> None:
    theta2 = ["norm", "left", "right"]
    programs = linearize(_block("layer", False), draw(3, 2, 3), theta2).programs
    residuals = [node for node in programs["tangent"].graph.nodes if node.op == "placeholder"][1 + 4 :]
    reading = [node for node in programs["tangent"].graph.nodes if node.target is normalized_linear_sum]
    assert len(reading) == 2
    assert len({node.args[0] for node in reading} & set(residuals)) == 1  # x̂, in place of the layers' input


@pytest.mark.parametrize("axes", [1, 2])
def test_normalized_tangent_is_the_derivative(axes: int) -> None:
    x, tangent = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    dims = list(range(-axes, 0))

    def normalize(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[3 - axes :], eps=1e-5)

    r = (x.var(dims, correction=0, keepdim=True) + 1e-5).rsqrt()
    expected = torch.func.jvp(normalize, (x,), (tangent,))[1]
    torch.testing.assert_close(normalized_tangent(tangent, normalize(x), r, axes), expected)
    tangent.requires_grad_()

    def moved(tangent: Tensor) -> Tensor:
        return normalized_tangent(tangent, normalize(x), r, axes)

    assert torch.autograd.gradcheck(moved, (tangent,), check_forward_ad=True)
    torch.testing.assert_close(torch.vmap(moved)(draw(2, 3, 4, 5)), torch.stack([moved(t) for t in draw(2, 3, 4, 5)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalized_tangent_in_half_precision(dtype: torch.dtype) -> None:
    x, tangent = draw(3, 8), draw(3, 8, seed=1)
    normalized = nn.functional.layer_norm(x, (8,), eps=0.0)
    r = x.var(-1, correction=0, keepdim=True).rsqrt()
    found = normalized_tangent(tangent.to(dtype), normalized.to(dtype), r.to(dtype), 1)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), normalized_tangent(tangent, normalized, r, 1), atol=0.1, rtol=0.1)


def test_sums_of_products_have_the_gradients_of_their_terms() -> None:
    z, moved, bias = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(5, seed=4)
    w_tangent, w = draw(5, 4, seed=2), draw(5, 4, seed=3)
    a, b, c, d = draw(2, 3, 4, 5), draw(2, 3, 5, 4), draw(2, 3, 4, 6), draw(2, 3, 6, 4)
    leaves = [leaf.requires_grad_() for leaf in (w_tangent, bias, moved, a, b, c, d)]
    pairs = (
        (linear_sum(z, w_tangent, bias, moved, w), z @ w_tangent.T + bias + moved @ w.T),
        (product_sum(a, b, c, d), a @ b + c @ d),
        (product_sum(a[:1], b, c, d), a[:1] @ b + c @ d),
        (product_sum(a.transpose(0, 1), b.transpose(0, 1), c.transpose(0, 1), d.transpose(0, 1)),
         (a @ b + c @ d).transpose(0, 1)),
    )  # fmt: skip
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        cotangent = torch.randn_like(expected)
        gradients = [torch.autograd.grad(value, leaves, cotangent, allow_unused=True) for value in (found, expected)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)
