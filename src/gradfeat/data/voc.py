"""The VOC devkit: images with several labels each, from ``ImageSets/Main/<class>_<split>.txt``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.lines import split_lines, text_of
from gradfeat.errors import DataError, did_you_mean
from gradfeat.files.bounded import shown

_LONGEST = 1 << 28  # bytes
SPLITS = ("train", "val", "trainval", "test")
OFFICIAL = {"train": 2_501, "val": 2_510, "trainval": 5_011, "test": 4_952}  # images, of VOC2007


def is_voc(path: Path) -> bool:
    """Whether `path` is a VOC year, a VOCdevkit, or the folder around one."""
    return bool(years_of(path))


def load_voc(path: Path, split: str) -> Dataset:
    """Read image-level labels of the VOC devkit.

    In the lists 1 means present, -1 absent, and 0 `difficult`: that entry counts neither in training nor in the
    average precision of its class, as in the devkit, and is True in the data set's `ignore`.

    Args:
        path: ``VOCdevkit/VOC2007``, ``VOCdevkit``, or the folder that holds it.
        split: "train", "val", "trainval" or "test". As the VOC07 protocol trains on trainval, "train" means trainval
            where that list is there; "train-only" means the train list itself.

    Returns:
        Paths of the images, and an indicator (n, c); the classes are those with a list, sorted. A note where VOC2007
        has not as many images as officially.

    Raises:
        DataError: A list or an image is missing, a line cannot be read, or `path` holds several years; the message
            names it.
    """
    year = _only_year(path)
    split, lists = _lists(year / "ImageSets" / "Main", split)
    names, values = _entries(lists)
    images = _images(year / "JPEGImages", names)
    difficult = values == 0
    expected = OFFICIAL.get(split, len(images)) if year.name == "VOC2007" else len(images)
    return Dataset(
        X=images,
        y=(values == 1).astype(np.int64),
        classes=list(lists),
        task="multilabel",
        name=year.name,
        split=split,
        ignore=difficult if difficult.any() else None,
        note="" if len(images) == expected else f"officially {expected:,} images",
    )


def years_of(path: Path) -> list[Path]:
    """Return the folders of years, ``VOC2007`` and so on: the path itself, or what it or its VOCdevkit holds."""
    candidates = (
        [path, *sorted(path.glob("VOC[0-9]*")), *sorted(path.glob("VOCdevkit/VOC[0-9]*"))] if path.is_dir() else []
    )
    return [folder for folder in candidates if (folder / "ImageSets" / "Main").is_dir()]


def _only_year(path: Path) -> Path:
    years = years_of(path)
    if len(years) > 1:
        raise DataError(f"{path} holds several years: give the path of one, {', '.join(map(str, years))}")
    if not years:
        raise DataError(
            f"{path} is no VOC devkit: expected ImageSets/Main and JPEGImages in it, or in VOCdevkit/VOC<year> below it"
        )
    return years[0]


def _lists(folder: Path, split: str) -> tuple[str, dict[str, Path]]:
    """Return the official name of a split, and its list of each class, by the class, sorted."""
    named = [file.stem.rpartition("_") for file in folder.glob("*_*.txt")]
    splits = sorted({part for _, _, part in named})
    if split == "train-only":
        split = "train"
    elif split == "train" and "trainval" in splits:
        split = "trainval"
    files = sorted(folder.glob(f"*_{split}.txt"))
    if not files:
        raise DataError(
            f"{folder} has no lists <class>_{split}.txt; splits there: {', '.join(splits)}."
            f"{did_you_mean(split, splits)}"
        )
    lists = {file.stem.removesuffix(f"_{split}"): file for file in files}
    absent = sorted({name for name, _, part in named if part in SPLITS} - lists.keys())
    if absent:
        raise DataError(
            f"{folder} has no {absent[0]}_{split}.txt, though other parts have a list of {absent[0]!r}: every part "
            f"must have the same classes. Classes without a list: {', '.join(absent)}"
        )
    return split, lists


def _entries(lists: dict[str, Path]) -> tuple[list[str], np.ndarray]:
    """Return the names of the images, (n,), and their entries in the lists: 1, -1 or 0, (n, c)."""
    files = list(lists.values())
    columns = [_read_list(file) for file in files]
    names = list(columns[0])
    for file, column in zip(files, columns, strict=True):
        if column.keys() != columns[0].keys():
            differing = sorted(column.keys() ^ columns[0].keys())
            raise DataError(
                f"{file} lists other images than {files[0].name}: {', '.join(differing[:5])} ({len(differing)} in all)"
            )
    return names, np.array([[column[name] for column in columns] for name in names])


def _images(folder: Path, names: list[str]) -> list[Path]:
    images = [folder / f"{name}.jpg" for name in names]
    missing = [image.name for image in images if not image.is_file()]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(images)} images are missing: {', '.join(missing[:10])}")
    return images


def _read_list(file: Path) -> dict[str, int]:
    """Return the entry of each image of a class's list, by the image's name."""
    entries: dict[str, int] = {}
    if file.stat().st_size > _LONGEST:
        raise DataError(f"{file} has {file.stat().st_size:,} bytes, and is a list of images' names")
    for number, line in enumerate(split_lines(text_of(file)), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or parts[1] not in ("1", "-1", "0"):
            raise DataError(f"{file}, line {number}: expected an image's name and 1, -1 or 0, found {shown(line)}")
        if parts[0] in entries:
            raise DataError(f"{file}, line {number}: {parts[0]} is listed a second time")
        entries[parts[0]] = int(parts[1])
    if not entries:
        raise DataError(f"{file} is empty")
    return entries
