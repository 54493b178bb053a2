"""The network of the published code, written again in numpy: its logits and its J(x) w₂ in the primed variables.

The network is the encoder of the paper's BiGAN with its batch norms folded: convolutions 32-64-128-256-512, leaky ReLU
0.01, features averaged over the image, and a linear head. Its variables are primed (NTK parametrization, fan = output
channels): weight = sqrt(1 / fan) weight', bias = sqrt(0.1) bias'. Nothing here is torch's: derivatives are complex
steps, ``f(θ' + i h v) = f(θ') + i h J'v`` up to h², which for h = 1e-30 leaves nothing but rounding.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gradfeat import GradientFeatureModel, linearize

CHANNELS = (32, 64, 128, 256, 512)
KERNELS = (5, 4, 4, 4, 4)
STRIDES = (1, 2, 1, 2, 1)
SLOPE = 0.01
STEP = 1e-30
CLASSES = 10

Layers = list[tuple[np.ndarray, np.ndarray]]


def convolve(z: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    kernel = weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(z, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    h = np.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3]))  # (n, h, w, out)
    return np.moveaxis(h + bias, 3, 1)


def features(primed: Layers, x: np.ndarray) -> np.ndarray:
    """f(x) in the primed variables, (n, 512); real or complex."""
    z = x
    for (weight, bias), stride in zip(primed, STRIDES, strict=True):
        fan = len(weight)  # output channels
        h = convolve(z, np.sqrt(1 / fan) * weight, np.sqrt(0.1) * bias, stride)
        z = np.where(h.real > 0, h, SLOPE * h)
    return z.mean(axis=(2, 3))


@pytest.fixture(scope="module")
def primed() -> Layers:
    """Primed variables of such a size that activations stay near one from layer to layer."""
    rng = np.random.default_rng(0)
    layers: Layers = []
    inputs = 3
    for out, kernel in zip(CHANNELS, KERNELS, strict=True):
        size = np.sqrt(2 * out / (inputs * kernel**2))
        layers.append((size * rng.normal(size=(out, inputs, kernel, kernel)), rng.normal(size=out)))
        inputs = out
    return layers


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, size=(2, 3, 32, 32))


@pytest.fixture(scope="module")
def network(primed: Layers) -> nn.Sequential:
    """The same network in torch, with the variables as they are used: θ = scale · θ'."""
    parts: list[nn.Module] = []
    for (weight, bias), stride in zip(primed, STRIDES, strict=True):
        out, inputs, kernel, _ = weight.shape
        layer = nn.Conv2d(inputs, out, kernel, stride).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight * out**-0.5))
            layer.bias.copy_(torch.from_numpy(bias * 0.1**0.5))
        parts += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("depth", [1, 2, 3], ids=["conv5", "conv4-5", "conv3-5"])
def test_logits_and_jvp_are_those_of_the_published_network(
    depth: int, primed: Layers, x: np.ndarray, network: nn.Sequential
) -> None:
    rng = np.random.default_rng(2)
    omega, w1 = rng.normal(size=(2, 512, CLASSES))
    b = rng.normal(size=CLASSES)
    first = len(CHANNELS) - depth
    w2 = [tuple(rng.normal(size=part.shape) for part in layer) for layer in primed[first:]]
    moved: Layers = [
        (weight + 1j * STEP * w, bias + 1j * STEP * v)
        for (weight, bias), (w, v) in zip(primed[first:], w2, strict=True)
    ]
    f = features(primed, x)
    jvp = features(primed[:first] + moved, x).imag / STEP

    names = [str(2 * layer) for layer in range(first, len(CHANNELS))]
    linearization = linearize(network, torch.from_numpy(x), names)
    model = GradientFeatureModel(linearization, torch.from_numpy(omega), mode="full", parametrization="ntk_fan_out")
    assert list(linearization.theta2) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    with torch.no_grad():
        model.w1.copy_(torch.from_numpy(w1))
        model.b.copy_(torch.from_numpy(b))
        # what is trained beside w₁ and b are the primed variables
        for parameter, value in zip(model.trained()[2:], (part for layer in w2 for part in layer), strict=True):
            parameter.copy_(torch.from_numpy(value))
        z0 = linearization.bottom(torch.from_numpy(x))
        found, residuals = linearization.primal(z0)
        tangent = linearization.tangent(model.w2, residuals)
        logits = model(torch.from_numpy(x))
    assert np.abs(jvp).max() > 0.01
    np.testing.assert_allclose(found.numpy(), f, rtol=1e-10, atol=1e-10 * np.abs(f).max())
    np.testing.assert_allclose(tangent.numpy(), jvp, rtol=1e-10, atol=1e-10 * np.abs(jvp).max())
    expected = f @ w1 + b + jvp @ omega  # Eq. 2
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
