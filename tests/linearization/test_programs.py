"""The three programs: what they hold, refuse, keep and change."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from gradfeat.errors import BatchDependenceError, ConfigurationError, GradfeatWarning, LinearizationError
from gradfeat.linearization import Linearization, linearize, parametrization_scales
from gradfeat.linearization.rules import RULES
from gradfeat.linearization.trace import Dual, Trace
from gradfeat.testing import check_linearization


class Function(nn.Module):
    """A linear layer, and a function of its output."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def _ones(lin: Linearization) -> dict[str, Tensor]:
    return {name: torch.ones_like(value) for name, value in lin.theta2.items()}


# ---- what depends on the batch, or on chance, is refused ----


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y - y.mean(0),
        lambda y: y / y.norm(),
        lambda y: torch.softmax(y, 0),
        lambda y: y.flip(0),
        lambda y: functional.dropout(y, 0.5, training=True),
        lambda y: y + torch.randn_like(y),
        lambda y: functional.batch_norm(y, None, None, training=True),
    ],
    ids=["mean", "norm", "softmax", "flip", "dropout", "noise", "batch-statistics"],
)
def test_batch_dependence_is_refused(function: Any) -> None:
    with pytest.raises(BatchDependenceError):
        linearize(Function(function).eval(), torch.randn(3, 4), "layer")


def test_batch_norm_without_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(BatchDependenceError, match="track_running_stats"):
        linearize(network, torch.randn(3, 4), "0")


