"""Loading asks no other machine, unless that is allowed: what the libraries have fetched before is used."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewriting import rewritten
from safetensors.torch import save_file
from torch import nn

import gradfeat
from gradfeat import GradientFeatureClassifier
from gradfeat.backbones import resolve
from gradfeat.data import TextPreprocessing
from gradfeat.errors import AdapterError, BackboneError
from gradfeat.optional import offline, require

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3
TEXTS = ["good film", "bad plot", "the plot was good", "a very bad film"] * 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What other machines were asked for, which none can be."""
    found: list[Any] = []

    def refuse(*address: Any, **more: Any) -> Any:
        found.append(address)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and one of torch."""
    folder = tmp_path / "hub"
    constants = require("huggingface_hub.constants", extra="vision")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    return folder


def fetched(hub: Path, source: str, file: str) -> Path:
    """Return the place of a file of a published model that has been fetched."""
    folder = hub / f"models--{source.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / ("0" * 40) / file


def activation(backbone: Any, X: Any = IMAGES, **more: Any) -> Any:
    return GradientFeatureClassifier(backbone, mode="activation", penalty=0.1, random_state=0, **more).fit(X, LABELS)


def test_published_weights_are_taken_from_the_cache_and_never_fetched(
    tmp_path: Path, hub: Path, asked: list[Any]
) -> None:
    timm = require("timm", extra="vision")
    torch.manual_seed(0)
    file = fetched(hub, "timm/test_resnet.r160_in1k", "model.safetensors")
    save_file(timm.create_model("test_resnet").state_dict(), file)
    with offline():
        before = activation("timm/test_resnet", image_size=32)
    path = before.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(gradfeat.load(path).predict_proba(IMAGES), before.predict_proba(IMAGES))
    file.unlink()
    with pytest.raises(AdapterError, match=r"timm/test_resnet.*allow_download=True.*--allow-download"):
        gradfeat.load(path)
    assert asked == []


def test_weights_of_torchvision_are_taken_from_what_was_fetched(tmp_path: Path, hub: Path, asked: list[Any]) -> None:
    models = require("torchvision.models", extra="vision")
    entry = models.get_model_weights("squeezenet1_1").DEFAULT
    file = tmp_path / "torch" / "checkpoints" / Path(entry.url).name
    with offline(), pytest.raises(BackboneError, match="allow_download"):
        resolve("torchvision/squeezenet1_1")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not these weights")
    with offline(), pytest.raises(BackboneError, match="could not load"):  # it was opened
        resolve("torchvision/squeezenet1_1")
    file.unlink()
    random = activation("torchvision/squeezenet1_1", image_size=32, weights="random").save(tmp_path / "random")
    path = rewritten(random, tmp_path / "m.safetensors", lambda about: about["backbone"].update(weights=None))
    with pytest.raises(AdapterError, match="allow_download"):
        gradfeat.load(path)
    assert asked == []
    with pytest.raises(AdapterError, match="no network"):
        gradfeat.load(path, allow_download=True)
    assert asked != []


def test_a_folder_of_transformers_is_loaded_without_a_request(
    tmp_path: Path, tiny_bert: Path, asked: list[Any]
) -> None:
    with offline():
        before = activation(f"hf/{tiny_bert}", TEXTS)
    after = gradfeat.load(before.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(after.predict_proba(TEXTS), before.predict_proba(TEXTS))
    assert after.backbone_.preprocessing == before.backbone_.preprocessing
    assert asked == []


class Bag(nn.Module):
    """A module that reads tokens, whose tokenizer a file names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.top = nn.Embedding(14, 8), nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.top(self.table(tokens[:, 0]).mean(1)))


def test_a_tokenizer_that_a_file_names_is_not_fetched_when_texts_come(
    tmp_path: Path, tiny_bert: Path, hub: Path, asked: list[Any]
) -> None:
    tokens, fixed = TextPreprocessing(tokenizer=str(tiny_bert), download=False).tokenize(TEXTS)
    before = activation(Bag(), tokens, preprocessing=fixed)
    before.backbone_.preprocessing.__dict__["tokenizer"] = "someone/tokenizer"
    loaded = gradfeat.load(before.save(tmp_path / "m.safetensors"), backbone=Bag())
    np.testing.assert_array_equal(loaded.predict_proba(tokens), before.predict_proba(tokens))
    with pytest.raises(BackboneError, match="allow_download"):
        loaded.predict(TEXTS)
    assert asked == []


@pytest.mark.parametrize("where", ["https://host/w.safetensors", r"\\host\share\w.pth", "//host/share/w.pth"])
def test_a_path_on_another_machine_is_not_opened(tmp_path: Path, asked: list[Any], where: str) -> None:
    saved = activation("timm/test_resnet", image_size=32, weights="random").save(tmp_path / "saved.safetensors")
    path = rewritten(saved, tmp_path / "m.safetensors", lambda about: about["backbone"].update(weights=where))
    with pytest.raises(AdapterError, match="on another machine"):
        gradfeat.load(path)
    assert asked == []
