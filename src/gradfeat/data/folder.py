"""A folder of class folders with images (or other files), with or without parts (train, test) above them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.images import SUFFIXES, find_files, is_file, is_hidden
from gradfeat.errors import DataError, did_you_mean

SPLITS = ("train", "training", "trainval", "validation", "valid", "val", "dev", "test", "testing")


def load_folder(path: Path, split: str = "train") -> Dataset:
    """Read ``path/<class>/*.jpg``, or ``path/<split>/<class>/*.jpg`` where `path` has parts.

    The images are not decoded here; `gradfeat.data.load_dataset` does that once for each.

    Args:
        path: The folder.
        split: Its part; a folder without parts is taken whole, and the split of the result is "all".

    Returns:
        Paths in sorted order, with the names of their class folders as labels.

    Raises:
        DataError: There is no such folder or part, no class folder, fewer than two of them, or one without images.
    """
    files, part = class_folders(path, split, SUFFIXES, "images")
    X = [file for name in files for file in files[name]]
    y = np.array([name for name in files for _ in files[name]])
    return Dataset(X, y, list(files), "multiclass", path.resolve().name, part)


def class_folders(path: Path, split: str, suffixes: Sequence[str], what: str) -> tuple[dict[str, list[Path]], str]:
    """Return the files of each class folder, and what part of the data they are.

    Args:
        path: A folder of class folders, or of parts that hold them.
        split: The part.
        suffixes: Of the files that count.
        what: What they are called in messages.

    Raises:
        DataError: As `load_folder` says.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    root, part = _part(path, split, suffixes)
    folders = _folders(root)
    if not folders:
        loose = sum(is_file(file, suffixes) for file in root.iterdir())
        found = f"{loose} {what} without class folders" if loose else "no folders"
        raise DataError(f"{root} has {found}: expected one folder for each class, with its {what} inside")
    files = {folder.name: find_files(folder, suffixes) for folder in folders}
    if not any(files.values()):
        raise DataError(f"{root} has no {what} in its {len(folders)} folders. Known suffixes: {', '.join(suffixes)}")
    empty = [name for name, found_files in files.items() if not found_files]
    if empty:
        raise DataError(
            f"No {what} in the class folder{'s' if len(empty) > 1 else ''} {', '.join(map(repr, empty))} of {root}: "
            f"remove or fill {'them' if len(empty) > 1 else 'it'}. Known suffixes: {', '.join(suffixes)}"
        )
    if len(files) < 2:
        only = next(iter(files))
        raise DataError(f"{root} has only one class, {only!r}: at least two are needed to tell apart")
    return files, part


def _part(path: Path, split: str, suffixes: Sequence[str]) -> tuple[Path, str]:
    """Return the folder with the class folders, and what part of the data it is."""
    if (path / split).is_dir() and not _is_class(path / split, suffixes):
        return path / split, split
    parts = [folder.name for folder in _folders(path) if folder.name.lower() in SPLITS and _folders(folder)]
    if parts:
        raise DataError(f"{path} has no part {split!r}. Its parts: {', '.join(parts)}.{did_you_mean(split, parts)}")
    return path, WHOLE


def _is_class(folder: Path, suffixes: Sequence[str]) -> bool:
    """Whether a folder called like a part is a class, a vehicle say: files in it and in a folder beside it."""
    beside = [other for other in _folders(folder.parent) if other.name != folder.name]
    return _loose(folder, suffixes) and any(_loose(other, suffixes) for other in beside)


def _loose(folder: Path, suffixes: Sequence[str]) -> bool:
    """Whether a folder holds files that count, and no folders."""
    return not _folders(folder) and any(is_file(file, suffixes) for file in folder.iterdir())


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
