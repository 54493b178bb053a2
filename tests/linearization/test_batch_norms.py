"""Batch norms in training mode against the network itself in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradfeat.linearization import Linearization, linearize
from gradfeat.linearization.batch_norms import TrainableNetwork, has_batch_norms
from gradfeat.linearization.lengths import LengthGroups, linearize_lengths

X = torch.randn(7, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(*, affine: bool = True, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=bias),
        nn.BatchNorm2d(8, affine=affine),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.BatchNorm1d(5, affine=affine),
        nn.Linear(5, 4),
    ).double()
    for module in made:
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight)  # gains of both signs
                nn.init.normal_(module.bias)
                with torch.no_grad():
                    module.weight[1] = 0.0  # a dead channel, which may come to life
    return made.eval()


THETA2 = ["3", "8", "10"]


def linearized(made: nn.Module) -> Linearization:
    return linearize(made, X[:3], THETA2)


@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, True)])
def test_it_is_trained_as_the_network_itself(affine: bool, bias: bool) -> None:
    own = network(affine=affine, bias=bias)
    lin = linearized(own)
    trainable, z0 = TrainableNetwork(lin), lin.bottom(X)
    own = copy.deepcopy(own)
    for k in (3, 4, 8, 9, 10):
        own[k].train()
    ours = [p for p in trainable.parameters() if p.requires_grad]
    theirs = [p for k in (3, 4, 8, 9, 10) for p in own[k].parameters()]
    optimizers = [torch.optim.SGD(parameters, lr=0.1) for parameters in (ours, theirs)]
    target = torch.randn(7, 4, dtype=torch.float64)
    for rows in (slice(0, 4), slice(4, 7), slice(0, 7)):
        for optimizer, f in zip(optimizers, (trainable(z0[rows]), own(X[rows])), strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(f, target[rows]).backward()
            optimizer.step()
    trainable.eval()
    expected = own.eval()(X)
    torch.testing.assert_close(trainable(z0), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lin.network(trainable.folded(), z0), expected, rtol=1e-9, atol=1e-9)


def test_it_starts_where_the_linearization_is_also_where_that_has_moved() -> None:
    start = linearized(network())
    moved = start.at({name: value + 0.1 * torch.randn_like(value) for name, value in start.theta2.items()})
    for lin in (start, moved):
        trainable, z0 = TrainableNetwork(lin).eval(), lin.bottom(X)
        torch.testing.assert_close(trainable(z0), lin(X), rtol=1e-9, atol=1e-9)
        for name, value in trainable.folded().items():
            torch.testing.assert_close(value, lin.theta2[name], rtol=1e-9, atol=1e-9)


def test_a_single_sample_takes_running_values_where_it_has_no_variance() -> None:
    lin = linearized(network())
    trainable = TrainableNetwork(lin)
    assert bool(torch.isfinite(trainable(lin.bottom(X[:1]))).all())


def test_which_networks_have_some() -> None:
    assert has_batch_norms(linearized(network()))
    assert not has_batch_norms(linearize(network(), X[:3], ["10"]))
    assert not has_batch_norms(linearize(network(), X[:3], ["3.weight"]))  # its offset is not free
    assert not has_batch_norms(linearized(network()).bfloat16())


class Bag(nn.Module):
    """The mean of embedded tokens under the mask, a layer and its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.norm = nn.Embedding(20, 8), nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids, mask = x.unbind(1)
        weight = mask.double()[:, :, None]
        return self.norm(self.layer((self.embed(ids) * weight).sum(1) / weight.sum(1)))


def test_texts_of_several_lengths_keep_theirs_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    bag, x = Bag().double().eval(), torch.ones(3, 2, 9, dtype=torch.int64)
    x[0, :, 3:] = 0
    grouped = linearize_lengths(bag, x, "layer", (3, 9))
    assert isinstance(grouped, LengthGroups)
    assert has_batch_norms(linearize(bag, x, "layer"))
    assert not has_batch_norms(grouped)
