"""One face for everything that X may be: arrays, tensors, images in memory or on disk, and torch Datasets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from gradfeat.data.arrays import check_finite
from gradfeat.data.dataset import Dataset
from gradfeat.data.finding import is_regular
from gradfeat.data.images import in_threads, names, warn_of_depth, with_image
from gradfeat.data.pixels import BITS, eight_bit, upright
from gradfeat.data.preprocessing import Preprocessing, to_unit
from gradfeat.data.text import TextPreprocessing
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning

_ACCEPTED = (
    "a float array or tensor in the network's own layout, uint8 images (n, h, w, c), a list of images (PIL), of image "
    "paths or of texts, or a torch Dataset"
)

_RAW = 10.0
"""Floats this many times larger than any image is as the network takes it are pixels that nobody scaled."""


class Inputs:
    """Samples by index, as the network takes them.

    Args:
        X: A numeric array or tensor (n, ...) in the network's own layout, which keeps its dtype; uint8 images
            (n, h, w, c); paths of images, or PIL images; texts; or a map-style torch Dataset of tensors x or pairs
            (x, y).
        preprocessing: How images or texts become inputs. Paths, PIL images and texts need it; uint8 images without it
            are scaled to [0, 1].

    Raises:
        DataError: X has no samples, NaN, another shape or other channels than the network takes, or files that are not
            there.
        ConfigurationError: Paths or texts without their preprocessing, or an X of a kind that is not known.

    Example:
        >>> inputs = Inputs(np.arange(6.0).reshape(3, 2))
        >>> inputs.batch([2, 0]).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    def __init__(self, X: Any, preprocessing: Preprocessing | TextPreprocessing | None = None) -> None:
        self._source = _source(X, preprocessing)
        n = len(self._source)
        if not n:
            raise DataError("X has no samples")
        self._positions = np.arange(n)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass: a torch Dataset may augment."""
        return self._source.random

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of X, (n, ...); None for paths and torch Datasets."""
        return None if self._source.shape is None else (len(self), *self._source.shape)

    @property
    def text_preprocessing(self) -> TextPreprocessing | None:
        """How texts became tokens, with the length that all of them have; None for any other X."""
        return self._source.preprocessing if isinstance(self._source, _Tokens) else None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images become inputs; None for any other X, and for uint8 images without one."""
        return self._source.preprocessing if isinstance(self._source, (_Images, _Pictures)) else None

    def pictures(self, indices: Sequence[int] | range) -> list[np.ndarray]:
        """Return images as they are before the crop, each uint8 (h, w, c).

        Raises:
            ConfigurationError: X has no `preprocessing`.
            DataError: An image cannot be read; the message names it.
        """
        if self.preprocessing is None or not isinstance(self._source, (_Images, _Pictures)):
            raise ConfigurationError("only images with a preprocessing are resized")
        return self._source.pictures(self._positions[np.asarray(indices, dtype=np.int64)])

    def batch(self, indices: Sequence[int] | range) -> Tensor:
        """Return samples; a copy, which the network may change.

        Args:
            indices: Which; each from 0 to len - 1.

        Returns:
            (len(indices), ...), in that order.

        Raises:
            DataError: A sample cannot be read; the message names it.
        """
        return self._source.batch(self._positions[np.asarray(indices, dtype=np.int64)])

    def example(self, k: int = 3) -> Tensor:
        """Return the first `k` samples, or all where there are fewer."""
        return self.batch(range(min(k, len(self))))

    def labels(self) -> np.ndarray | None:
        """Return the labels of a torch Dataset of pairs, (n,) or (n, c); None for any other X."""
        return self._source.labels(self._positions)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Inputs:
        """Return the samples at `indices`, without a copy of X."""
        rest = object.__new__(Inputs)
        rest._source = self._source
        rest._positions = self._positions[np.asarray(indices, dtype=None if len(indices) else np.int64)]
        return rest


def in_parts(n: int, size: int) -> list[range]:
    """Return the places 0 to n - 1 in parts of a size; the last may be smaller.

    Example:
        >>> in_parts(5, 2)
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


class Mirrored:
    """Images and their mirror images: sample n + i is sample i of n with left and right exchanged.

    Args:
        inputs: Images, as the network takes them: (n, c, h, w).

    Raises:
        DataError: The samples are no images.
    """

    def __init__(self, inputs: Inputs) -> None:
        shape = tuple(inputs.example(1).shape[1:])
        if len(shape) != 3:
            raise DataError(f"mirror images need images (c, h, w); these samples have the shape {shape}")
        self._inputs = inputs

    def __len__(self) -> int:
        return 2 * len(self._inputs)

    @property
    def random(self) -> bool:
        """Whether a sample may change from pass to pass."""
        return self._inputs.random

    def batch(self, indices: Sequence[int] | range) -> Tensor:
        """Return samples, as `Inputs.batch` does."""
        chosen = np.asarray(indices, dtype=np.int64)
        batch = self._inputs.batch((chosen % len(self._inputs)).tolist())
        mirrored = torch.from_numpy(chosen >= len(self._inputs))
        batch[mirrored] = batch[mirrored].flip(3)
        return batch


