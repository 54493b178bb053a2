"""Arrays in an ``.npz`` file: X and y, or X_train, y_train, X_test, y_test."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.memory import free_memory
from gradfeat.errors import DataError, did_you_mean

_NAMES = (("X", "y"), ("x", "y"), ("data", "labels"), ("images", "labels"))
_NPY = b"\x93NUMPY"
LARGE = 2 << 30
"""Bytes of an array from which on its file must not be packed more than `DENSEST` times, as one made to fill memory."""
DENSEST = 200
"""How many times smaller a large archive may be than what it unpacks to."""
_BLOCK = 1 << 22  # values looked at together, so that a check needs no copy of X


def load_npz(path: Path, split: str = "train") -> Dataset:
    """Read X and y from an ``.npz`` file, without executing anything from it.

    The arrays are called X and y (or x and y, data and labels, images and labels), or with a part's name behind:
    X_train. The optional `classes` names the classes 0, 1, ... A y of shape (n, c) with 0 and 1 is multi-label; floats
    that are no whole numbers are regression; all else is multi-class. A file with X alone has no labels.

    Args:
        path: The file.
        split: The part; a file without parts is taken whole, and the split of the result is "all".

    Returns:
        The data, labels as they are stored.

    Raises:
        DataError: The file cannot be read, lacks an array, or has values that cannot be used.
    """
    arrays = _read(path)
    where, part, X, y = _find(arrays, path, split)
    if not X.size or not X.ndim:
        raise DataError(f"{where[0]} in {path} has no samples: its shape is {X.shape}")
    if X.dtype.kind not in "fiub":
        raise DataError(f"{where[0]} in {path} must hold numbers, not {X.dtype}")
    check_finite(X, f"{where[0]} in {path}")
    classes = [str(name) for name in np.ravel(arrays["classes"])] if "classes" in arrays else None
    name = path.stem
    if y is None:
        return Dataset(X, None, classes or [], "multiclass", name, part)
    if not y.ndim or len(y) != len(X):
        raise DataError(
            f"{where[0]} in {path} has {len(X)} samples and {where[1]} has "
            + (f"{len(y)} labels" if y.ndim else "a single value instead of labels")
        )
    y, found, task = _targets(y, classes, f"{where[1]} in {path}")
    return Dataset(X, y, found, task, name, part)


def check_finite(X: np.ndarray | Tensor, what: str = "X") -> None:
    """Refuse NaN and infinite values.

    Args:
        X: (n, ...); types other than floating point pass.
        what: Its name in the message.

    Raises:
        DataError: How many values, and the first sample that has one.
    """
    if not (X.is_floating_point() if isinstance(X, Tensor) else X.dtype.kind == "f"):
        return
    step = max(1, _BLOCK // max(1, int(np.prod(X.shape[1:]))))
    bad, first = 0, -1
    for start in range(0, len(X), step):
        block = X[start : start + step]
        finite = torch.isfinite(block).cpu().numpy() if isinstance(block, Tensor) else np.isfinite(block)
        if finite.all():
            continue
        bad += int(finite.size - np.count_nonzero(finite))
        if first < 0:
            first = start + int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
    if bad:
        raise DataError(
            f"{what} has {bad} NaN or infinite value{'s' if bad > 1 else ''}, first in sample {first}: fill in or "
            "leave out such samples"
        )


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file, after a look at what their headers declare."""
    try:
        with path.open("rb") as start:
            if start.read(len(_NPY)) == _NPY:
                raise DataError(f"{path} holds a single array: save X and y together with np.savez(path, X=X, y=y)")
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            return {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{path} holds more than there is memory for") from error
    except Exception as error:  # a damaged archive makes its readers fail in many ways
        why = (
            "an array holds Python objects; save plain numbers or strings"
            if "pickle" in str(error).lower()
            else str(error)[:300]
        )
        raise DataError(f"{path} cannot be read as an .npz file: {why}") from error


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse arrays that are not as large as they say, or whose unpacking would fill the memory.

    Raises:
        DataError: The message names the array.
    """
    total = packed = 0
    for entry in archive.infolist():
        total, packed = total + entry.file_size, packed + entry.compress_size
        if not entry.filename.endswith(".npy"):
            continue
        with archive.open(entry) as stream:
            shape, _, dtype = _header(stream)
            declared = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                continue  # numpy refuses it, and says why
            if declared != entry.file_size - stream.tell():
                raise DataError(
                    f"{path} is damaged: its {entry.filename.removesuffix('.npy')} declares {declared:,} bytes "
                    f"({dtype}, {shape}) and has {max(0, entry.file_size - stream.tell()):,}"
                )
    free = free_memory()
    if total > free or (total > LARGE and total > DENSEST * packed):
        unpacked = f" out of {packed:,}" if packed < total else ""
        raise DataError(
            f"{path} would be {total:,} bytes in memory{unpacked}, and {free:,} are free: store it in parts or "
            "in a smaller dtype; without compression (np.savez) where its values are nearly all the same"
        )


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version in ((2, 0), (3, 0)):  # of which the last may have names that are not Latin, of fields alone
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"an array of the unknown version {version}")


def _find(
    arrays: dict[str, np.ndarray], path: Path, split: str
) -> tuple[tuple[str, str], str, np.ndarray, np.ndarray | None]:
    """Return the names of X and y, the part, X, and y or None."""
    for x_name, y_name in _NAMES:
        parts = [name.removeprefix(x_name + "_") for name in arrays if name.startswith(x_name + "_")]
        parts = [part for part in parts if f"{y_name}_{part}" in arrays]
        if split in parts:
            names = f"{x_name}_{split}", f"{y_name}_{split}"
            return names, split, arrays[names[0]], arrays[names[1]]
        if parts and not (x_name in arrays and split == "train"):
            raise DataError(f"{path} has no part {split!r}. Its parts: {', '.join(parts)}.{did_you_mean(split, parts)}")
        if x_name in arrays and y_name in arrays:
            return (x_name, y_name), split if parts else WHOLE, arrays[x_name], arrays[y_name]
    rest = [name for name in arrays if name != "classes"]
    if len(rest) == 1 and rest[0] in {x_name for x_name, _ in _NAMES}:
        return (rest[0], ""), WHOLE, arrays[rest[0]], None
    known = "; ".join(f"{x_name} and {y_name}" for x_name, y_name in _NAMES)
    there = ", ".join(f"{name} {value.shape}" for name, value in arrays.items()) or "nothing"
    raise DataError(f"{path} lacks its arrays: expected {known} (or X_train and y_train, and so on); it has {there}")


def _targets(y: np.ndarray, classes: list[str] | None, what: str) -> tuple[np.ndarray, list[str], str]:
    """Return labels, names of the classes, and the task."""
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8")
    if y.dtype.kind not in "fiubU":
        raise DataError(f"{what} must hold numbers or strings, not {y.dtype}")
    check_finite(y, what)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim > 2:
        raise DataError(f"{what} must have the shape (n,), or (n, c) for multi-label; got {y.shape}")
    if y.ndim == 2:
        return _matrix(y, classes, what)
    if y.dtype.kind == "f":
        if (y != np.round(y)).any():
            if classes is not None:
                raise DataError(
                    f"{what} has fractions, as in regression, but the file names classes: store whole numbers from 0"
                )
            return y, [], "regression"
        if (abs(y) < 2**53).all():  # larger ones are no counts, and would become one class
            y = y.astype(np.int64)
    return _vector(y, classes, what)


def _matrix(y: np.ndarray, classes: list[str] | None, what: str) -> tuple[np.ndarray, list[str], str]:
    if y.dtype.kind != "U" and np.isin(y, (0, 1)).all():
        if classes is not None and len(classes) != y.shape[1]:
            raise DataError(f"{what} has {y.shape[1]} columns, and classes names {len(classes)}")
        return y.astype(np.int64), classes or [str(i) for i in range(y.shape[1])], "multilabel"
    if y.dtype.kind == "f" and classes is None:
        return y, [], "regression"
    raise DataError(
        f"{what} has the shape {y.shape}, as multi-label, but values besides 0 and 1; for "
        "regression with several outputs store floats"
    )


def _vector(y: np.ndarray, classes: list[str] | None, what: str) -> tuple[np.ndarray, list[str], str]:
    if classes is None:
        classes = [str(value) for value in np.unique(y)]
        if len(classes) < 2:
            raise DataError(f"{what} has only one class, {classes[0]!r}: at least two are needed to tell apart")
        return y, classes, "multiclass"
    known: Collection[str] = set(classes)
    wrong = ~np.isin(y, list(known)) if y.dtype.kind == "U" else (y < 0) | (y >= len(classes))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        expected = (
            f"one of {', '.join(classes)}"
            if y.dtype.kind == "U"
            else f"0 to {len(classes) - 1}, by the {len(classes)} classes"
        )
        raise DataError(
            f"{what}: {int(wrong.sum())} labels out of range, first {y[first]!s} in sample {first}; expected {expected}"
        )
    return y, classes, "multiclass"
