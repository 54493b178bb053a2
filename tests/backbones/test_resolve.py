from __future__ import annotations

import copy
import importlib.util
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from gradfeat.backbones import fingerprint, head_of, resolve
from gradfeat.errors import BackboneError, ConfigurationError
from gradfeat.optional import require
from gradfeat.pretrain import ConvEncoder, save_encoder

SCALING = {"size": [8, 8], "crop_pct": 1.0, "mean": [0.5], "std": [0.5], "channels": 1}


def _library(package, module):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return require(module, extra="vision")


@pytest.fixture(scope="module")
def timm():
    return _library("timm", "timm")


@pytest.fixture(scope="module")
def models():
    return _library("torchvision", "torchvision.models")


def mlp(shape):
    return nn.Sequential(nn.Linear(shape[1], 5), nn.Tanh())


# Modules and callables


def test_module_is_used_as_it_is():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).train()
    before = copy.deepcopy(net.state_dict())
    backbone = resolve(net)
    assert backbone.network is net
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert (backbone.name, backbone.features, backbone.head, backbone.preprocessing) == (None, None, None, None)
    assert backbone.fingerprint == fingerprint(net)


def test_head_of_timm_module(timm):
    net = timm.create_model("test_resnet", num_classes=7).eval()
    backbone = resolve(net)
    assert (backbone.head, backbone.features) == ("fc", "input:fc")
    assert backbone.preprocessing.size == tuple(net.pretrained_cfg["input_size"][1:])
    net.reset_classifier(0)
    assert head_of(net) is None


@pytest.mark.parametrize(
    ("model", "head"),
    [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3"), ("squeezenet1_1", "classifier.1")],
)
def test_head_of_torchvision_module(models, model, head):
    assert head_of(models.get_model(model, weights=None)) == head


def test_a_users_own_classifier_is_left_alone():
    assert resolve(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).features is None


def test_callable_is_seeded_and_leaves_the_global_stream():
    state = torch.get_rng_state()
    a, b, c = (resolve(mlp, X_shape=(10, 3), random_state=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.network[0].in_features == 3
    assert a.name.endswith("mlp")


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        (3, {}, "got int"),
        (mlp, {}, "needs X_shape"),
        (lambda shape: 3, {"X_shape": (1, 2)}, "returned int"),
        (mlp, {"X_shape": (1, 2), "weights": "w.pth"}, "by name"),
        (nn.Linear(1, 1), {"weights": "w.pth"}, "load_state_dict"),
        (nn.Linear(1, 1), {"preprocessing": {"mean": [0.5]}}, "size, std is missing"),
        (nn.Linear(1, 1), {"image_size": 8}, "mean, std is missing"),
        (nn.Linear(1, 1), {"image_size": 8, "preprocessing": {"size": [8, 8]}}, "not both"),
        (nn.Linear(1, 1), {"preprocessing": {**SCALING, "means": [0.5]}}, "Did you mean mean"),
        (nn.Linear(1, 1), {"image_size": -1}, "positive"),
    ],
)
def test_bad_arguments(backbone, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(backbone, **arguments)


def test_preprocessing_for_a_module():
    found = resolve(nn.Linear(1, 1), preprocessing={"size": [8, 9], "mean": [0.1], "std": [0.2]}).preprocessing
    assert (found.size, found.mean, found.std, found.channels) == ((8, 9), (0.1,), (0.2,), 1)
    assert resolve(nn.Linear(1, 1), preprocessing=found).preprocessing is found


# Names


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_timm_features_are_the_input_of_the_classifier(timm, tmp_path, model):
    full = timm.create_model(model, num_classes=3).eval()
    torch.save(full.state_dict(), tmp_path / "w.pth")
    named = resolve(f"timm/{model}", weights=tmp_path / "w.pth")
    module = resolve(full)
    seen = []
    full.get_submodule(module.head).register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    x = torch.randn(2, *full.pretrained_cfg["input_size"])
    with torch.no_grad():
        full(x)
        torch.testing.assert_close(named.network(x), seen[0])
    assert not named.network.training
    assert named.head is None
    assert "classifier" in named.notes[0]


def test_torchvision_features_are_the_input_of_the_classifier(models, tmp_path):
    full = models.get_model("mobilenet_v3_small", weights=None, num_classes=3).eval()
    torch.save({"state_dict": full.state_dict()}, tmp_path / "w.pth")
    named = resolve("torchvision/mobilenet_v3_small", weights=tmp_path / "w.pth")
    seen = []
    full.classifier[-1].register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        full(x)
        torch.testing.assert_close(named.network(x), seen[0])
    found = named.preprocessing
    assert (found.size, found.interpolation) == ((224, 224), "bilinear")
    assert math.isclose(found.crop_pct, 224 / 256)


def test_random_weights_are_seeded(timm):
    a, b, c = (resolve("timm/test_resnet", weights="random", random_state=seed) for seed in (0, 0, 1))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert a.notes == ("The weights are random.",)


def test_options_reach_the_constructor(timm):
    backbone = resolve("timm/test_resnet?in_chans=1", weights="random", image_size=32)
    assert backbone.network(torch.zeros(1, 1, 32, 32)).ndim == 2
    assert (backbone.preprocessing.channels, backbone.preprocessing.size) == (1, (32, 32))


@pytest.mark.parametrize(
    ("settings", "crop_pct"),
    [
        ({}, 224 / 256),  # torchvision's own, which published numbers are for
        ({"image_size": 64}, 1.0),
        ({"image_size": 64, "preprocessing": {"resize": "squash"}}, 1.0),
        ({"image_size": 64, "preprocessing": {"crop_pct": 0.8}}, 0.8),
        ({"image_size": 64, "preprocessing": {"crop_pct": None}}, 224 / 256),
        ({"preprocessing": {"crop_pct": None, "size": [64, 64]}}, 224 / 256),
        ({"preprocessing": {"crop_pct": 0.8}}, 0.8),
    ],
)
def test_an_image_size_that_is_asked_for_keeps_the_whole_image(models, settings, crop_pct):
    found = resolve("torchvision/mobilenet_v3_small", weights="random", **settings).preprocessing
    assert math.isclose(found.crop_pct, crop_pct)
    assert found.size == ((64, 64) if "64" in str(settings) else (224, 224))
    image = np.full((90, 90, 3), 255, np.uint8)
    image[5:-5, 5:-5] = 0  # a border of 1/18 of the side
    assert bool(found.from_uint8(image[None]).max() > 0) == (crop_pct == 1)  # black is below zero


def test_metadata_gives_the_preprocessing(timm, tmp_path):
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    plain = {"mean": "0.5,0.5,0.5", "std": "0.25,0.25,0.25", "input_size": "3,64,48"}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", plain)
    found = resolve("timm/test_resnet", weights=tmp_path / "w.safetensors").preprocessing
    assert (found.mean, found.std, found.size) == ((0.5,) * 3, (0.25,) * 3, (64, 48))
    override = {"std": [0.1, 0.1, 0.1]}
    found = resolve("timm/test_resnet", weights=tmp_path / "w.safetensors", preprocessing=override).preprocessing
    assert (found.mean, found.std) == ((0.5,) * 3, (0.1,) * 3)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"preprocessing": "{"})
    with pytest.raises(BackboneError, match="cannot be read"):
        resolve("timm/test_resnet", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/mobilenetv2_1000", "Did you mean mobilenetv2_100"),
        ("timm/resnet18.a1_in2k", "Did you mean a1_in1k"),
        ("timm/test_resnet?foo=1", "unexpected keyword argument 'foo'"),
        ("timm/test_resnet?num_classes=3", "set by gradfeat"),
        ("torchvision/resnet19", "Did you mean resnet18"),
        ("torchvision/fcn_resnet50", "no classifier"),
        ("torchvision/resnet18.V9", "Known: IMAGENET1K_V1"),
        ("torchvision/shufflenet_v2_x0_5?foo=1", "unexpected keyword argument 'foo'"),
        ("torchvision/resnet18?weights=DEFAULT", "set by gradfeat"),
    ],
)
def test_bad_names_in_libraries(timm, models, name, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(name, weights="random")


def test_squeezenet_gives_the_mean_of_its_last_map(models):
    backbone = resolve("torchvision/squeezenet1_1", weights="random", random_state=0)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(x), backbone.network.features(x).mean((2, 3)))
    whole = models.squeezenet1_1(weights=None)
    kept = set(backbone.network.state_dict())
    assert set(whole.state_dict()) - kept == {"classifier.1.weight", "classifier.1.bias"}


