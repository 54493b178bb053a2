"""Batch-norm folding against the unfolded network, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradfeat.linearization import Linearization, linearize

KINDS: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "linear": (nn.Linear, {}, ()),
    "conv1d": (nn.Conv1d, {"kernel_size": 3, "padding": "same", "dilation": 2}, (6,)),
    "conv2d": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}, (7, 7)),
    "conv2d-reflect": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (5, 5)),
    "conv3d": (nn.Conv3d, {"kernel_size": 2}, (3, 4, 3)),
    "transposed1d": (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2}, (4,)),
    "transposed2d": (nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "output_padding": 1, "dilation": 2}, (4, 4)),
    "transposed3d": (nn.ConvTranspose3d, {"kernel_size": 2}, (2, 2, 2)),
}
TRIALS = [
    pytest.param(kind, groups, bias, affine, id=f"{kind}:groups={groups}:bias={bias}:affine={affine}")
    for kind in KINDS
    for groups in ((1,) if kind == "linear" else (1, 2))
    for bias, affine in ((True, True), (False, True), (False, False))
]


class Layered(nn.Module):
    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).flatten(1)


def _network(kind: str, groups: int, bias: bool, affine: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, options, size = KINDS[kind]
    if groups > 1:
        options = {**options, "groups": groups}
    layer = make(4, 6, bias=bias, **options)
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(size)](6, affine=affine)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        with torch.no_grad():
            norm.weight[1] = 0.0  # a dead channel
    return Layered(layer, norm).double().eval(), torch.randn(3, 4, *size, dtype=torch.float64)


def _features(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def _unfolded(lin: Linearization, network: nn.Module, moved: dict[str, Tensor]) -> nn.Module:
    """Write θ₂ + w₂ into a copy of the network."""
    state = lin.original
    new: dict[str, Tensor] = {}
    for folding in lin.foldings:
        weight, bias = folding.fold(state)
        new |= folding.unfold(state, moved.get(folding.weight, weight), moved.get(folding.bias, bias))
    changed = copy.deepcopy(network)
    changed.load_state_dict({**network.state_dict(), **new})
    return changed


@pytest.mark.parametrize(("kind", "groups", "bias", "affine"), TRIALS)
def test_folding_changes_no_number_and_can_be_undone(kind: str, groups: int, bias: bool, affine: bool) -> None:
    network, x = _network(kind, groups, bias, affine)
    lin = linearize(network, x, "layer")
    assert [(f.weight, f.bias, f.had_bias) for f in lin.foldings] == [("layer.weight", "layer.bias", bias)]
    assert list(lin.theta2) == ["layer.weight", "layer.bias"]
    assert lin.report().folded == ["norm -> layer"]
    assert lin.report().nodes["tangent"] <= 3  # w̃ * z + b̃, flattened: no batch norm is left
    z0 = lin.bottom(x)
    torch.testing.assert_close(lin.primal(z0)[0], _features(network, x), rtol=1e-12, atol=1e-12)

    moved = {name: value + torch.randn_like(value) for name, value in lin.theta2.items()}
    changed = _unfolded(lin, network, moved)
    torch.testing.assert_close(_features(changed, x), lin.network(moved, z0), rtol=1e-10, atol=1e-10)


def test_folding_spans_the_directions_of_the_network_s_own_parameters() -> None:
    network, x = _network("conv2d", 1, True, True)
    own = linearize(network, x, "*", fold_batchnorm=False)
    assert list(own.theta2) == ["layer.weight", "layer.bias", "norm.weight", "norm.bias"]
    folded = linearize(network, x, "*")
    w2 = {"norm.weight": torch.randn(6).double(), "norm.bias": torch.randn(6).double()}
    w2 |= {name: torch.randn_like(value) for name, value in own.theta2.items() if name.startswith("layer")}
    state = dict(network.state_dict())
    (folding,) = folded.foldings
    names = list(w2)

    def fold(*values: Tensor) -> tuple[Tensor, Tensor]:
        return folding.fold({**state, **dict(zip(names, values, strict=True))})

    weight, bias = torch.func.jvp(fold, tuple(state[name] for name in names), tuple(w2.values()))[1]
    expected = own.tangent(w2, own.primal(own.bottom(x))[1])
    got = folded.tangent({"layer.weight": weight, "layer.bias": bias}, folded.primal(folded.bottom(x))[1])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("theta2", "names"),
    [
        ("layer", ["layer.weight", "layer.bias"]),
        ("layer.weight", ["layer.weight"]),
        (["layer.weight", "norm.bias"], ["layer.weight", "layer.bias"]),
        (["layer.weight", "norm.weight"], ["layer.weight", "layer.bias"]),  # a slope moves the folded bias, too
        ("norm", ["norm.weight", "norm.bias"]),  # asked for alone: it stays
        ("norm.bias", ["norm.bias"]),
    ],
)
def test_names_after_folding(theta2: Any, names: list[str]) -> None:
    network, x = _network("conv2d", 1, False, True)
    lin = linearize(network, x, theta2)
    assert list(lin.theta2) == names
    assert bool(lin.foldings) == ("norm" not in theta2[:4] if isinstance(theta2, str) else True)


def test_what_cannot_be_folded_stays() -> None:
    torch.manual_seed(0)
    shared = nn.BatchNorm1d(4)
    nn.init.normal_(shared.running_mean)
    nn.init.normal_(shared.weight)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), shared
            self.c, self.after = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.b(torch.relu(self.norm(self.a(x)))))
            z = self.c(y)
            return self.after(z) + z  # the layer's own output is seen

    network = Network().double().eval()
    x = torch.randn(3, 3, dtype=torch.float64)
    lin = linearize(network, x, "*")
    assert lin.foldings == []
    torch.testing.assert_close(lin(x), _features(network, x))


def test_batch_norm_before_its_layer_is_not_folded() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    assert linearize(network, torch.randn(3, 3), "1").foldings == []
