"""Whole networks: every promise of a linearization, for each kind of block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradfeat.errors import MissingDependencyError
from gradfeat.linearization import linearize
from gradfeat.optional import require
from gradfeat.testing import check_linearization


class Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 2, 1)
        self.b = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1))
        self.c = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(x, 3, 1, 1)
        return torch.cat([self.a(x), self.b(x), self.c(pooled)], 1)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.reduce = nn.Conv2d(6, 2, 1)
        self.enlarge = nn.Conv2d(2, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.conv(x))
        scale = self.enlarge(functional.relu(self.reduce(functional.adaptive_avg_pool2d(x, 1))))
        return x * functional.hardsigmoid(scale)


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.norm(x + self.attention(x, x, x, need_weights=not self.batch_first)[0])
        return y.mean(1 if self.batch_first else 0)


class Pooled(nn.Module):
    """A transformer over a learned token, positions and the input's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.layer(x)[:, 0]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


class Scaled(nn.Module):
    """Parameters that reach the features through broadcasting alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(3, 1))
        self.shift = nn.Parameter(torch.randn(4))
        self.power = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(x > 0, self.gain, x) * x + torch.maximum(self.shift, x)
        return (y / (1.5 + self.power)).flatten(1)


class InPlace(nn.Module):
    """Writes into views, slices and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.relu_()
        z = self.b(y)
        z[:, 1:3] = torch.sin(y[:, 1:3])
        z.view(-1, 2, 3)[:, 0].mul_(2.0)
        z[:, 5] += y[:, 0]
        return z.add_(y, alpha=0.5)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)
        self.top = nn.Bilinear(4, 4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.top(torch.tanh(self.left(a)), torch.sigmoid(self.right(b)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.convolution = nn.Conv1d(6, 5, 3, padding=1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = functional.gelu(self.convolution(self.table(ids).transpose(1, 2)))
        keep = mask[:, None].to(x.dtype)
        return (x * keep).sum(-1) / keep.sum(-1).clamp(min=1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0][:, -1]


class Normalized(nn.Module):
    """Weight norm, and a cosine at the top."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.second = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.second(functional.softplus(self.first(x))), dim=1)


class Grouped(nn.Module):
    """Attention in which several queries share keys and values, with rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.norm = nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angle = torch.arange(t, dtype=x.dtype)[:, None] * 0.3
        cos, sin = angle.cos()[:, 0], angle.sin()[:, 0]
        q, k = (torch.stack([a[..., 0] * cos - a[..., 1] * sin, a[..., 1]], -1) for a in (q, k))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.norm(out.transpose(1, 2).reshape(n, t, 8))[:, -1]


class Windows(nn.Module):
    """Windows joined to the batch axis, a roll, and a relative bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = torch.roll(x, (1, 1), (1, 2)).view(n, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 4, 4)
        q, k, v = self.qkv(x).chunk(3, -1)
        x = torch.softmax(q @ k.mT / 2 + self.bias, -1) @ v
        return x.view(n, 16, 4).mean(1)


def _upsampling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.PReLU(4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        nn.InstanceNorm2d(6, affine=True),
        nn.ELU(),
        nn.ReflectionPad2d(1),
        nn.Conv2d(6, 2, 3, padding="same", padding_mode="circular"),
    )


def _depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(inplace=True),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.SiLU(inplace=True),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.BatchNorm2d(5),
    )


def _image(*, side: int = 7, channels: int = 3) -> Tensor:
    return torch.randn(3, channels, side, side)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], list[str | list[str]]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        lambda: torch.randn(3, 4),
        ["auto", "*", "3.bias"],
    ),
    "residual": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Residual(), Residual()),
        _image,
        ["auto", "*", "4.bn2"],
    ),
    "branches": (
        lambda: nn.Sequential(Branches(), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3)),
        _image,
        ["auto", "*", "0.b"],
    ),
    "squeeze-excite": (SqueezeExcite, _image, ["*", "reduce"]),
    "depthwise": (_depthwise, lambda: _image(side=9), ["auto", "*"]),
    "upsampling": (_upsampling, lambda: _image(side=6), ["auto", "*", ["1", "4"]]),
    "attention": (lambda: Attention(True), lambda: torch.randn(3, 4, 8), ["*", "attention.in_proj_weight"]),
    "attention-time-first": (lambda: Attention(False), lambda: torch.randn(3, 4, 8), ["*"]),
    "transformer": (Pooled, lambda: torch.randn(3, 4, 8), ["*", "token"]),
    "grouped-queries": (Grouped, lambda: torch.randn(3, 4, 8), ["*", "k"]),
    "windows": (Windows, lambda: torch.randn(3, 4, 4, 4), ["*", "bias"]),
    "convolution-1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.LeakyReLU(0.1), nn.GroupNorm(2, 4), nn.MaxPool1d(2),
            nn.Conv1d(4, 5, 2), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        ),
        lambda: torch.randn(3, 3, 9),
        ["auto", "*", "3"],
    ),
    "shared": (Shared, lambda: torch.randn(3, 4), ["*", "first", "second.weight", "second.bias"]),
    "broadcasting": (Scaled, lambda: torch.randn(3, 3, 4), ["*", "gain"]),
    "in-place": (InPlace, lambda: torch.randn(3, 4), ["*", "b.bias"]),
    "two-inputs": (TwoInputs, lambda: (torch.randn(3, 3), torch.randn(3, 2)), ["*", "left"]),
    "named-inputs": (TwoInputs, lambda: {"b": torch.randn(3, 2), "a": torch.randn(3, 3)}, ["right"]),
    "words": (
        Words,
        lambda: (
            torch.tensor([[1, 2, 3, 0], [4, 4, 0, 0], [5, 6, 7, 8]]),
            torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1] * 4]),
        ),
        ["auto", "*", "table"],
    ),
    "recurrent": (Recurrent, lambda: torch.randn(3, 5, 3), ["*"]),
    "weight-norm": (Normalized, lambda: torch.randn(3, 4), ["*", "first", "second"]),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.GELU()), nn.Identity()), nn.Softmax(1)),
        lambda: torch.randn(3, 4),
        ["auto", "0.0"],
    ),
}  # fmt: skip
TRIALS = [
    pytest.param(
        build, example, theta2, fold, id=f"{name}:{' '.join([theta2] if isinstance(theta2, str) else theta2)}:{fold}"
    )
    for name, (build, example, choices) in CASES.items()
    for theta2 in choices
    for fold in ((True, False) if name in ("residual", "depthwise", "convolution-1d") else (True,))
]


def _settled(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and slopes that are no identity."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


@pytest.mark.parametrize(("build", "example", "theta2", "fold"), TRIALS)
def test_network(build: Any, example: Any, theta2: Any, fold: bool) -> None:
    torch.manual_seed(0)
    network = _settled(build())
    check_linearization(network.eval(), example(), theta2, fold_batchnorm=fold)


def test_features_of_a_module_and_of_a_function() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 6), nn.Linear(6, 2)).eval()
    x = _image()
    check_linearization(network, x, "0", features="1")  # a feature map, pooled
    check_linearization(network, x, "3", features="input:4")
    check_linearization(network, x, "3", features=lambda y: torch.cat([y, y * y], 1))


def test_only_a_bias_moves_and_the_derivative_does_not_depend_on_x() -> None:
    lin = check_linearization(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)).eval(), torch.randn(3, 3), "1.bias")
    _, residuals = lin.primal(lin.bottom(torch.randn(4, 3)))
    w2 = {"1.bias": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    assert torch.equal(lin.tangent(w2, residuals), w2["1.bias"].expand(4, 2))


def test_padding_row_of_an_embedding_moves_like_any_other() -> None:
    network = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 2)).double()
    lin = linearize(network, torch.tensor([[0, 1], [2, 0], [3, 3]]), "0")
    _, residuals = lin.primal(lin.bottom(torch.tensor([[0, 1]])))
    w2 = {"0.weight": torch.zeros(4, 3, dtype=torch.float64)}
    w2["0.weight"][0] = 1.0  # f(x) does depend on it, though torch's own backward pass leaves it out
    expected = network[2].weight.detach()[:, :3].sum(1)
    torch.testing.assert_close(lin.tangent(w2, residuals)[0], expected)
    assert lin.transpose(torch.ones(1, 2), residuals)["0.weight"][0].abs().sum() > 0


SWIN = {"window_size": 2, "depths": (1, 2), "embed_dim": 24}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "side", "theta2", "features"),
    [
        ("resnet18", {}, 32, "layer2.1", "layer2"),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, 32, "auto", None),
        ("convnext_atto", {}, 32, "stages.1.blocks.1", "stages.1"),
        ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 32}, 32, "auto", None),
    ],
)  # fmt: skip
def test_timm(name: str, options: dict[str, Any], side: int, theta2: Any, features: Any) -> None:
    try:
        timm = require("timm", extra="vision")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **options).eval()
    check_linearization(
        network, torch.randn(2, 3, side, side), theta2, features=features, batch_sizes=(3,), tolerance=1e-9
    )
