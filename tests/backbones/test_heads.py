"""The classifier that a published network still wears is found in all its forms, or its outputs are said to be f(x)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradfeat
from gradfeat import GradientFeatureClassifier
from gradfeat.backbones import fingerprint, head_of, resolve
from gradfeat.errors import ConfigurationError, GradfeatWarning
from gradfeat.linearization.capture import FeatureExtractor
from gradfeat.optional import require


def _library(package: str, module: str) -> Any:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return require(module, extra="vision")


@pytest.fixture(scope="module")
def timm() -> Any:
    return _library("timm", "timm")


@pytest.fixture(scope="module")
def models() -> Any:
    return _library("torchvision", "torchvision.models")


def _f(network: nn.Module, x: Tensor) -> Tensor:
    backbone = resolve(network)
    with torch.no_grad():
        return FeatureExtractor(backbone.network, backbone.features)((x,), {})


@pytest.mark.parametrize(
    ("model", "size"),
    [
        pytest.param("dla46x_c", 32, id="convolution"),
        pytest.param("resnetv2_18", 32, id="convolution in a head", marks=pytest.mark.slow),
        pytest.param("levit_128s", 224, id="distilled, with norms"),
        pytest.param("deit_tiny_distilled_patch16_224?depth=1", 224, id="distilled"),
        pytest.param("efficientformerv2_s0", 224, id="distilled, other class", marks=pytest.mark.slow),
        pytest.param("crossvit_tiny_240", 240, id="two branches", marks=pytest.mark.slow),
        pytest.param("test_convnext", 32, id="norm and linear"),
        pytest.param("mobilenetv3_small_050", 32, id="dropout and linear"),
    ],
)
def test_features_of_a_module_are_those_of_its_name(timm: Any, model: str, size: int) -> None:
    name, _, options = model.partition("?")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7, **({"depth": 1} if options else {})).eval()
    before = fingerprint(network)
    x = torch.randn(2, 3, size, size)
    found = _f(network, x)
    bare = resolve(f"timm/{model}", weights="random").network
    assert not bare.load_state_dict(network.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        torch.testing.assert_close(found, bare(x))
        assert network(x).shape == (2, 7)
    assert fingerprint(network) == before


def test_several_heads_are_taken_off_a_network_that_shares_the_weights(timm: Any) -> None:
    network = timm.create_model("levit_128s", num_classes=7)
    backbone = resolve(network)
    assert backbone.network is not network
    assert "several classifiers" in backbone.notes[0]
    own = dict(network.named_parameters())
    assert all(own[name] is value for name, value in backbone.network.named_parameters())
    assert backbone.head is None
    bare = resolve(backbone.network)
    assert (bare.network, bare.fingerprint) == (backbone.network, backbone.fingerprint)


def test_squeezenets_head_is_a_convolution(models: Any) -> None:
    network = models.squeezenet1_1(weights=None).eval()
    assert head_of(network) == "classifier.1"
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(_f(network, x), network.features(x).mean((2, 3)))


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(96, 3), "fc"),
    "dropout, linear": (lambda: nn.Sequential(nn.Dropout(), nn.Linear(96, 3)), "fc.1"),
    "linear, softmax": (lambda: nn.Sequential(nn.Linear(96, 3), nn.Softmax(1)), "fc.0"),
    "two layers": (lambda: nn.Sequential(nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)), "fc.2"),
}


@pytest.mark.parametrize(("head", "name"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_heads_that_users_put_on(
    request: pytest.FixtureRequest, library: str, head: Callable[[], nn.Module], name: str
) -> None:
    if library == "timm":
        network = request.getfixturevalue("timm").create_model("test_resnet", num_classes=5)
    else:
        network = request.getfixturevalue("models").resnet18(weights=None)
        network.fc = nn.Linear(96, 5)
    network.fc = head()
    assert head_of(network) == name
    assert head_of(nn.DataParallel(network)) == f"module.{name}"
    assert head_of(torch.compile(network)) == f"_orig_mod.{name}"  # type: ignore[arg-type]


def test_a_head_that_was_replaced_whole(timm: Any) -> None:
    network = timm.create_model("test_convnext", num_classes=5)
    network.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
    assert head_of(network) == "head.2"
    network.head = nn.Identity()
    assert head_of(network) is None


def test_the_head_of_an_image_classifier_of_transformers() -> None:
    transformers = _library("transformers", "transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    network = transformers.ViTForImageClassification(config).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(_f(network, x), network.vit(x).last_hidden_state[:, 0])


def test_what_is_not_found_is_said(models: Any) -> None:
    class Mine(models.ResNet):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)

    for network in (Mine(), nn.DataParallel(Mine())):
        with pytest.warns(GradfeatWarning, match=r"fc' \(Linear, 4 outputs\)"):
            (note,) = resolve(network).notes
        assert "fc' (Linear, 4 outputs)" in note
    published = models.video.s3d(weights=None, num_classes=4)
    with pytest.warns(GradfeatWarning, match=r"'classifier.1' \(Conv3d, 4 outputs\)"):
        assert resolve(published).features is None
    assert resolve(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).notes == ()


def test_a_model_that_was_fitted_to_other_features_is_loaded_with_these(timm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5).eval()
    X, y = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32), np.arange(8) % 2

    def whole(shape: tuple[int, ...]) -> nn.Module:
        return network

    fitted = GradientFeatureClassifier(whole, theta2=["layer4"], penalty=0.1, random_state=0).fit(X, y)
    assert fitted.omega_.shape[0] == 5
    path = fitted.save(tmp_path / "m.safetensors")
    again = gradfeat.load(path, backbone=network)
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


# ---- modules that cannot serve ---------------------------------------------------------------------------------------


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()


def _with(layer: nn.Module) -> nn.Sequential:
    network = _net()
    network[4] = layer
    return network


def _weight(change: Callable[[Tensor], Tensor]) -> nn.Sequential:
    network = _net()
    network[4].weight = nn.Parameter(change(network[4].weight.detach()), requires_grad=False)
    return network


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _with(nn.LazyLinear(2)), r"4 \(LazyLinear\) has no weights yet"),
        (lambda: _net().to("meta"), "meta device"),
        (lambda: torch.ao.quantization.quantize_dynamic(_net(), {nn.Linear}), r"4 \(Linear\) is quantized"),
        (lambda: torch.jit.trace(_net(), torch.ones(1, 3, 8, 8)), "TorchScript module"),
        (lambda: torch.export.export(_net(), (torch.ones(2, 3, 8, 8),)).module(), "program of torch.export"),
        (lambda: torch.export.export(_net(), (torch.ones(2, 3, 8, 8),)), "got ExportedProgram"),
        (lambda: _weight(lambda w: w.to(torch.float8_e4m3fn)), "8-bit floats"),
        (lambda: _weight(lambda w: w.to_sparse()), "sparse weights"),
        (lambda: _net().state_dict(), "Weights alone are no network"),
        (lambda: nn.Bilinear, "not the class"),
    ],
    ids=["lazy", "meta", "quantized", "script", "export", "exported", "fp8", "sparse", "state dict", "class"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_modules_that_cannot_serve_are_said_as_what_they_are(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve(build(), X_shape=(4, 3, 8, 8))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda n: torch.compile(n, backend="eager"),
        torch.optim.swa_utils.AveragedModel,
        lambda n: n.apply(lambda m: nn.utils.weight_norm(m) if isinstance(m, nn.Conv2d) else None),
        lambda n: (nn.utils.parametrizations.weight_norm(n[2]), n)[1],
        lambda n: (nn.utils.spectral_norm(n[2]), n)[1].eval(),
    ],
    ids=["DataParallel", "compile", "AveragedModel", "weight_norm, old", "weight_norm", "spectral_norm, old"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_wrapped_and_parametrized_networks_are_their_own_function(wrap: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    network = wrap(_net())
    backbone, x = resolve(network), torch.randn(3, 3, 8, 8)
    lin = gradfeat.linearize(backbone.network, x, "auto", features=backbone.features)
    with torch.no_grad():
        torch.testing.assert_close(lin.primal(lin.bottom(x))[0], network(x))
