"""Which parameters θ₂ means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from gradfeat.errors import ConfigurationError, Theta2Error
from gradfeat.linearization import linearize
from gradfeat.linearization.build import theta2_candidates
from gradfeat.testing import check_linearization


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer2 = nn.Sequential(Block(4), Block(4))
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 6, batch_first=True) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1)


def _names(network: nn.Module, x: Tensor, theta2: Any, **options: Any) -> list[str]:
    return list(linearize(network.eval(), x, theta2, check=False, **options).theta2)


IMAGE = torch.randn(3, 3, 6, 6)


class Branched(nn.Module):
    """A block of several kinds of parts in containers, as of T5 or MobileOne."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 4)])
        self.branch = nn.ModuleList([nn.Linear(4, 4, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer[1](self.layer[0](x))) + torch.tanh(self.branch[0](x))


def test_a_block_is_what_its_container_repeats() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Branched(), Branched())
    x = torch.randn(3, 4)
    assert [candidate.name for candidate in theta2_candidates(network.eval(), x)] == ["2", "1", "0"]
    whole = [f"2.{name}" for name in ("layer.0.weight", "layer.0.bias", "layer.1.weight", "layer.1.bias")]
    assert _names(network, x, "auto") == [*whole, "2.branch.0.weight"]
    assert _names(nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh())), x, "auto") == ["0.0.weight", "0.0.bias"]


def test_a_parametrized_layer_is_theta2_in_its_original_parameters() -> None:
    top = weight_norm(nn.Linear(4, 3))
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), top)
    x = torch.randn(3, 4)
    originals = ["2.bias", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1"]
    assert _names(network, x, "auto") == originals
    check_linearization(network, x, "auto")
    check_linearization(network, x, ["0", "2"])
    check_linearization(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), spectral_norm(nn.Linear(4, 3))), x, "auto")


def test_auto_takes_the_topmost_block_below_the_features() -> None:
    names = _names(ResNet(), IMAGE, "auto", features="input:fc")
    assert names == ["layer2.1.conv1.weight", "layer2.1.conv1.bias", "layer2.1.conv2.weight", "layer2.1.conv2.bias"]
    names = _names(Transformer(), torch.randn(3, 2, 4), "auto")
    assert len(names) == 12
    assert all(name.startswith("blocks.2.") for name in names)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
    assert _names(plain, IMAGE, "auto") == ["2.weight", "2.bias"]
    assert _names(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 3), "auto") == [
        "2.weight",
        "2.bias",
    ]


def test_candidates_grow_from_the_top() -> None:
    found = theta2_candidates(ResNet().eval(), IMAGE, features="input:fc")
    assert [c.name for c in found] == ["layer2.1", "layer2.0", "layer1.1", "layer1.0", "stem"]
    assert found[1].modules == ("layer2.1", "layer2.0")
    assert [c.parameters for c in found] == [296, 592, 888, 1184, 1184 + 112]


@pytest.mark.parametrize(
    ("theta2", "expected"),
    [
        ("layer2.1.conv2", ["layer2.1.conv2.weight", "layer2.1.conv2.bias"]),
        ("layer2.1.conv2.bias", ["layer2.1.conv2.bias"]),
        ("layer?.1.conv2.weight", ["layer1.1.conv2.weight", "layer2.1.conv2.weight"]),
        (["fc.weight", "stem.bias"], ["stem.bias", "fc.weight"]),  # the network's order
        (
            "*.bias",
            ["stem.bias", *[f"layer{i}.{j}.conv{k}.bias" for i in (1, 2) for j in (0, 1) for k in (1, 2)], "fc.bias"],
        ),
    ],
)
def test_names_and_globs(theta2: Any, expected: list[str]) -> None:
    assert _names(ResNet(), IMAGE, theta2) == expected


@pytest.mark.parametrize(
    ("theta2", "message"),
    [
        ("layer2.1.conv3", r"matches no module and no parameter.*Did you mean layer2.1.conv"),
        ("block9.*", r"matches no module and no parameter.*Modules at the top are stem, layer1"),
        ("unused", "no parameter of 'unused' reaches the features"),
        (["layer2.1", "nothing"], "'nothing' matches no module"),
        ([], "must be 'top', 'auto', a name, a glob, or a list"),
        ("", "must be 'top', 'auto', a name, a glob, or a list"),
        ([3], "must be 'top', 'auto', a name, a glob, or a list"),
    ],
)
def test_names_that_cannot_be_meant(theta2: Any, message: str) -> None:
    with pytest.raises(Theta2Error, match=message):
        _names(ResNet(), IMAGE, theta2)


def test_names_above_the_features() -> None:
    with pytest.raises(Theta2Error, match="'fc' reaches the features"):
        _names(ResNet(), IMAGE, "fc", features="layer2")


def test_module_without_parameters() -> None:
    with pytest.raises(Theta2Error, match="the module '1' has no parameters"):
        _names(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(3, 3), "1")


def test_nothing_to_choose_from() -> None:
    with pytest.raises(Theta2Error, match="name the parameters instead"):
        _names(nn.Sequential(nn.LayerNorm(3)), torch.randn(3, 3), "auto")


def test_behind_an_operation_without_derivative() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.round(self.below(x))

    with pytest.raises(Theta2Error, match="an operation above them has none"):
        _names(Rounded(), torch.randn(3, 3), "below")


def test_errors_are_configuration_errors() -> None:
    assert issubclass(Theta2Error, ConfigurationError)
    assert issubclass(Theta2Error, ValueError)
