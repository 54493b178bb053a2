"""Equal content is equal bytes, and a safetensors file for everybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradfeat import GradientFeatureClassifier
from gradfeat.files.tensor_file import tensor_file
from gradfeat.fit.checkpoint import Checkpoint, Part
from gradfeat.pretrain import load_encoder, pretrain_encoder, save_encoder
from gradfeat.pretrain.encoder import ConvEncoder

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tensors = st.dictionaries(
    text.filter(lambda name: name != "__metadata__"),
    st.builds(
        lambda shape, dtype: (torch.arange(int(np.prod(shape))) % 2).reshape(shape).to(dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from(DTYPES),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tensors, st.dictionaries(text, text, max_size=6))
def test_the_library_reads_what_was_written_in_any_order(content: dict[str, Tensor], texts: dict[str, str]) -> None:
    found = tensor_file(content, texts)
    turned = tensor_file(dict(reversed(content.items())), dict(reversed(texts.items())))
    assert found == turned
    read = safetensors.torch.load(found)
    assert read.keys() == content.keys()
    for name, value in content.items():
        torch.testing.assert_close(read[name], value, rtol=0, atol=0)


def test_texts_come_back(tmp_path: Path) -> None:
    texts = {f"key {i}": f'"{chr(i)}" \\ \x1b \u2028 é' for i in range(1, 40)}
    (tmp_path / "x").write_bytes(tensor_file({"w": torch.ones(3)}, texts))
    with safetensors.safe_open(tmp_path / "x", framework="pt") as file:
        assert dict(file.metadata()) == texts
        assert file.get_tensor("w").tolist() == [1, 1, 1]


def test_tensors_that_share_memory_or_lie_otherwise_are_written_as_they_are() -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "whole": whole,
        "again": whole,
        "part": whole[:, 1],
        "turned": whole.permute(2, 0, 1),
        "spread": torch.ones(1).expand(5),
        "channels": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "learned": nn.Parameter(torch.ones(2)),
    }
    read = safetensors.torch.load(tensor_file(content, {}))
    for name, value in content.items():
        torch.testing.assert_close(read[name], value.detach(), rtol=0, atol=0)


def test_an_encoder_is_the_same_file_in_every_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ConvEncoder(1, channels=(2, 3), strides=(2, 2))
    path = save_encoder(network, tmp_path / "a.safetensors", task="vae", preprocessing=SCALING)
    code = f"""
from gradfeat.pretrain import load_encoder, save_encoder
network, about = load_encoder({str(path)!r})
again = dict(reversed(about["preprocessing"].items()))
save_encoder(network, {str(tmp_path / "b.safetensors")!r}, task=about["task"], preprocessing=again)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


SCALING = {"size": [8, 8], "crop_pct": 1.0, "mean": [0.5], "std": [0.5], "channels": 1}


def test_a_run_that_goes_on_ends_with_the_same_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)

    def stop(epoch: int, of: int, loss: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    def run(folder: Path, **more: Any) -> bytes:
        torch.manual_seed(1)
        network = ConvEncoder(1, channels=(2, 3), strides=(2, 2))
        network = pretrain_encoder(images, task="rotation", network=network, epochs=2, folder=folder, **more)
        save_encoder(network, folder / "encoder.safetensors", task="rotation", preprocessing=SCALING)
        return (folder / "encoder.safetensors").read_bytes() + (folder / "checkpoint.safetensors").read_bytes()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", progress=stop)
    assert run(tmp_path / "parts") == whole
    assert load_encoder(tmp_path / "parts" / "encoder.safetensors")[1]["task"] == "rotation"


def test_the_same_fit_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # the file says how long the fit took
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)).astype(np.float32), rng.integers(0, 2, 30)

    def fit(name: str) -> bytes:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        model = GradientFeatureClassifier(network, solver="adam", epochs=1, theta2="2", random_state=0)
        path: Path = model.fit(X, y).save(tmp_path / name)
        return path.read_bytes()

    assert fit("a") == fit("b")


def test_a_part_of_a_fit_is_the_same_file(tmp_path: Path) -> None:
    part = Part({"a": [1.5], "b": "θ₂"}, {"w": torch.ones(2, 3).T, "again": torch.ones(2, 3)})
    for name in ("one", "two"):
        Checkpoint(tmp_path / name, {"fit": "θ₂"}).put("probe", part)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    found = Checkpoint(tmp_path / "one", {"fit": "θ₂"}).get("probe")
    assert found is not None
    assert found.values == part.values
    assert found.tensors["w"].shape == (3, 2)
