from __future__ import annotations

import json
import math

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from gradfeat.backbones import resolve
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arguments", {"in_channels": 1, "channels": [10**6, 10**6], "strides": [2, 2]}),
        ("arguments", {"in_channels": 1, "channels": [1] * 100_000, "strides": [1] * 100_000}),
        ("arguments", {"in_channels": -1}),
        ("arguments", {"in_channels": {"a": 1}}),
        ("arguments", [1]),
        ("preprocessing", [1]),
        ("preprocessing", {"size": [1e308, 8], "mean": [0.5], "std": [0.5], "channels": 1}),
        ("preprocessing", {"size": [8, 8], "mean": [math.nan], "std": [0.5], "channels": 1}),
    ],
    ids=["wide", "deep", "negative", "no number", "list", "no object", "large", "nan"],
)
def test_metadata_that_do_not_fit_are_refused_before_room_is_made(tmp_path, field, value):
    path, state, about = _encoder(tmp_path)
    safetensors.torch.save_file(state, path, about | {field: json.dumps(value)})
    with pytest.raises(BackboneError, match="is damaged"):
        resolve(str(path))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"depth": 60000002}'])
def test_architectures_that_are_none(tmp_path, text):
    path, state, about = _encoder(tmp_path)
    safetensors.torch.save_file(state, path, about | {"arguments": text, "architecture": "CifarResNet"})
    with pytest.raises(BackboneError, match="is damaged"):
        resolve(str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight * math.nan,
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: weight.to(torch.int32),
        lambda weight: torch.zeros(10**9, 0),
    ],
    ids=["nan", "complex", "fp8", "int", "empty"],
)
def test_weights_that_are_no_weights(tmp_path, change):
    path, state, about = _encoder(tmp_path)
    safetensors.torch.save_file({**state, NAME: change(state[NAME]).contiguous()}, path, about)
    with pytest.raises(BackboneError, match="is damaged"):
        resolve(str(path))


NAME = "blocks.0.0.weight"


def _encoder(folder):
    path = save_encoder(
        ConvEncoder(1, channels=(4, 6), strides=(2, 2)).eval(),
        folder / "encoder.safetensors",
        task="vae",
        preprocessing={"size": [8, 8], "mean": [0.5], "std": [0.5], "channels": 1},
    )
    with safetensors.safe_open(path, "pt") as file:
        about = dict(file.metadata())
    state = {name: value.clone() for name, value in safetensors.torch.load_file(path).items()}
    return path, state, about
