from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from gradfeat.errors import BackboneError, ConfigurationError
from gradfeat.pretrain import ConvEncoder, load_encoder, save_encoder

SCALING = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def encoder():
    return ConvEncoder(3, channels=(4, 6), strides=(1, 2), kernel_size=5).eval()


def test_round_trip(tmp_path, encoder):
    path = save_encoder(encoder, tmp_path / "new" / "e.safetensors", task="vae", preprocessing=SCALING)
    loaded, metadata = load_encoder(path)
    assert not loaded.training
    assert metadata["preprocessing"] == SCALING
    assert metadata["task"] == "vae"
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), encoder(x))
    assert [file.name for file in path.parent.iterdir()] == ["e.safetensors"]


def test_half_precision_rounds_the_layers_weights_and_nothing_else(tmp_path, encoder):
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="vae", preprocessing=SCALING, half=True)
    loaded, _ = load_encoder(path)
    state, read = encoder.state_dict(), loaded.state_dict()
    rounded = [name for name, value in state.items() if value.ndim == 4]
    assert len(rounded) == 2
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value.half().float() if name in rounded else value)
    assert safetensors.torch.load_file(path)[rounded[0]].dtype == torch.float16
    with torch.no_grad():
        encoder.blocks[0][0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(BackboneError, match="half"):
        save_encoder(encoder, path, task="vae", preprocessing=SCALING, half=True)
    assert torch.equal(load_encoder(path)[0].state_dict()[rounded[0]], read[rounded[0]])


def test_a_crash_while_writing_keeps_the_old_file(tmp_path, encoder, monkeypatch):
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="vae", preprocessing=SCALING)
    before = path.read_bytes()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_encoder(ConvEncoder(3), path, task="vae", preprocessing=SCALING)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]


def test_truncated_files(tmp_path, encoder):
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="vae", preprocessing=SCALING)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(BackboneError, match="damaged"):
            load_encoder(path)


def test_foreign_newer_and_damaged_files(tmp_path, encoder):
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="vae", preprocessing=SCALING)
    with safetensors.safe_open(path, "pt") as file:
        good = dict(file.metadata())
    state = dict(encoder.state_dict())
    for change, message in (
        ({"format": "other"}, "not an encoder written by gradfeat"),
        ({"format_version": "99"}, "Upgrade"),
        ({"architecture": "Later"}, "Upgrade"),
        ({"arguments": "{"}, "metadata cannot be read"),
        ({"arguments": json.dumps({"in_channels": 1})}, "do not fit"),
        ({"arguments": json.dumps({"depth": 1})}, "do not fit"),
    ):
        safetensors.torch.save_file(state, path, good | change)
        with pytest.raises(BackboneError, match=message):
            load_encoder(path)
    with pytest.raises(BackboneError, match="No encoder file"):
        load_encoder(tmp_path / "none.safetensors")


def test_only_own_encoders_are_written(tmp_path, encoder):
    with pytest.raises(BackboneError, match="got Linear"):
        save_encoder(nn.Linear(1, 1), tmp_path / "e.safetensors", task="vae", preprocessing=SCALING)
    with pytest.raises(BackboneError, match=r"ends in \.safetensors"):
        save_encoder(encoder, tmp_path / "e.pth", task="vae", preprocessing=SCALING)


@pytest.mark.parametrize(
    "arguments", [{"channels": (4,), "strides": (1, 2)}, {"channels": (), "strides": ()}, {"kernel_size": 2}]
)
def test_encoder_checks_its_arguments(arguments):
    with pytest.raises(ConfigurationError):
        ConvEncoder(1, **arguments)
