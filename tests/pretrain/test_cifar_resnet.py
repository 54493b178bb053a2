"""The ResNet for small images, from random weights and from the common public ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from gradfeat import linearize
from gradfeat.backbones import resolve
from gradfeat.data import Inputs, load_dataset
from gradfeat.errors import BackboneError, ConfigurationError
from gradfeat.pretrain import load_encoder, pretrain_encoder, save_encoder
from gradfeat.pretrain.cifar_resnet import CifarResNet

SCALING = {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_as_many_as_published(depth: int, millions: float) -> None:
    """He et al. (2016), Table 6, with the classifier of CIFAR-10."""
    count = sum(p.numel() for p in CifarResNet(depth=depth).parameters()) + 64 * 10 + 10
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_shortcuts_are_of_option_a() -> None:
    """With convolutions of zero only the shortcuts are left: every fourth pixel, zeros around the channels."""
    network = CifarResNet(depth=14).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "layer" in name and "conv" in name:
                parameter.zero_()
    x = torch.randn(2, 3, 32, 32)
    first = functional.relu(network.bn1(network.conv1(x)))
    last = network.forward_map(x)
    assert last.shape == (2, 64, 8, 8)
    torch.testing.assert_close(last[:, 24:40], first[:, :, ::4, ::4])
    assert float(last[:, :24].detach().abs().max()) == float(last[:, 40:].detach().abs().max()) == 0
    torch.testing.assert_close(network(x), last.mean(dim=(2, 3)))


def test_pretraining_file_and_linearization(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    encoder = pretrain_encoder(images, labels, task="supervised", network="resnet20", epochs=1, random_state=0)
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="supervised", preprocessing=SCALING)
    loaded, about = load_encoder(path)
    assert about["arguments"] == {"in_channels": 3, "depth": 20}
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), encoder(x), rtol=0, atol=0)
    lin = linearize(loaded.double(), x.double(), "auto")
    assert {name.split(".")[0] for name in lin.theta2} == {"layer3"}


def test_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CifarResNet(depth=8).eval()
    head = nn.Linear(64, 10)
    state = {**network.state_dict(), "linear.weight": head.weight.data, "linear.bias": head.bias.data}
    path = tmp_path / "public.safetensors"
    safetensors.torch.save_file(state, path, {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5", "input_size": "3,32,32"})
    backbone = resolve("gradfeat/resnet8", weights=path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(x), network(x), rtol=0, atol=0)
    assert backbone.preprocessing is not None
    assert any("classifier in the file is not used: linear.bias, linear.weight" in note for note in backbone.notes)
    assert resolve("gradfeat/resnet8?in_channels=1", weights="random").network(torch.zeros(1, 1, 8, 8)).shape == (1, 64)
    with pytest.raises(BackboneError, match="without weights of its own"):
        resolve("gradfeat/resnet20")
    with pytest.raises(ConfigurationError, match="6 n \\+ 2 layers"):
        resolve("gradfeat/resnet18", weights="random")
    with pytest.raises(ConfigurationError, match="takes the option in_channels"):
        resolve("gradfeat/resnet20?width=3", weights="random")
    with pytest.raises(BackboneError, match="missing"):
        resolve("gradfeat/resnet14", weights=path)


def test_public_weights_have_their_accuracy(shared_data: Path) -> None:
    """91.7 % on all of CIFAR-10's test images is published; three standard errors of a thousand are 2.6 points."""
    path = shared_data / "weights" / "resnet20.cifar10.safetensors"
    images = shared_data / "cifar10_5k"
    if not path.is_file() or not images.is_dir():
        pytest.skip(f"no weights at {path}, or no images at {images}")
    data = load_dataset(images, split="test")
    backbone = resolve("gradfeat/resnet20", weights=path)
    inputs = Inputs(data.X, backbone.preprocessing)
    state = safetensors.torch.load_file(path)
    assert data.y is not None
    with torch.no_grad():
        f = torch.cat([backbone.network(inputs.batch(range(i, i + 250))) for i in range(0, len(data.y), 250)])
        predicted = (f @ state["linear.weight"].float().T + state["linear.bias"].float()).argmax(1).numpy()
    assert np.mean(predicted == np.unique(data.y, return_inverse=True)[1]) > 0.917 - 0.026
