"""Recordings: WAV files in class folders, as one array of equal length."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.finding import find_files
from gradfeat.data.folder import class_folders
from gradfeat.data.images import in_threads
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning

SUFFIXES = (".wav", ".wave")
RATE = 16_000
"""Samples a second that speech networks are trained with."""
SECONDS = 1.0


def load_audio(path: Path, split: str = "train", *, rate: int = RATE, seconds: float = SECONDS) -> Dataset:
    """Read ``path/<class>/*.wav``, or ``path/<split>/<class>/*.wav`` where `path` has parts.

    Args:
        path: The folder.
        split: Its part; a folder without parts is taken whole, and the split of the result is "all".
        rate: Samples a second; recordings of other rates are resampled.
        seconds: Length of every sample: longer recordings are cut to their middle, shorter ones end in silence.

    Returns:
        X, (n, rate · seconds), float32 in [-1, 1], of one channel (several are averaged); the class folders as labels.

    Raises:
        DataError: As for a folder of images; or a recording that cannot be read, or has no samples.
        ConfigurationError: A rate or length that cannot be meant.
    """
    found = class_folders(path, split, SUFFIXES, "WAV files")
    X = _read(found.paths, rate, seconds)
    y, classes, name = np.array(found.names), list(found.files), path.resolve().name
    return Dataset(X, y, classes, "multiclass", name, found.part, note=found.note)


def load_recordings(path: Path, *, rate: int = RATE, seconds: float = SECONDS) -> tuple[np.ndarray, list[Path]]:
    """Read the WAV files of a folder and its folders, or one file: recordings without labels.

    Args:
        path: The folder or file.
        rate: As of `load_audio`.
        seconds: As of `load_audio`.

    Returns:
        X as of `load_audio`, and the file of each sample, sorted.

    Raises:
        DataError: There is none, or one that cannot be read or has no samples.
        ConfigurationError: A rate or length that cannot be meant.
    """
    paths = [path] if path.is_file() else find_files(path, SUFFIXES)
    if not paths:
        raise DataError(f"{path} and its folders hold no WAV file")
    return _read(paths, rate, seconds), paths


def _read(paths: list[Path], rate: int, seconds: float) -> np.ndarray:
    for name, value in (("rate", rate), ("seconds", seconds)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigurationError(f"{name} must be a positive number, not {value!r}")
    length = round(rate * seconds)
    if length < 1:
        raise ConfigurationError(f"{seconds} seconds at {rate} samples a second are less than one sample")
    recordings = in_threads(lambda file: read_wav(file, rate), paths)
    _say(paths, recordings, length, rate)
    return np.stack([_of_length(samples, length) for samples, _ in recordings])


def read_wav(path: str | os.PathLike[str], rate: int = RATE) -> tuple[np.ndarray, int]:
    """Read one recording.

    Args:
        path: A WAV file: 8, 16, 24 or 32 bits, or floating point.
        rate: Samples a second of the result.

    Returns:
        (length,), float32, whole numbers scaled to [-1, 1], channels averaged; and the number of channels.

    Raises:
        DataError: It cannot be read, has no samples, or has values that are not finite.
    """
    from scipy.io import wavfile  # here, since the command line knows this module by its constants too

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are not sound
            found, samples = wavfile.read(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the reader fail in more ways than OSError
        raise DataError(f"{path} cannot be read as a WAV file: {error}") from error
    if not samples.size:
        raise DataError(f"{path} has no samples: it is a recording of zero length")
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    sound = samples.reshape(len(samples), channels)
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float64) - 128) / 128
    elif sound.dtype.kind == "i":
        sound = sound / (-float(np.iinfo(sound.dtype).min))
    if not np.isfinite(sound).all():
        raise DataError(f"{path} has NaN or infinite samples")
    one = sound.mean(1)
    if found != rate:
        from scipy.signal import resample_poly

        common = math.gcd(int(found), int(rate))
        one = resample_poly(one, rate // common, found // common)
    return one.astype(np.float32), channels


def _of_length(samples: np.ndarray, length: int) -> np.ndarray:
    spare = len(samples) - length
    if spare >= 0:
        return samples[spare // 2 : spare // 2 + length]
    return np.pad(samples, (0, -spare))


def _say(paths: list[Path], recordings: list[tuple[np.ndarray, int]], length: int, rate: int) -> None:
    longer = [path for path, (samples, _) in zip(paths, recordings, strict=True) if len(samples) > length]
    several = [path for path, (_, channels) in zip(paths, recordings, strict=True) if channels > 1]
    if longer:
        longest = max(len(samples) for samples, _ in recordings) / rate
        warnings.warn(
            f"{len(longer):,} of {len(paths):,} recordings are cut to {length / rate:g} s (the longest has "
            f"{longest:.2f} s, e.g. {longer[0].name}); seconds= takes more",
            GradfeatWarning,
            stacklevel=4,
        )
    if several:
        warnings.warn(
            f"{len(several):,} of {len(paths):,} recordings have several channels, which are averaged, "
            f"e.g. {several[0].name}",
            GradfeatWarning,
            stacklevel=4,
        )
