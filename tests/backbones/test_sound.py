"""Speech networks of transformers by name, and recordings as data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import gradfeat
from gradfeat import GradientFeatureClassifier
from gradfeat.backbones import resolve
from gradfeat.cli import main
from gradfeat.data import load_dataset
from gradfeat.errors import ConfigurationError, MissingDependencyError
from gradfeat.optional import require
from gradfeat.testing import check_linearization

try:
    transformers = require("transformers", extra="text")
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

RATE = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny wav2vec 2.0 with random weights, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=20,
    )
    path = tmp_path_factory.mktemp("wav2vec2")
    transformers.Wav2Vec2Model(config).eval().save_pretrained(path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True).save_pretrained(path)
    return path


def test_features_are_the_mean_of_the_models_states(folder: Path) -> None:
    sound = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32) + 0.3
    backbone = resolve(f"hf/{folder}")
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    model = transformers.Wav2Vec2Model.from_pretrained(folder).eval()
    given = extractor(list(sound), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = model(given.input_values).last_hidden_state.mean(1)
        found = backbone.network(torch.from_numpy(sound))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert any("2,000 samples a second" in note for note in backbone.notes)


def test_its_top_layer_is_linearized_exactly(folder: Path) -> None:
    lin = check_linearization(resolve(f"hf/{folder}").network, torch.randn(3, 400), "auto")
    assert all(name.startswith("transformer.encoder.layers.1.") for name in lin.theta2)


def test_from_recordings_to_saved_predictions(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, hertz in [("high", 700.0), ("low", 150.0)]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(12):
            time = np.arange(RATE // 4) / RATE
            sound = np.sin(2 * np.pi * (hertz * time + rng.random())) + 0.3 * rng.normal(size=len(time))
            wavfile.write(tmp_path / "data" / name / f"{k}.wav", RATE, (8000 * sound).astype(np.int16))
    data = load_dataset(tmp_path / "data", rate=RATE, seconds=0.25)
    model: Any = GradientFeatureClassifier(f"hf/{folder}", random_state=0).fit(data.X, data.y)
    assert model.score(data.X, data.y) > 0.9
    loaded = gradfeat.load(model.save(tmp_path / "model.safetensors"))
    np.testing.assert_allclose(loaded.predict_proba(data.X), model.predict_proba(data.X), rtol=1e-6)


def test_networks_of_spectrograms_are_refused_with_the_way_out(tmp_path: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_length=32,
        num_mel_bins=16,
        patch_size=8,
    )
    transformers.ASTModel(config).save_pretrained(tmp_path)
    about = {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 16, "max_length": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    with pytest.raises(ConfigurationError, match="ASTFeatureExtractor, not waveforms: compute that first"):
        resolve(f"hf/{tmp_path}")


@pytest.mark.filterwarnings("ignore:.*recordings are cut")
def test_recordings_get_the_length_that_the_model_was_fitted_to(folder: Path, tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    for name, hertz in [("high", 3000.0), ("low", 200.0)]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(8):
            sound = np.sin(2 * np.pi * hertz * np.arange(900) / 16_000) + 0.1 * rng.normal(size=900)
            wavfile.write(tmp_path / "data" / name / f"{k}.wav", 16_000, sound.astype(np.float32))
    model = tmp_path / "model.safetensors"

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert not end.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    run("fit", tmp_path / "data", "-b", f"hf/{folder}", "--seconds", 0.05, "--mode", "activation", "-o", model)
    assert "accuracy" in run("evaluate", model, tmp_path / "data")
    lines = run("predict", model, tmp_path / "data").splitlines()
    assert lines[0] == "sample,prediction,high,low"
    assert len(lines) == 17
    one = tmp_path / "data" / "low" / "3.wav"
    row = run("predict", model, one).splitlines()[1].split(",")
    again = gradfeat.load(model)
    middle = wavfile.read(one)[1][50:850]  # 0.05 s of 0.056
    assert row[:2] == [str(one), "low"]
    np.testing.assert_allclose([float(p) for p in row[2:]], again.predict_proba(middle[None])[0], rtol=1e-4, atol=1e-6)