class _Source(Protocol):
    """What `Inputs` needs of one kind of X."""

    random: bool
    shape: tuple[int, ...] | None  # of one sample

    def __len__(self) -> int: ...

    def batch(self, positions: np.ndarray) -> Tensor: ...

    def labels(self, positions: np.ndarray) -> np.ndarray | None: ...


class _Array:
    """Numbers in the network's own layout."""

    random = False

    def __init__(self, X: np.ndarray | Tensor, y: Tensor | None = None) -> None:
        self.X, self.y = X, y
        self.shape: tuple[int, ...] | None = tuple(X.shape[1:])

    def __len__(self) -> int:
        return len(self.X)

    def batch(self, positions: np.ndarray) -> Tensor:
        if isinstance(self.X, Tensor):
            return self.X[torch.from_numpy(positions).to(self.X.device)].detach()
        picked = self.X[positions]
        return torch.from_numpy(np.asarray(picked, dtype=picked.dtype.newbyteorder("=")))

    def labels(self, positions: np.ndarray) -> np.ndarray | None:
        return None if self.y is None else self.y.detach().cpu().numpy()[positions]


class _Images(_Array):
    """uint8 images (n, h, w, c) in memory."""

    def __init__(self, X: np.ndarray, preprocessing: Preprocessing | None, y: Tensor | None = None) -> None:
        super().__init__(X, y)
        self.preprocessing = preprocessing
        self.convert = to_unit if preprocessing is None else preprocessing.from_uint8

    def batch(self, positions: np.ndarray) -> Tensor:
        return self.convert(np.asarray(self.X)[positions])

    def pictures(self, positions: np.ndarray) -> list[np.ndarray]:
        images = np.asarray(self.X)[positions]
        return list(images if self.preprocessing is None else self.preprocessing.resized_uint8(images))


class _Tokens(_Array):
    """Texts as token ids and masks, (n, 2, length)."""

    def __init__(self, X: np.ndarray | Tensor, preprocessing: TextPreprocessing) -> None:
        super().__init__(X)
        self.preprocessing = preprocessing


class _Pictures:
    """Images of any size: on disk, decoded when they are asked for, or in memory."""

    random = False
    shape: tuple[int, ...] | None = None

    def __init__(self, items: Sequence[Path | Image.Image], preprocessing: Preprocessing) -> None:
        self.items, self.preprocessing = items, preprocessing
        self.told = False  # that images are deep

    def __len__(self) -> int:
        return len(self.items)

    def batch(self, positions: np.ndarray) -> Tensor:
        return torch.stack(self._each(self.preprocessing.from_pil, positions))

    def pictures(self, positions: np.ndarray) -> list[np.ndarray]:
        return self._each(self.preprocessing.resized_pil, positions)

    def labels(self, positions: np.ndarray) -> np.ndarray | None:
        return None

    def _each(self, work: Callable[[Image.Image], Any], positions: np.ndarray) -> list[Any]:
        def one(item: Path | Image.Image) -> tuple[Any, int | None]:
            if isinstance(item, Path):
                return with_image(item, lambda image: (work(image), image.info.get(BITS)))
            return work(item), item.info.get(BITS)

        picked = [self.items[i] for i in positions]
        done = in_threads(one, picked)
        deep = {bits: item for item, (_, bits) in zip(picked, done, strict=True) if bits is not None}
        if deep and not self.told:
            self.told = True
            warn_of_depth(deep)
        return [result for result, _ in done]