def test_fixed_image_size_is_refused(timm):
    with pytest.raises(ConfigurationError, match="img_size=32"):
        resolve("timm/vit_tiny_patch16_224", weights="random", image_size=32)
    assert resolve("timm/vit_tiny_patch16_224?img_size=32", weights="random").preprocessing.size == (32, 32)


def test_without_a_network_the_way_out_is_said(timm, models, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(BackboneError, match=r"huggingface.co/timm/resnet18.a1_in1k.*--weights"):
        resolve("timm/resnet18")
    with pytest.raises(BackboneError, match=r"download.pytorch.org/models/resnet18.*--weights"):
        resolve("torchvision/resnet18")


def test_weights_of_another_network(timm, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="different architecture"):
        resolve("timm/test_resnet", weights=tmp_path / "w.pth")


def test_mobilenet_with_real_weights(timm, shared_data):
    path = shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    backbone = resolve("timm/mobilenetv2_100?pad_type=same", weights=path)
    assert backbone.preprocessing.mean == backbone.preprocessing.std == (0.5, 0.5, 0.5)
    with torch.no_grad():
        assert backbone.network(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)
    plain = resolve("timm/mobilenetv2_100", weights=path)
    assert plain.fingerprint != backbone.fingerprint  # the same weights, but another padding is another function


# gradfeat's own encoders


def test_encoder_file(tmp_path):
    encoder = ConvEncoder(1).eval()
    path = save_encoder(encoder, tmp_path / "e.safetensors", task="vae", preprocessing=SCALING)
    for name in (str(path), path, f"gradfeat/{path}"):
        backbone = resolve(name)
        assert backbone.fingerprint == fingerprint(encoder)
        assert (backbone.preprocessing.size, backbone.preprocessing.mean) == ((8, 8), (0.5,))
    assert resolve(path, weights="random", random_state=0).fingerprint != fingerprint(encoder)
    with pytest.raises(ConfigurationError, match="holds its weights"):
        resolve(path, weights="w.pth")
    with pytest.raises(BackboneError, match="No encoder file"):
        resolve("gradfeat/none.safetensors")
