"""A folder of class folders with images, with or without parts (train, test) above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.images import SUFFIXES, find_images, is_hidden, is_image
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
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    root, part = _part(path, split)
    folders = _folders(root)
    if not folders:
        loose = sum(is_image(file) for file in root.iterdir())
        found = f"{loose} images without class folders" if loose else "no folders"
        raise DataError(f"{root} has {found}: expected one folder for each class, with its images inside")
    paths = {folder.name: find_images(folder) for folder in folders}
    if not any(paths.values()):
        raise DataError(f"{root} has no images in its {len(folders)} folders. Known suffixes: {', '.join(SUFFIXES)}")
    empty = [name for name, files in paths.items() if not files]
    if empty:
        raise DataError(
            f"No images in the class folder{'s' if len(empty) > 1 else ''} {', '.join(map(repr, empty))} of {root}: "
            f"remove or fill {'them' if len(empty) > 1 else 'it'}. Known suffixes: {', '.join(SUFFIXES)}"
        )
    classes = list(paths)
    if len(classes) < 2:
        raise DataError(f"{root} has only one class, {classes[0]!r}: at least two are needed to tell apart")
    X = [file for name in classes for file in paths[name]]
    y = np.array([name for name in classes for _ in paths[name]])
    return Dataset(X, y, classes, "multiclass", path.resolve().name, part)


def _part(path: Path, split: str) -> tuple[Path, str]:
    """Return the folder with the class folders, and what part of the data it is."""
    if (path / split).is_dir() and not _is_class(path / split):
        return path / split, split
    parts = [folder.name for folder in _folders(path) if folder.name.lower() in SPLITS and _folders(folder)]
    if parts:
        raise DataError(f"{path} has no part {split!r}. Its parts: {', '.join(parts)}.{did_you_mean(split, parts)}")
    return path, WHOLE


def _is_class(folder: Path) -> bool:
    """Whether a folder called like a part is a class, a vehicle say: images in it and in a folder beside it."""
    beside = [other for other in _folders(folder.parent) if other.name != folder.name]
    return _loose(folder) and any(map(_loose, beside))


def _loose(folder: Path) -> bool:
    """Whether a folder holds images, and no folders."""
    return not _folders(folder) and any(map(is_image, folder.iterdir()))


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