class _Items:
    """A map-style torch Dataset of tensors x, or of pairs (x, y)."""

    random = True
    shape: tuple[int, ...] | None = None

    def __init__(self, X: Any) -> None:
        self.X = X
        self.pairs = len(X) > 0 and isinstance(X[0], (tuple, list))

    def __len__(self) -> int:
        return len(self.X)

    def batch(self, positions: np.ndarray) -> Tensor:
        samples = [self._item(int(i))[0] for i in positions]
        for i, sample in zip(positions, samples, strict=True):
            if sample.shape != samples[0].shape:
                raise DataError(
                    f"The samples of the Dataset have different shapes: {tuple(samples[0].shape)} at {positions[0]}, "
                    f"{tuple(sample.shape)} at {i}; give it a transform that makes them equal"
                )
            if sample.is_floating_point() and not torch.isfinite(sample).all():
                raise DataError(f"Sample {i} of the Dataset has NaN or infinite values")
        return torch.stack(samples).detach()

    def labels(self, positions: np.ndarray) -> np.ndarray | None:
        if not self.pairs:
            return None
        targets = [self._item(int(i))[1] for i in positions]
        return np.stack([y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y) for y in targets])

    def _item(self, i: int) -> tuple[Tensor, Any]:
        item = self.X[i]
        if isinstance(item, (tuple, list)):
            if len(item) != 2:
                raise DataError(
                    f"Expected tensors x or pairs (x, y) from the Dataset; sample {i} has {len(item)} parts"
                )
            x, y = item
        else:
            x, y = item, None
        if not isinstance(x, Tensor):
            raise DataError(
                f"Expected tensors from the Dataset; sample {i} is a {type(x).__name__}: give the Dataset a transform "
                "that makes tensors as the network takes them"
            )
        return x, y


def _source(X: Any, preprocessing: Preprocessing | TextPreprocessing | None) -> _Source:
    """Find out what X is, and check it."""
    if isinstance(X, Dataset):
        raise ConfigurationError("X is a whole data set: pass its parts, dataset.X and dataset.y")
    if isinstance(preprocessing, TextPreprocessing) and not isinstance(X, TorchDataset):
        return _texts(X, preprocessing)
    preprocessing = preprocessing if isinstance(preprocessing, Preprocessing) else None
    if isinstance(X, TensorDataset):
        if len(X.tensors) > 2:
            raise DataError(f"Expected a TensorDataset of x, or of x and y; got {len(X.tensors)} tensors")
        return _numeric(X.tensors[0], preprocessing, *X.tensors[1:])
    if isinstance(X, TorchDataset):
        if isinstance(X, IterableDataset) or not hasattr(X, "__len__"):
            raise ConfigurationError(
                "A torch Dataset must be map-style, with a length and samples by index; this one is not"
            )
        return _Items(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "UO" and X.ndim == 1:
        X = X.tolist()
    if isinstance(X, (str, Path)):
        raise ConfigurationError(
            f"X is a single path or text, {str(X)!r}: pass a list, or gradfeat.data.load_images({str(X)!r})"
        )
    if isinstance(X, (list, tuple)) and X and all(isinstance(item, (str, Path)) for item in X):
        return _files(X, preprocessing)
    if isinstance(X, Image.Image):
        raise ConfigurationError("X is a single image: pass a list, [image]")
    if isinstance(X, (list, tuple)) and X and all(isinstance(item, Image.Image) for item in X):
        return _pictures(X, preprocessing)
    if isinstance(X, Tensor):
        return _numeric(X, preprocessing)
    try:
        array = np.asarray(X)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"X cannot be read: {error}. Expected {_ACCEPTED}") from error
    return _numeric(array, preprocessing)


def _texts(X: Any, preprocessing: TextPreprocessing) -> _Source:
    """Tokenize texts, once; tokens are taken as they are."""
    if isinstance(X, (str, Path)):
        raise ConfigurationError(f"X is a single text, {str(X)[:60]!r}: pass a list of texts")
    if isinstance(X, (np.ndarray, Tensor)) and X.ndim == 3 and X.shape[1] == 2 and "int" in str(X.dtype):
        length = int(X.shape[2])
        longest = max(preprocessing.max_length, length)
        lengths = preprocessing.lengths if length == preprocessing.length else None
        return _Tokens(X, dataclasses.replace(preprocessing, length=length, lengths=lengths, max_length=longest))
    if isinstance(X, np.ndarray) and X.dtype.kind in "UO" and X.ndim == 1:
        X = X.tolist()
    if not isinstance(X, (list, tuple)):
        came = f"{X.dtype} of shape {tuple(X.shape)}" if isinstance(X, (np.ndarray, Tensor)) else type(X).__name__
        raise ConfigurationError(f"The backbone reads texts. Expected X as a list of strings; got {came}")
    for i, text in enumerate(X):
        if not isinstance(text, str):
            raise DataError(f"The backbone reads texts; X[{i}] is {_shown(text)}, not a string")
    if not X:
        raise DataError("X has no samples")
    return _Tokens(*preprocessing.tokenize(X))


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _numeric(X: np.ndarray | Tensor, preprocessing: Preprocessing | None, y: Tensor | None = None) -> _Source:
    shape = tuple(X.shape)
    if isinstance(X, Tensor) and X.layout != torch.strided:
        raise ConfigurationError(f"X is a sparse tensor ({X.layout}): X.to_dense() makes it one that networks take")
    if X.dtype in (torch.uint8, np.uint8):
        images = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        _check_images(shape, preprocessing)
        return _Images(images, preprocessing, y)
    kind = "c" if isinstance(X, Tensor) and X.is_complex() else "f" if isinstance(X, Tensor) else X.dtype.kind
    if kind not in "fiub" or (isinstance(X, np.ndarray) and X.dtype.itemsize > 8):
        raise ConfigurationError(f"X has the type {X.dtype}. Expected {_ACCEPTED}")
    if len(shape) < 2:
        raise DataError(
            f"X must have one row for each sample, (n, ...); got the shape {shape}. For one feature: X.reshape(-1, 1)"
        )
    if preprocessing is not None and len(shape) == 4 and shape[1] != preprocessing.channels:
        way = (
            " It looks like (n, h, w, c): X.transpose(0, 3, 1, 2) has the network's layout; uint8 images stay as is."
            if shape[3] == preprocessing.channels
            else ""
        )
        raise DataError(f"The network takes (n, {preprocessing.channels}, h, w); X has the shape {shape}.{way}")
    check_finite(X)
    if preprocessing is not None and len(shape) == 4 and shape[0] and kind == "f":
        _warn_of_pixels(X, preprocessing)
    return _Array(X, y)