class Standardized(nn.Module):
    """A convolution whose weight is standardized by batch norm on its way (NFNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        flat = functional.batch_norm(
            weight.reshape(1, 4, -1), None, None, weight=self.gain, training=True, momentum=0.0
        )
        return torch.tanh(functional.conv2d(x, flat.reshape_as(weight), self.conv.bias))


def test_a_weight_standardized_by_batch_norm_depends_on_no_sample() -> None:
    lin = check_linearization(Standardized(), torch.randn(3, 3, 5, 5), "*")
    assert list(lin.theta2) == ["gain", "conv.weight", "conv.bias"]


def test_batch_dependence_below_theta2_is_refused() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(BatchDependenceError):
        linearize(nn.Sequential(Centred(), nn.Linear(4, 2)), torch.randn(3, 4), "1")


# ---- the network itself stays as it is ----


def test_training_mode_is_said_and_restored() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    network[2].eval()
    with pytest.warns(GradfeatWarning, match="training mode"):
        lin = linearize(network, torch.randn(3, 4), "3")
    assert [module.training for module in network] == [True, True, False, True]
    assert "evaluation mode" in str(lin.report())


def test_the_network_is_unchanged_bit_for_bit() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [p.requires_grad for p in network.parameters()]
    x = torch.randn(3, 3, 6, 6)
    kept = x.clone()
    lin = linearize(network, x, ["0", "3"])
    lin.transpose(torch.randn(3, 2), lin.primal(lin.bottom(x))[1])
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        network[3].weight.zero_()  # and what follows in the network does not reach the linearization
    assert lin.theta2["3.weight"].abs().sum() > 0


# ---- only what is needed is computed and kept ----


def _calls(lin: Linearization, program: str) -> list[str]:
    return [str(node.target) for node in lin.programs[program].graph.nodes if node.op == "call_function"]


def test_the_first_layer_of_theta2_has_one_convolution() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    x = torch.randn(3, 3, 7, 7)
    for theta2, convolutions in (["4"], 1), (["2", "4"], 3), (["2"], 2), (["0", "2", "4"], 5):
        calls = _calls(linearize(network, x, theta2), "tangent")
        assert sum("conv2d" in call for call in calls) == convolutions  # 2L - 1 for L layers of θ₂ at the top


def test_residuals_are_the_fewest_bytes() -> None:
    lin = linearize(_mlp(), torch.randn(3, 4), "4")
    assert (lin.report().z0_bytes, lin.report().residual_bytes) == (5 * 4, 5 * 4)  # the layer's input
    # two layers: both inputs; the mask of the activation between them is read off the second input
    lin = linearize(_mlp(), torch.randn(3, 4), ["2", "4"])
    assert lin.report().residual_bytes == (6 + 5) * 4
    _, residuals = lin.primal(lin.bottom(torch.randn(3, 4)))
    assert all(residual.dtype is torch.float32 for residual in residuals)
    # the layer below alone: its input, and a mask of one byte for each unit
    lin = linearize(_mlp(), torch.randn(3, 4), "2")
    assert lin.report().residual_bytes == 6 * 4 + 5
    _, residuals = lin.primal(lin.bottom(torch.randn(3, 4)))
    assert {residual.dtype for residual in residuals} == {torch.float32, torch.bool}
    # in another precision as many numbers, and the mask as it is
    for dtype in (torch.bfloat16, torch.float64):
        _, residuals = lin.to(dtype).primal(lin.bottom(torch.randn(3, 4)))
        assert lin.report().residual_bytes == sum(value.nbytes for value in residuals) // 3
    assert lin.report().z0_bytes == lin.bottom(torch.randn(3, 4)).nbytes // 3


def test_z0_is_what_lies_below_theta2() -> None:
    network, x = _mlp(), torch.randn(3, 4)
    lin = linearize(network, x, "4")
    z0 = lin.bottom(x)
    assert isinstance(z0, Tensor)
    torch.testing.assert_close(z0, network[:4](x))
    first, second = lin.primal(z0), lin.primal(z0)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_report() -> None:
    network = Function(lambda y: torch.cumprod(torch.sigmoid(y), 1)).eval()
    report = linearize(network, torch.randn(3, 4), "layer").report()
    assert report.theta2 == {"layer.weight": (4, 4), "layer.bias": (4,)}
    assert report.rules == {"linear": 1, "sigmoid": 1}
    assert [operation for _, operation in report.fallbacks] == ["aten.cumprod.default"]
    text = str(report)
    assert "20 parameters in 2 tensors" in text
    assert "without a rule: cumprod (aten.cumprod.default)" in text


# ---- other points, dtypes and copies ----


def test_at_another_point_is_the_linearization_of_the_changed_network() -> None:
    network, x = _mlp().double(), torch.randn(3, 4, dtype=torch.float64)
    lin = linearize(network, x, ["2", "4"])
    theta2 = {name: value + torch.randn_like(value) for name, value in lin.theta2.items()}
    moved = lin.at(theta2)
    changed = copy.deepcopy(network)
    changed.load_state_dict({**network.state_dict(), **theta2})
    other = linearize(changed, x, ["2", "4"])
    w2 = {name: torch.randn_like(value) for name, value in theta2.items()}
    z0 = lin.bottom(x)
    f, residuals = moved.primal(z0)
    torch.testing.assert_close(f, other(x))
    torch.testing.assert_close(moved.tangent(w2, residuals), other.tangent(w2, other.primal(other.bottom(x))[1]))
    torch.testing.assert_close(lin(x), network(x).detach())  # the first one stays where it was


def test_tangent_is_the_first_order_change() -> None:
    lin = linearize(_mlp().double(), torch.randn(3, 4).double(), ["4"])  # f is linear in its top layer: exact
    x = torch.randn(5, 4, dtype=torch.float64)
    z0 = lin.bottom(x)
    f, residuals = lin.primal(z0)
    w2 = {name: torch.randn_like(value) for name, value in lin.theta2.items()}
    moved = lin.network({name: lin.theta2[name] + w2[name] for name in w2}, z0)
    torch.testing.assert_close(moved, f + lin.tangent(w2, residuals))


def test_conversions() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(3, 3, 6, 6)
    lin = linearize(network, x, ["0", "3"])
    w2 = _ones(lin)
    expected = lin.tangent(w2, lin.primal(lin.bottom(x))[1])
    for dtype, tolerance in (torch.float64, 1e-5), (torch.bfloat16, 0.1):
        converted = copy.deepcopy(lin).to(dtype)
        assert converted.dtype is dtype
        f, residuals = converted.primal(converted.bottom(x))
        moved = converted.tangent(w2, residuals)
        assert f.dtype is moved.dtype is dtype
        assert (moved.float() - expected).abs().max() <= tolerance * expected.abs().max()
    assert lin.state_dict() == {}
    assert list(lin.parameters()) == []


def test_deepcopy() -> None:
    lin = linearize(_mlp(), torch.randn(3, 4), ["2", "4"])
    x, w2 = torch.randn(3, 4), _ones(lin)
    other = copy.deepcopy(lin)
    expected = lin.tangent(w2, lin.primal(lin.bottom(x))[1])
    assert torch.equal(other.tangent(w2, other.primal(other.bottom(x))[1]), expected)


def test_ntk_scales() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(2, 6), nn.ConvTranspose2d(6, 5, 2), nn.Flatten(), nn.Linear(5 * 9, 3)
    ).eval()
    lin = linearize(network, torch.randn(3, 4, 4, 4), "*")
    bias = math.sqrt(0.1)
    scales = parametrization_scales(lin, "ntk_fan_in")
    expected = {
        "0.weight": math.sqrt(1 / (2 * 9)), "0.bias": bias, "1.weight": 1.0, "1.bias": bias,
        "2.weight": math.sqrt(1 / (6 * 4)), "2.bias": bias, "4.weight": math.sqrt(1 / 45), "4.bias": bias,
    }  # fmt: skip
    assert scales == pytest.approx(expected)
    assert parametrization_scales(lin, "ntk") == scales
    outputs = parametrization_scales(lin, "ntk_fan_out")
    assert [outputs[f"{i}.weight"] ** -2 for i in (0, 2, 4)] == pytest.approx([6, 5, 3])
    assert set(parametrization_scales(lin, "standard").values()) == {1.0}
    with pytest.raises(ConfigurationError, match="parametrization must be one of"):
        parametrization_scales(lin, "ntk_fan_inn")


# ---- errors teach ----


def test_wrong_w2() -> None:
    lin = linearize(_mlp(), torch.randn(3, 4), "4")
    _, residuals = lin.primal(lin.bottom(torch.randn(3, 4)))
    with pytest.raises(ConfigurationError, match=r"'4.bias' of θ₂ is missing"):
        lin.tangent({"4.weight": torch.zeros(3, 5)}, residuals)
    with pytest.raises(ConfigurationError, match=r"'4.weight' has the shape \(5, 3\); θ₂ has \(3, 5\)"):
        lin.tangent({"4.weight": torch.zeros(5, 3), "4.bias": torch.zeros(3)}, residuals)
    with pytest.raises(ConfigurationError, match=r"'4.bais', which θ₂ has not. Did you mean 4.bias"):
        lin.tangent({**_ones(lin), "4.bais": torch.zeros(3)}, residuals)


def _by_value(y: Tensor) -> Tensor:
    return y * 2 if y.sum() > 0 else y


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (_by_value, LinearizationError, r"depends on the values of its data \(File .*torch.where"),
        (lambda y: y.view(3, -1), LinearizationError, r"works for 3 samples only.*x.shape\[0\]"),
        (
            lambda y: y.numpy(),
            LinearizationError,
            "cannot be captured with a free batch size: torch.export says RuntimeError",
        ),
        (lambda y: {"logits": y}, ConfigurationError, "output is a dict, not a tensor: pass features="),
        (lambda y: y[:, None] + y[:, :, None], ConfigurationError, r"must have the shape \(n, d\).*not \(n, 4, 4\)"),
        (lambda y: y.sum(), ConfigurationError, r"must have the shape \(n, d\)"),
    ],
    ids=["data-dependent", "fixed-batch", "numpy", "dict", "three-axes", "scalar"],
)
def test_networks_that_cannot_be_linearized(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linearize(Function(function).eval(), torch.randn(3, 4), "layer")


def _quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)),
            r"^1 \(LazyLinear\) has no weights yet: run the network",
        ),
        (_quantized, r"^0 \(Linear\) is quantized.*before quantization"),
        (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 3))), "is a TorchScript module"),
    ],
    ids=["lazy", "quantized", "scripted"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_without_a_derivative_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        linearize(build().eval(), torch.randn(3, 4), "0")


def test_wrong_features() -> None:
    with pytest.raises(ConfigurationError, match=r"no module 'layr'. Did you mean layer"):
        linearize(Function(torch.relu), torch.randn(3, 4), "layer", features="layr")


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.randn(0, 4), "at least one"),
        (torch.tensor(1.0), "first axis"),
        ((torch.randn(3, 4), torch.randn(2, 4)), "same number of samples"),
        ("text", "at least one tensor"),
    ],
    ids=["empty", "scalar", "unequal", "no-tensor"],
)
def test_wrong_examples(example: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        linearize(Function(torch.relu), example, "layer")


def test_one_sample_is_example_enough() -> None:
    lin = linearize(_mlp(), torch.zeros(1, 4), "4")
    assert lin(torch.randn(7, 4)).shape == (7, 3)


def test_no_warning_in_evaluation_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradfeatWarning)
        linearize(_mlp(), torch.randn(3, 4), "4")


def _tangent_that_reads(tangent: Tensor, y: Tensor) -> Tensor:
    """Return the tangent of tanh, by a way that depends on the values, which no tracer can follow."""
    return tangent * (1 - y * y) if bool((y * y).sum() > 0) else tangent


def test_transposed_program_that_cannot_be_traced_is_left_to_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(trace: Trace, node: fx.Node, z: Dual) -> Any:
        return trace.emit(_tangent_that_reads, z.tangent, trace.keep(trace.output(node)))

    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    usual = linearize(network, x[:3], "*")
    monkeypatch.setitem(RULES, torch.ops.aten.tanh.default, rule)
    lin = linearize(network, x[:3], "*")
    u = torch.randn(5, 2, dtype=torch.float64)
    expected = usual.transpose(u, usual.primal(usual.bottom(x))[1])
    residuals = lin.primal(lin.bottom(x))[1]
    for _ in range(3):  # the second batch of a size would be traced
        found = lin.transpose(u, residuals)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
