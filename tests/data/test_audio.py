"""WAV files in class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from gradfeat.data import load_dataset
from gradfeat.data.audio import read_wav
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning


def _tone(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def _folder(tmp_path: Path) -> Path:
    for i, (name, hertz) in enumerate([("high", 900.0), ("low", 300.0)]):
        (tmp_path / name).mkdir()
        for k in range(2):
            samples = (_tone(hertz + 10 * k, 8000, 0.5) * 32767).astype(np.int16)
            wavfile.write(tmp_path / name / f"{i}{k}.wav", 8000, samples)
    return tmp_path


def test_folders_of_recordings_become_one_array(tmp_path: Path) -> None:
    data = load_dataset(_folder(tmp_path), rate=8000, seconds=0.5)
    assert (data.X.shape, data.X.dtype, data.classes) == ((4, 4000), np.float32, ["high", "low"])
    assert data.y is not None
    assert data.y.tolist() == ["high", "high", "low", "low"]
    np.testing.assert_allclose(data.X[2], _tone(300.0, 8000, 0.5), atol=1e-4)


def test_shorter_recordings_end_in_silence(tmp_path: Path) -> None:
    data = load_dataset(_folder(tmp_path), rate=8000, seconds=1.0)
    assert data.X.shape == (4, 8000)
    assert not data.X[:, 4000:].any()
    assert data.X[:, :4000].any()


def test_longer_recordings_are_cut_to_their_middle_with_a_notice(tmp_path: Path) -> None:
    with pytest.warns(GradfeatWarning, match=r"4 of 4 recordings are cut to 0.25 s \(the longest has 0.50 s"):
        data = load_dataset(_folder(tmp_path), rate=8000, seconds=0.25)
    whole = load_dataset(tmp_path, rate=8000, seconds=0.5)
    np.testing.assert_array_equal(data.X, whole.X[:, 1000:3000])


def test_other_rates_are_resampled(tmp_path: Path) -> None:
    data = load_dataset(_folder(tmp_path), seconds=0.5)  # 16,000 samples a second
    expected = _tone(300.0, 16000, 0.5)
    assert data.X.shape == (4, 8000)
    inner = slice(200, -200)  # the filter sees silence before and after
    np.testing.assert_allclose(data.X[2][inner], expected[inner], atol=2e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 128, 255], dtype=np.uint8), [-1.0, 0.0, 127 / 128]),
        (np.array([-32768, 0, 16384], dtype=np.int16), [-1.0, 0.0, 0.5]),
        (np.array([-(2**31), 0, 2**30], dtype=np.int32), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 0.0, 0.25], dtype=np.float32), [-1.0, 0.0, 0.25]),
        (np.array([[-1.0, 0.0], [0.5, 0.5]], dtype=np.float32), [-0.5, 0.5]),
    ],
    ids=["8 bits", "16 bits", "32 bits", "float", "two channels"],
)
def test_values_are_scaled_and_channels_averaged(tmp_path: Path, values: np.ndarray, expected: list[float]) -> None:
    wavfile.write(tmp_path / "a.wav", 16000, values)
    samples, channels = read_wav(tmp_path / "a.wav")
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-7)
    assert channels == (1 if values.ndim == 1 else 2)


def test_channels_are_said(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    wavfile.write(folder / "low" / "stereo.wav", 8000, np.zeros((4000, 2), dtype=np.int16))
    with pytest.warns(GradfeatWarning, match="1 of 5 recordings have several channels.*stereo.wav"):
        load_dataset(folder, rate=8000, seconds=0.5)


def _empty(path: Path) -> None:
    wavfile.write(path, 8000, np.zeros(0, dtype=np.int16))


def _cut(path: Path) -> None:
    path.write_bytes(b"RIFF\x00")


def _text(path: Path) -> None:
    path.write_text("no sound")


def _nan(path: Path) -> None:
    wavfile.write(path, 8000, np.array([0.0, np.nan], dtype=np.float32))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_empty, r"bad.wav has no samples: it is a recording of zero length"),
        (_cut, r"bad.wav cannot be read as a WAV file"),
        (_text, r"bad.wav cannot be read as a WAV file"),
        (_nan, r"bad.wav has NaN or infinite samples"),
    ],
    ids=["zero length", "truncated", "text", "nan"],
)
def test_bad_recordings_are_named(tmp_path: Path, write: Any, message: str) -> None:
    folder = _folder(tmp_path)
    write(folder / "low" / "bad.wav")
    with pytest.raises(DataError, match=message):
        load_dataset(folder, rate=8000, seconds=0.5)


def test_lengths_that_cannot_be_meant(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    with pytest.raises(ConfigurationError, match="seconds must be a positive number, not -1"):
        load_dataset(folder, seconds=-1)
    with pytest.raises(ConfigurationError, match="less than one sample"):
        load_dataset(folder, seconds=1e-6)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"'empty'.*Known suffixes: \.wav"):
        load_dataset(folder, format="wav")


def test_seconds_are_for_recordings(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", X=np.zeros((4, 2)), y=np.array([0, 1, 0, 1]))
    with pytest.raises(ConfigurationError, match="seconds is for WAV files"):
        load_dataset(tmp_path / "data.npz", seconds=1)
