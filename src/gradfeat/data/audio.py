"""Recordings: WAV files in class folders, as one array of equal length."""

from __future__ import annotations

import dataclasses
import math
import os
import struct
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.finding import search, warn_of_samples
from gradfeat.data.folder import class_folders
from gradfeat.data.images import in_threads, names
from gradfeat.data.wav import MOST, content, read_header
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning

SUFFIXES = (".wav", ".wave")
RATE = 16_000
"""Samples a second that speech networks are trained with."""
SECONDS = 1.0
_FINE = 200_000  # parts of a ratio of rates: finer ones differ by less than a sample in an hour
LONG = 2**26
"""Samples: of longer recordings at another rate only the middle is resampled."""
_SPARE = 11  # periods of both rates


def load_audio(path: Path, split: str = "train", *, rate: int = RATE, seconds: float = SECONDS) -> Dataset:
    """Read ``path/<class>/*.wav``, or ``path/<split>/<class>/*.wav`` where `path` has parts.

    Args:
        path: The folder.
        split: Its part; a folder without parts is taken whole, and the split of the result is "all".
        rate: Samples a second; recordings of other rates are resampled.
        seconds: Length of every sample: longer recordings are cut to their middle, shorter ones end in silence.

    Returns:
        X, (n, rate · seconds), float32 in [-1, 1], of one channel (several are averaged); the class folders as labels.
        A file that ends before its recording does is read as far as it goes, with a warning.

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
    paths = [path]
    if not path.is_file():
        found = search(path, SUFFIXES)
        paths = found.files
        warn_of_samples(str(path), "WAV files", found.left)
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
    recordings = in_threads(lambda file: _recording(file, rate, length), paths)
    _say(paths, recordings, length, rate)
    return np.stack([recording.samples for recording in recordings])


@dataclasses.dataclass(frozen=True)
class _Recording:
    """A recording as it was read.

    Args:
        samples: (length,), float32.
        channels: How many were averaged.
        count: Samples that it has at the wanted rate, before it is cut.
        broken: Whether the file ends before its samples do.
    """

    samples: np.ndarray
    channels: int
    count: int
    broken: bool


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
    recording = _recording(path, rate, None)
    return recording.samples, recording.channels


def _recording(path: str | os.PathLike[str], rate: int, length: int | None) -> _Recording:
    """Read one recording; with a length, its middle or, where it is shorter, with silence at its end."""
    found, sound, broken = _sound(path)
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float64) - 128) / 128
    elif sound.dtype.kind == "i":
        sound = sound / (-float(np.iinfo(sound.dtype).min))
    if not np.isfinite(sound).all():
        raise DataError(f"{path} has NaN or infinite samples")
    one, channels = sound.mean(1), sound.shape[1]
    count = len(one)
    if found != rate:
        one, count = resampled(one, found, rate, length)
    one = one.astype(np.float32)
    return _Recording(one if length is None else _of_length(one, length), channels, count, broken)


def _sound(path: str | os.PathLike[str]) -> tuple[int, np.ndarray, bool]:
    """Return the samples a second of a file, its samples (n, channels), and whether it ends before they do."""
    from scipy.io import wavfile  # here, since the command line knows this module by its constants too

    try:
        header = read_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are not sound
            found, samples = wavfile.read(content(path, header))
    except (MemoryError, DataError):
        raise
    except struct.error as error:
        raise DataError(f"{path} cannot be read as a WAV file: its header is cut off") from error
    except UnboundLocalError as error:  # the reader's word for a part that it did not come across
        raise DataError(f"{path} cannot be read as a WAV file: it has no format or no samples") from error
    except Exception as error:  # damaged files make the reader fail in more ways than OSError
        raise DataError(f"{path} cannot be read as a WAV file: {error}") from error
    if not samples.size:
        raise DataError(f"{path} has no samples: it is a recording of zero length")
    if not 1 <= found <= MOST:
        raise DataError(f"{path} cannot be read as a WAV file: its header gives {found:,} samples a second")
    broken = header is not None and header.cut
    return int(found), samples.reshape(len(samples), 1 if samples.ndim == 1 else samples.shape[1]), broken


def resampled(
    one: np.ndarray, recorded: int, rate: int, length: int | None, *, long: int = LONG
) -> tuple[np.ndarray, int]:
    """Return a recording at another rate, and how many samples it has there.

    Args:
        one: Its samples, (t,).
        recorded: Samples a second as it was recorded.
        rate: Samples a second as it is wanted.
        length: How many samples of it are wanted; None for all.
        long: Of more samples than this at `rate` only the middle `length` are computed, as they are in the whole.
    """
    from scipy.signal import resample_poly

    common = math.gcd(recorded, int(rate))
    up, down = int(rate // common), recorded // common
    if down > _FINE:  # the filter has twenty times as many taps
        ratio = Fraction(up, down).limit_denominator(_FINE)
        up, down = ratio.numerator, ratio.denominator
    count = -(-len(one) * up // down)
    if length is None or count <= max(long, length):
        return resample_poly(one, up, down), count
    # in whole periods of the two rates, and with as many to spare as the filter is wide, samples are the same
    first = max(0, (count - length) // 2 // up - _SPARE)
    last = (count + length) // 2 // up + 1 + _SPARE
    return _middle(
        resample_poly(one[first * down : last * down], up, down), (count - length) // 2 - first * up, length
    ), count


def _middle(samples: np.ndarray, start: int, length: int) -> np.ndarray:
    return samples[start : start + length]


def _of_length(samples: np.ndarray, length: int) -> np.ndarray:
    spare = len(samples) - length
    if spare >= 0:
        return samples[spare // 2 : spare // 2 + length]
    return np.pad(samples, (0, -spare))


def _say(paths: list[Path], recordings: list[_Recording], length: int, rate: int) -> None:
    pairs = list(zip(paths, recordings, strict=True))
    longer = [path for path, recording in pairs if recording.count > length]
    several = [path for path, recording in pairs if recording.channels > 1]
    broken = [path for path, recording in pairs if recording.broken]
    told = []
    if longer:
        longest = max(recording.count for recording in recordings) / rate
        told.append(
            f"{len(longer):,} of {len(paths):,} recordings are cut to {length / rate:g} s (the longest has "
            f"{longest:.2f} s, e.g. {longer[0].name}); seconds= takes more"
        )
    if several:
        told.append(
            f"{len(several):,} of {len(paths):,} recordings have several channels, which are averaged, "
            f"e.g. {several[0].name}"
        )
    if broken:
        told.append(
            f"{len(broken):,} of {len(paths):,} files end before their recordings do, and are read as far as they go:"
            f"{names(broken)}"
        )
    for text in told:
        warnings.warn(text, GradfeatWarning, stacklevel=4)
