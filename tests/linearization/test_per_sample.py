"""Jᵀu of each sample by itself, against `torch.func.vjp` of the network at one sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.per_sample import SampleGradients


class Shared(nn.Module):
    """A weight that meets two inputs, and one that a layer and a product by hand share."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.both = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        return self.both(x) + torch.tanh(x) * self.both.weight.sum(0)


class WithoutRule(nn.Module):
    """An operation whose tangent is torch's own, so that the program is not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.special.i0e(self.first(x)))


class Attention(nn.Module):
    """A layer of a transformer, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def convolutions() -> nn.Module:
    """A grouped, a strided and a pointwise convolution, with batch norms."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8),
        nn.ReLU6(),
        nn.Conv2d(8, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


NETWORKS = {
    "convolutions": (convolutions, (3, 6, 6), True),
    "transformer": (Attention, (5, 8), True),
    "shared": (Shared, (6,), True),
    "without a rule": (WithoutRule, (6,), False),
}


def linearized(name: str) -> tuple[Linearization, Tensor]:
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    network = make().double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    return linearize(network, x, "*").double(), x


def dense(found: SampleGradients, theta2: dict[str, Tensor]) -> dict[str, Tensor]:
    result = dict(found.whole)
    for name, uses in found.factors.items():
        result[name] = sum(delta.mT @ a for a, delta in uses).reshape(-1, *theta2[name].shape)
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_each_sample_are_those_of_the_network(name: str) -> None:
    lin, x = linearized(name)
    z0 = lin.bottom(x)
    f, residuals = lin.primal(z0)
    generator = torch.Generator().manual_seed(0)
    shared, own = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (f.shape[1:], f.shape))
    found = lin.sample_gradients([shared, own], residuals)
    assert bool(found[0].factors) == NETWORKS[name][2]
    for cotangents, gradients in zip((shared.expand_as(f), own), found, strict=True):
        gradients = dense(gradients, lin.theta2)
        assert gradients.keys() == lin.theta2.keys()
        for i in range(len(x)):
            _, pull = torch.func.vjp(lambda theta2, i=i: lin.network(theta2, lin.bottom(x[i : i + 1])), lin.theta2)
            for key, expected in pull(cotangents[i : i + 1])[0].items():
                torch.testing.assert_close(gradients[key][i], expected, rtol=1e-9, atol=1e-11)


def test_a_weight_that_is_used_otherwise_too_has_no_factors() -> None:
    lin, x = linearized("shared")
    (found,) = lin.sample_gradients([torch.ones(6, dtype=torch.float64)], lin.primal(lin.bottom(x))[1])
    assert [len(uses) for uses in found.factors.values()] == [2]
    assert "both.weight" in found.whole
