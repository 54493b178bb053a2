"""COCO2014 (Lin et al., 2014) for multi-label classification: which of 80 categories an image shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.memory import free_memory
from gradfeat.errors import DataError, did_you_mean
from gradfeat.files.bounded import parse_json, shown

OFFICIAL = {"train": 82_783, "val": 40_504}  # images
CATEGORIES = 80
SOURCE = "https://cocodataset.org/#download"


def is_coco(path: Path) -> bool:
    """Whether `path` is a folder with annotations or images of COCO2014."""
    return any(_annotations(path, part).is_file() or _images(path, part).is_dir() for part in OFFICIAL)


def load_coco(path: Path, split: str) -> Dataset:
    """Read COCO2014 as a multi-label data set.

    An image is positive for every category that has an annotation in it, negative for the others. Regions that stand
    for a crowd (``iscrowd``) count as any other, as is usual for classification: they show the category all the same.
    Images without annotations stay, and are negative for all.

    Args:
        path: The folder with ``annotations/instances_train2014.json``, ``annotations/instances_val2014.json``,
            ``train2014`` and ``val2014``; only those of the split need to be there.
        split: "train" or "val". The labels of COCO's own test part are not public, and the paper tests on val: "test"
            means val too.

    Returns:
        Paths of the images and an indicator (n, c), in the order of the file's images and categories; a note where
        there are not as many images or categories as officially.

    Raises:
        DataError: Annotations or images are missing, or the annotations cannot be read; the message names them.
    """
    part = "val" if split == "test" else split
    if part not in OFFICIAL:
        known = (*OFFICIAL, "test")
        raise DataError(
            f"COCO2014 has the splits train and val (also as test), not {split!r}.{did_you_mean(split, known)}"
        )
    file, folder = _annotations(path, part), _images(path, part)
    if not file.is_file():
        raise DataError(f"There is no {file}: download annotations_trainval2014.zip ({SOURCE}) and unpack it in {path}")
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: download {part}2014.zip ({SOURCE}) and unpack it in {path}")
    names, classes, y = _read(file)
    there = {entry.name for entry in folder.iterdir()}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(names)} images are missing: {_listed(missing)}")
    notes = [] if len(names) == OFFICIAL[part] else [f"{OFFICIAL[part]:,} images"]
    notes += [] if len(classes) == CATEGORIES else [f"{CATEGORIES} categories"]
    return Dataset(
        X=[folder / name for name in names],
        y=y,
        classes=classes,
        task="multilabel",
        name="COCO2014",
        split=part,
        note=f"officially {' and '.join(notes)}" if notes else "",
    )


def _listed(names: list[str]) -> str:
    return ", ".join(name if name.isprintable() and len(name) < 200 else shown(name) for name in names[:10])


def _annotations(path: Path, part: str) -> Path:
    return path / "annotations" / f"instances_{part}2014.json"


def _images(path: Path, part: str) -> Path:
    return path / f"{part}2014"


def _read(file: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the images' names, the categories, and the indicator."""
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:  # no JSON, no UTF-8, or nested too deep
        raise DataError(f"{file} is cut off or damaged: {error}") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in lists):
        raise DataError(f"{file} has no annotations of instances: expected an object with the lists {', '.join(lists)}")
    names = _by_id(content["images"], "file_name", file, "images")
    categories = _by_id(content["categories"], "name", file, "categories")
    row, column = ({key: i for i, key in enumerate(found)} for found in (names, categories))
    if 8 * len(names) * len(categories) > free_memory():
        raise DataError(
            f"{file} lists {len(names):,} images and {len(categories):,} categories, too many for the memory"
        )
    y = np.zeros((len(names), len(categories)), dtype=np.int64)
    for i, annotation in enumerate(content["annotations"]):
        try:
            y[row[annotation["image_id"]], column[annotation["category_id"]]] = 1
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{file}, annotations[{i}]: expected image_id and category_id of a listed image and category, found "
                f"{shown(annotation)}"
            ) from error
    return list(names.values()), list(categories.values()), y


def _by_id(entries: list[Any], field: str, file: Path, what: str) -> dict[Any, str]:
    """Return the names of images or categories by their id, in the order of the file."""
    found: dict[Any, str] = {}
    for i, entry in enumerate(entries):
        try:
            key, name = entry["id"], entry[field]
            repeated = key in found
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}, {what}[{i}]: expected an id and a {field}, found {shown(entry)}") from error
        if repeated or not isinstance(name, str):
            reason = (
                f"the id {shown(key)} is there a second time" if repeated else f"the {field} is no text: {shown(name)}"
            )
            raise DataError(f"{file}, {what}[{i}]: {reason}")
        found[key] = name
    if not found:
        raise DataError(f"{file}: the list {what} is empty")
    return found
