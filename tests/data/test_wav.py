"""WAV headers that lie: one sentence each, in little time and memory."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradfeat.data import load_dataset
from gradfeat.data.audio import load_recordings, read_wav, resampled
from gradfeat.errors import DataError, GradfeatWarning

SAMPLES = (9000 * np.sin(np.arange(400) / 5)).astype("<i2")


def wav(**changes: Any) -> bytes:
    """A WAV file of 16 bits, written from its specification, with lies in its header."""
    field = {
        "tag": 1,
        "channels": 1,
        "rate": 8000,
        "block": 2,
        "bits": 16,
        "size": 2 * len(SAMPLES),
        "riff": None,
        "form": 16,
    }
    field |= changes
    per_second = field["rate"] * field["block"] % 2**32
    form = struct.pack(
        "<HHIIHH", *(field["tag"], field["channels"], field["rate"], per_second, field["block"], field["bits"])
    )
    body = (
        b"WAVEfmt "
        + struct.pack("<I", field["form"])
        + form
        + b"data"
        + struct.pack("<I", field["size"])
        + SAMPLES.tobytes()
    )
    return b"RIFF" + struct.pack("<I", len(body) if field["riff"] is None else field["riff"]) + body


def long_size(size: int) -> bytes:
    """The same as RF64, whose sizes have eight bytes."""
    plain = wav(size=0xFFFFFFFF)
    sizes = struct.pack("<IQQQI", 28, size, size, size // 2, 0)
    return b"RF64" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEds64" + sizes + plain[12:]


def read(path: Path, content: bytes) -> np.ndarray:
    """Read a recording in at most some megabytes."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        return read_wav(path, 8000)[0]
    finally:
        assert tracemalloc.get_traced_memory()[1] < 40e6
        tracemalloc.stop()


EXPECTED = SAMPLES / 32768


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rate": 0}, "0 samples a second"),
        ({"rate": 2**31 - 1}, "2,147,483,647 samples a second"),
        ({"rate": 2**32 - 1}, "samples a second"),
        ({"channels": 0}, "0 channels"),
        ({"channels": 65535}, "65,535 channels in 2 bytes"),
        ({"channels": 0, "rate": 0}, "0 samples a second and 0 channels"),
        ({"block": 0}, "1 channels in 0 bytes"),
        ({"bits": 65535}, "bit depth"),
        ({"tag": 85}, "MPEGLAYER3"),
        ({"size": 0}, "zero length"),
        ({"form": 2**32 - 1}, "a format of 4,294,967,295 bytes"),
    ],
)
def test_headers_that_cannot_be_meant(tmp_path: Path, changes: dict[str, int], match: str) -> None:
    with pytest.raises(DataError, match=rf"a\.wav .*{match}"):
        read(tmp_path / "a.wav", wav(**changes))


@pytest.mark.parametrize(
    "content",
    [
        *(wav(), wav(size=2**32 - 1), wav(size=2**32 - 2), wav(size=2**31), wav(riff=0), wav(riff=2**32 - 1)),
        *(long_size(2 * len(SAMPLES)), long_size(2**62), wav(size=2**32 - 1)[:-1]),
    ],
)
def test_sizes_that_lie_give_the_samples_that_are_there(tmp_path: Path, content: bytes) -> None:
    found = read(tmp_path / "a.wav", content)
    assert len(found) == (len(content) - content.index(b"data") - 8) // 2
    np.testing.assert_allclose(found, EXPECTED[: len(found)], atol=1e-7)


def test_files_that_end_early_are_named(tmp_path: Path) -> None:
    for name, content in {
        "a/whole.wav": wav(),
        "b/cut.wav": wav()[:-300],
        "b/streamed.wav": wav(size=2**32 - 1),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.warns(GradfeatWarning, match=r"1 of 3 files end before their recordings do(.|\n)*cut\.wav") as caught:
        data = load_dataset(tmp_path, rate=8000, seconds=0.05)
    assert len(caught) == 1
    np.testing.assert_allclose(data.X[0], EXPECTED, atol=1e-7)
    np.testing.assert_allclose(data.X[1], [*EXPECTED[:-150], *[0] * 150], atol=1e-7)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 43),
    st.sampled_from([0, 1, 3, 127, 128, 254, 255]),
    st.integers(0, 44 + 2 * len(SAMPLES)),
    st.booleans(),
)
def test_no_damaged_header_gives_more_than_a_sentence(tmp_path: Path, at: int, byte: int, end: int, cut: bool) -> None:
    content = bytearray(wav())
    content[at] = byte
    with contextlib.suppress(DataError):
        assert np.isfinite(read(tmp_path / "a.wav", bytes(content[:end] if cut else content))).all()


@pytest.mark.parametrize("found", [7, 8000, 22050, 44100, 16001])
@pytest.mark.parametrize("length", [1, 1000, 16001])
def test_the_middle_of_a_long_recording_is_that_of_the_whole(found: int, length: int) -> None:
    from scipy.signal import resample_poly

    samples = np.random.default_rng(0).normal(size=50011 if found > 1000 else 21)
    common = np.gcd(found, 16000)
    whole = resample_poly(samples, 16000 // common, found // common)
    assert len(whole) > length
    part, count = resampled(samples, found, 16000, length, long=1)
    start = (len(whole) - length) // 2
    assert count == len(whole)
    np.testing.assert_array_equal(part, whole[start : start + length])


def test_a_low_rate_asks_for_no_more_than_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(rate=1))
    (tmp_path / "b.wav").write_bytes(wav(rate=1, block=1, bits=8) + bytes(400_000))
    with pytest.warns(GradfeatWarning, match="the longest has 800.00 s"):
        X, _ = load_recordings(tmp_path)
    assert X.shape == (2, 16000)
