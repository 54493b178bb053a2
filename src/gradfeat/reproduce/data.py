"""The paper's small data sets: where they lie, and labelled draws of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gradfeat.data import Dataset, load_dataset
from gradfeat.data.images import read_image
from gradfeat.data.load import existing, official
from gradfeat.data.svhn import SOURCE as SVHN_SOURCE
from gradfeat.errors import DataError
from gradfeat.losses import CrossEntropy, Loss
from gradfeat.pretrain.images import to_arrays


@dataclass(frozen=True)
class Known:
    """A data set of the paper.

    Attributes:
        title: Its name as the readers give it.
        classes: Their number.
        folders: Names under which it may lie in the data folder, in lower case without "-" and "_".
        advice: What to download, and where to put it.
    """

    title: str
    classes: int
    folders: tuple[str, ...]
    advice: str


_CIFAR = "https://www.cs.toronto.edu/~kriz"
KNOWN = {
    "cifar10": Known(
        "CIFAR-10",
        10,
        ("cifar10", "cifar10batchespy", "cifar10batchesbin"),
        f"download {_CIFAR}/cifar-10-python.tar.gz and unpack it there (cifar-10-batches-py), or put the images there "
        "as cifar10/train/<class>/*.png and cifar10/test/<class>/*.png",
    ),
    "cifar100": Known(
        "CIFAR-100",
        100,
        ("cifar100", "cifar100python", "cifar100binary"),
        f"download {_CIFAR}/cifar-100-python.tar.gz and unpack it there (cifar-100-python), or put the images there as "
        "cifar100/train/<class>/*.png and cifar100/test/<class>/*.png",
    ),
    "svhn": Known(
        "SVHN",
        10,
        ("svhn",),
        f"download train_32x32.mat, test_32x32.mat and, for the paper's protocol, extra_32x32.mat from {SVHN_SOURCE} "
        "into svhn/",
    ),
}


class LabelledData(Protocol):
    """What an experiment needs of a data set."""

    @property
    def name(self) -> str:
        """For tables and files."""

    @property
    def note(self) -> str:
        """What a reader of the numbers should know."""

    @property
    def loss(self) -> Loss:
        """The task's."""

    @property
    def test(self) -> Any:
        """Test images, as `Inputs` takes them."""

    @property
    def y_test(self) -> np.ndarray:
        """(m,) or (m, c)."""

    def digest(self) -> str:
        """Return a digest of all images and labels."""

    def labelled(self, n: int | None, seed: int) -> tuple[Any, np.ndarray]:
        """Return n training images and their labels; all of them, in their order, where n is None."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images in memory, with labels as whole numbers from 0.

    Attributes:
        name: Key of `KNOWN`, or "digits".
        train: uint8 (n, h, w, c).
        y: (n,).
        test: uint8 (m, h, w, c).
        y_test: (m,).
        note: What a reader of the numbers should know, e.g. that it is a part of the data set.
    """

    name: str
    train: np.ndarray
    y: np.ndarray
    test: np.ndarray
    y_test: np.ndarray
    note: str = ""
    loss: Loss = field(default_factory=CrossEntropy)

    def digest(self) -> str:
        """Return a digest of all images and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.y, self.test, self.y_test):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]

    def labelled(self, n: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return n training images and their labels, drawn by class; all of them, in their order, where n is None."""
        from sklearn.model_selection import train_test_split

        if n is None or n >= len(self.y):
            return self.train, self.y
        if len(self.y) - n < len(np.unique(self.y)):  # scikit-learn asks for one of each class on both sides
            chosen = _all_but(len(self.y) - n, self.y, seed)
        else:
            chosen = train_test_split(np.arange(len(self.y)), train_size=n, stratify=self.y, random_state=seed)[0]
        return self.train[chosen], self.y[chosen]

    def unlabelled(self, n: int | None) -> np.ndarray:
        """Return n training images for pre-training, always the same ones; all where n is None."""
        if n is None or n >= len(self.y):
            return self.train
        return self.train[np.sort(np.random.default_rng(0).permutation(len(self.y))[:n])]


def find_data(name: str, folder: Path) -> Path | None:
    """Return where a data set lies in a folder: the folder itself, or one in it by a usual name."""
    known = KNOWN[name]
    if _plain(folder.name) in known.folders:
        return folder
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    by_name = next((entry for entry in inside if _plain(entry.name) in known.folders), None)
    if by_name is not None:
        return by_name
    return folder if name == "svhn" and official(folder) == "svhn" else None


def load_data(name: str, path: Path, *, extra: bool = False) -> ImageData:
    """Read a data set of the paper.

    Args:
        name: Key of `KNOWN`.
        path: From `find_data`.
        extra: Whether SVHN's training images are those of "extra", as in the paper, rather than of "train".

    Raises:
        DataError: A part is missing or damaged, or it is another data set.
    """
    known = KNOWN[name]
    train, test = (
        load_dataset(existing(path), split=split)
        for split in ("extra" if extra and name == "svhn" else "train", "test")
    )
    if len(train.classes) != known.classes or train.classes != test.classes or train.y is None or test.y is None:
        raise DataError(
            f"{path} is not {known.title}, which has {known.classes} classes in both parts; found "
            f"{len(train.classes)} and {len(test.classes)}"
        )
    sizes = {_size_of_first(part) for part in (train, test)}
    if sizes != {(32, 32)}:
        raise DataError(f"{path} is not {known.title}, whose images are 32 × 32; found {sorted(sizes)}")
    pixels = [to_arrays(part.X, None) for part in (train, test)]
    y, y_test = (_indices(part.y, train.classes) for part in (train, test))
    notes = [f"{part.split}: {part.note}" for part in (train, test) if part.note]
    return ImageData(name, pixels[0], y, pixels[1], y_test, "; ".join(notes))


def digits() -> ImageData:
    """Return scikit-learn's digits, 8 × 8 pixels, 800 for training and the others for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    train, test, y, y_test = train_test_split(pixels, labels, train_size=800, stratify=labels, random_state=0)
    return ImageData("digits", train, y.astype(np.int64), test, y_test.astype(np.int64))


def _all_but(n: int, y: np.ndarray, seed: int) -> np.ndarray:
    """Return the indices of all samples but n, which are of n different classes."""
    order = np.random.default_rng(seed).permutation(len(y))
    places = np.sort(np.unique(y[order], return_index=True)[1])  # where each class is first met
    return np.delete(np.arange(len(y)), order[places[:n]])


def _size_of_first(part: Dataset) -> tuple[int, int]:
    first: Any = part.X[0]
    height, width = first.shape[:2] if isinstance(first, np.ndarray) else read_image(first).size[::-1]
    return height, width


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _indices(labels: Any, classes: list[str]) -> np.ndarray:
    places = {name: i for i, name in enumerate(classes)}
    return np.array([places[str(label)] for label in labels], dtype=np.int64)
