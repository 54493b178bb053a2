"""Counts of multiply-adds against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradfeat.inspection import inspect_network


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_with_groups(groups: int) -> None:
    """Forward, and backward to the weight: as many multiply-adds each as the convolution has."""
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False), nn.Flatten())
    (row,) = inspect_network(network, torch.randn(2, 8, 5, 5), most=1).rows
    product = 5 * 5 * 8 * (8 // groups) * 9
    assert (row.name, row.primal_macs, row.finetune_macs, row.full_macs) == ("0", product, 2 * product, 2 * product)


@pytest.mark.parametrize(("transposed", "groups"), [(False, 4), (True, 1), (True, 4)])
def test_two_convolutions(transposed: bool, groups: int) -> None:
    """The upper one has a gradient by its input too: fine-tuning 5 products, `full` 6 (3 forward, 3 backward)."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers = [kind(8, 8, 3, padding=1, groups=groups, bias=False) for _ in range(2)]
    network = nn.Sequential(nn.Sequential(layers[0], nn.Tanh(), layers[1]), nn.Flatten())
    (row,) = inspect_network(network, torch.randn(2, 8, 5, 5), theta2=["0"]).rows
    product = 5 * 5 * 8 * (8 // groups) * 9
    assert (row.finetune_macs, row.full_macs) == (5 * product, 6 * product)