def _warn_of_pixels(X: np.ndarray | Tensor, preprocessing: Preprocessing) -> None:
    """Warn of floats far beyond what any image is as the network takes it: they are not scaled, nor normalized."""
    ends = [abs((end - m) / s) for m, s in zip(preprocessing.mean, preprocessing.std, strict=True) for end in (0, 1)]
    first = X[:8]
    largest = float(first.abs().max() if isinstance(first, Tensor) else np.abs(first).max())
    if largest > _RAW * max(ends):
        warnings.warn(
            f"X has values up to {largest:.4g}, and images have values up to {max(ends):.3g} as this network takes "
            "them. Floats are taken as they are; pixels from 0 to 255 belong in a uint8 array (n, h, w, c)",
            GradfeatWarning,
            stacklevel=4,
        )


def _check_images(shape: tuple[int, ...], preprocessing: Preprocessing | None) -> None:
    known = (1, 3, 4) if preprocessing is None else (1, 3, 4, preprocessing.channels)
    if len(shape) == 4 and shape[3] in known and min(shape[1:3]) > 0:
        if preprocessing is not None:
            preprocessing.check_channels(shape[3])
        return
    way = ""
    if len(shape) == 3 and shape[2] in known:
        way = " For one image: X[np.newaxis]."
    elif len(shape) == 3:
        way = " For grey images: X[..., np.newaxis]."
    elif len(shape) == 4 and shape[1] in known:
        way = " It looks like (n, c, h, w): X.transpose(0, 2, 3, 1), or as floats in the network's own layout."
    elif len(shape) < 3:
        way = " For a table: X.astype(np.float32)."
    raise DataError(
        f"X of type uint8 is read as images (n, h, w, c) with 1, 3 or 4 channels; got the shape {shape}.{way}"
    )


def _files(X: Sequence[str | Path], preprocessing: Preprocessing | None) -> _Source:
    paths = [Path(item) for item in X]
    missing = [path for path in paths if not is_regular(path)]
    if len(missing) == len(paths) and isinstance(X[0], str):
        raise ConfigurationError(
            f"X is a list of strings that are no files, as {X[0][:60]!r}. Texts need a backbone with a tokenizer: "
            "hf/<folder or id> or sentence-transformers/<folder or id>, or preprocessing=dict(tokenizer=...) beside a "
            "module that takes tokens (n, 2, length); for images give paths that exist"
        )
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} files are not there:{names(missing)}")
    return _Pictures(paths, _needed(preprocessing))


def _pictures(X: Sequence[Image.Image], preprocessing: Preprocessing | None) -> _Source:
    """Decode images in memory; a list of equal ones need not be an array."""
    preprocessing = _needed(preprocessing)
    images: list[Path | Image.Image] = []
    for i, image in enumerate(X):
        try:
            image.load()
            images.append(eight_bit(upright(image)))
        except (OSError, DataError) as error:
            raise DataError(f"image {i} of X cannot be read: {error}") from error
    return _Pictures(images, preprocessing)


def _needed(preprocessing: Preprocessing | None) -> Preprocessing:
    if preprocessing is None:
        raise ConfigurationError(
            "X is a list of images or of their paths, and how the network wants its images is not known: give "
            "preprocessing=dict(size=[224, 224], mean=[...], std=[...]) (on the command line: --image-size, --mean and "
            "--std), or a backbone that brings its own (timm and torchvision names do)"
        )
    return preprocessing
