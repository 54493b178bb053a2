"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in their official binary and python layouts.

The python layout is made of pickles, which can run code when they are read. They are read here by an unpickler that
knows only what these files are made of (numpy arrays and plain containers) and refuses anything else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.errors import DataError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    folder: str
    title: str
    train: str  # glob
    test: str
    meta: str
    labels: int  # label bytes before the pixels; the last one is the class
    key: bytes  # of the classes' names or the labels, in a pickle


_BINARY = (
    _Layout("cifar-10-batches-bin", "CIFAR-10", "data_batch_[0-9].bin", "test_batch.bin", "batches.meta.txt", 1, b""),
    _Layout("cifar-100-binary", "CIFAR-100", "train.bin", "test.bin", "fine_label_names.txt", 2, b""),
)
_PYTHON = (
    _Layout("cifar-10-batches-py", "CIFAR-10", "data_batch_[0-9]", "test_batch", "batches.meta", 0, b"labels"),
    _Layout("cifar-100-python", "CIFAR-100", "train", "test", "meta", 0, b"fine_labels"),
)


def is_cifar(path: Path) -> bool:
    """Whether `path` is one of the four official folders, by its name or its files, or holds one."""
    return _find(path) is not None


def load_cifar(path: Path, split: str) -> Dataset:
    """Read CIFAR-10 or CIFAR-100 (its 100 fine labels).

    Args:
        path: ``cifar-10-batches-bin``, ``cifar-10-batches-py``, ``cifar-100-binary``, ``cifar-100-python``, or the
            folder around it.
        split: "train" (all training batches that are there) or "test".

    Returns:
        Images, uint8 (n, 32, 32, 3), and the names of their classes.

    Raises:
        DataError: A file is missing, cut off or damaged, or holds what these files never hold; the message names it.
    """
    found = _find(path)
    if found is None:
        names = ", ".join(layout.folder for layout in (*_BINARY, *_PYTHON))
        raise DataError(f"{path} holds none of the official folders: {names}")
    folder, layout = found
    if split not in ("train", "test"):
        raise DataError(f"{layout.title} has the splits train and test, not {split!r}")
    pattern = layout.train if split == "train" else layout.test
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    if not files:
        raise DataError(f"{folder} has no file {pattern}")
    meta = folder / layout.meta
    if not meta.is_file():
        raise DataError(f"{folder} has no file {layout.meta}, which names the classes")
    if layout in _BINARY:
        classes = meta.read_text().split()
        batches = [_read_binary(file, layout.labels) for file in files]
    else:
        key = b"label_names" if layout.key == b"labels" else b"fine_label_names"
        classes = [name.decode() if isinstance(name, bytes) else str(name) for name in _entry(meta, key)]
        batches = [_read_pickle(file, layout.key) for file in files]
    labels = np.concatenate([batch[0] for batch in batches])
    pixels = np.concatenate([batch[1] for batch in batches])
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"{folder}: labels from {labels.min()} to {labels.max()}, but {layout.meta} names {len(classes)} classes"
        )
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Dataset(
        X=images, y=np.array(classes)[labels], classes=classes, task="multiclass", name=layout.title, split=split
    )


def _find(path: Path) -> tuple[Path, _Layout] | None:
    if not path.is_dir():
        return None
    for layout in (*_BINARY, *_PYTHON):
        if path.name == layout.folder or ((path / layout.meta).is_file() and any(path.glob(layout.train))):
            return path, layout
    for layout in (*_BINARY, *_PYTHON):
        if (path / layout.folder).is_dir():
            return path / layout.folder, layout
    return None


def _read_binary(file: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + PIXELS
    size = file.stat().st_size
    if not size or size % record:
        raise DataError(
            f"{file} is cut off or damaged: {size:,} bytes are no whole number of records of {record:,} bytes"
        )
    rows = np.fromfile(file, dtype=np.uint8).reshape(-1, record)
    return rows[:, label_bytes - 1].astype(np.int64), rows[:, label_bytes:]


def _read_pickle(file: Path, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    labels, pixels = np.asarray(_entry(file, key)), np.asarray(_entry(file, b"data"))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS or labels.shape != (len(pixels),):
        raise DataError(
            f"{file}: expected uint8 data (n, {PIXELS}) and n labels, found {pixels.dtype} {pixels.shape} and "
            f"{labels.shape}"
        )
    return labels.astype(np.int64), pixels


def _entry(file: Path, key: bytes) -> Any:
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{file} is cut off or damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, not the dict of a CIFAR batch")
    value = content.get(key, content.get(key.decode()))
    if value is None:
        raise DataError(f"{file} has no entry {key.decode()!r}; found {', '.join(map(str, content))}")
    return value


class _Unpickler(pickle.Unpickler):
    """Reads containers and numpy arrays; nothing else can be looked up, so nothing can be run."""

    _KNOWN = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return a name of the list; refuse all others."""
        if (module, name) not in self._KNOWN:
            raise DataError(f"refused: the pickle asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
