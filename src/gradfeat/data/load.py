"""One call for every layout: find out what a path holds, and read it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gradfeat.data.dataset import Dataset
from gradfeat.data.finding import find_files, search, warn_of_samples
from gradfeat.data.images import ON_ERROR, SUFFIXES, is_image, is_image_inside, without_unreadable
from gradfeat.errors import ConfigurationError, DataError, did_you_mean

TABLES = ("csv", "tsv", "jsonl")
FORMATS = ("auto", "folder", "npz", "cifar", "svhn", "voc", "coco", "wav", *TABLES)


def load_dataset(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    format: str = "auto",
    on_error: str = "raise",
    text_column: str | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    label_separator: str | None = None,
    encoding: str | None = None,
    like: Dataset | None = None,
    rate: int | None = None,
    seconds: float | None = None,
) -> Dataset:
    """Read labelled data.

    Images become 8 bits a channel, upright, on white where they are transparent. Integers of 16 and 32 bits are scaled
    by the bits that the largest value of an image needs (8, 10, 12, 14 or 16), with a warning where these are not 16.

    Args:
        path: A folder of class folders with images or WAV files (or of parts, "train" and so on, that hold them), an
            ``.npz`` file with X and y, CIFAR's official binary or python layout, the folder of SVHN's cropped digits
            (``train_32x32.mat`` ...), a VOC devkit, the folder of COCO2014 (``annotations``, ``train2014`` ...), or
            texts, or names of images, in a ``.csv``, ``.tsv`` or ``.jsonl`` file (or a folder with one for each part,
            ``train.csv`` or ``<name>_train.csv``).
        split: The part to read, in folders also by another word (training_set, val); data without parts is taken whole,
            and the result's split is then "all". For VOC, "train" means its trainval, as in the VOC07 protocol;
            "train-only" means the train list itself. SVHN has "extra" too. For COCO "test" means val, on which the
            paper tests.
        format: "folder", "npz", "cifar", "svhn", "voc", "coco", "wav", "csv", "tsv", "jsonl", or "auto": found out from
            what is there.
        on_error: What to do with images that cannot be decoded: "raise" one error that names them, or "skip" them with
            a warning.
        text_column: Column of the texts in a table; None finds it by the usual names.
        label_column: Column of the labels in a table; None finds it by the usual names.
        image_column: Column of the images in a table: paths, or names with or without a suffix; None finds it by the
            usual names, where its values are files and there is no column of texts.
        image_root: Folder that these are relative to; None is the table's own.
        label_separator: What stands between several labels of a row in a table; "" takes every label as it is; None
            reads lists, and what has bars between labels that stand alone too.
        encoding: Of a table; None is what its byte-order mark says, or UTF-8.
        like: Of a table: labels are read as those of this data set are, e.g. those of the test part as the training
            part's (names or numbers, the same columns); None decides by the table alone.
        rate: Samples a second of recordings; None is 16,000.
        seconds: Length of every recording, cut or padded; None is 1.

    Returns:
        The data; see `Dataset`.

    Raises:
        DataError: Nothing is there, or it cannot be used; the message names the file, row or value.
        ConfigurationError: An unknown format or `on_error`, or columns named for data that are no table.
    """
    _check_choices(format, on_error)
    path = existing(path)
    columns: dict[str, Any] = {
        "text_column": text_column,
        "label_column": label_column,
        "image_column": image_column,
        "image_root": image_root,
        "label_separator": label_separator,
        "encoding": encoding,
    }
    if format == "auto":
        format = _detect(path, split, image_column is not None or image_root is not None)
    if format in TABLES:
        from gradfeat.data.table import Columns, load_table

        return load_table(path, split, format, columns=Columns(**columns), on_error=on_error, like=like)
    sound = _given(rate=rate, seconds=seconds)
    if sound and format != "wav":
        raise ConfigurationError(f"{next(iter(sound))} is for WAV files; {path} is read as {format}")
    for name in _given(**columns):
        raise ConfigurationError(
            f"{name} is for tables of texts or images ({', '.join(TABLES)}); {path} is read as {format}"
        )
    if format == "wav":
        from gradfeat.data.audio import load_audio

        return load_audio(path, split, **sound)
    dataset = _load(path, split, format)
    return dataset if hasattr(dataset.X, "dtype") else without_unreadable(dataset, on_error)


def _check_choices(format: str, on_error: str) -> None:
    if format not in FORMATS:
        raise ConfigurationError(
            f"format must be one of {', '.join(FORMATS)}, not {format!r}.{did_you_mean(format, FORMATS)}"
        )
    if on_error not in ON_ERROR:
        raise ConfigurationError(f"on_error must be 'raise' or 'skip', not {on_error!r}")


def _given(**options: Any) -> dict[str, Any]:
    """Return those options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def load_images(path: str | os.PathLike[str]) -> list[Path]:
    """Return the images to predict: one file, or all images of a folder and its folders, sorted.

    Args:
        path: An image, or a folder.

    Raises:
        DataError: Nothing is there, or no image.
    """
    path = existing(path)
    if path.is_file():
        if not (is_image(path) or is_image_inside(path)):
            raise DataError(f"{path} is no image file. Known suffixes: {', '.join(SUFFIXES)}")
        return [path]
    found = search(path, SUFFIXES, is_image_inside)
    if not found.files:
        raise DataError(f"{path} and its folders hold no image. Known suffixes: {', '.join(SUFFIXES)}")
    warn_of_samples(str(path), "images", found.left)
    return found.files


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path, or say from where on it does not exist.

    Raises:
        DataError: Nothing is there; the message has the nearest names.
    """
    path = Path(path).expanduser()
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    near = (
        did_you_mean(missing.name, (entry.name for entry in missing.parent.iterdir()))
        if missing.parent.is_dir()
        else ""
    )
    raise DataError(f"There is no {path}: {missing.parent.resolve()} has no {missing.name!r}.{near}")


def official(path: Path) -> str | None:
    """Return the format of a folder in the official layout of a data set; None for anything else."""
    from gradfeat.data.cifar import is_cifar
    from gradfeat.data.coco import is_coco
    from gradfeat.data.svhn import is_svhn
    from gradfeat.data.voc import is_voc

    layouts = {"cifar": is_cifar, "svhn": is_svhn, "voc": is_voc, "coco": is_coco}
    return next((name for name, is_there in layouts.items() if is_there(path)), None)


def is_sound(path: Path) -> bool:
    """Whether a folder holds WAV files, and no image."""
    from gradfeat.data.audio import SUFFIXES as SOUND

    # the first image ends the search: a folder of images is not listed twice
    images = any(is_image(file) for file in path.rglob("*"))
    return not images and bool(find_files(path, SOUND))


def _detect(path: Path, split: str, images: bool = False) -> str:
    """Return the format of what is there; where a table of images is asked for, it may lie beside their folders."""
    from gradfeat.data.table import has_parts, is_table, table_format

    if path.is_file() and path.suffix.lower() == ".npz":
        return "npz"
    layout = official(path)
    if layout is not None:
        return layout
    if is_table(path) or (images and has_parts(path)):
        return table_format(path, split)
    if path.is_dir():
        return "wav" if is_sound(path) else "folder"
    raise DataError(
        f"{path} is a file, and neither an .npz nor a table: expected a folder of class folders with images, an .npz "
        "file with X and y, a .csv, .tsv or .jsonl file with texts or images and labels, or the folder of the "
        "official files of CIFAR, SVHN, VOC or COCO2014. Archives must be unpacked; a table with another suffix needs "
        "format= (on the command line: --data-format)"
    )


def _load(path: Path, split: str, format: str) -> Dataset:
    if format == "folder":
        from gradfeat.data.folder import load_folder

        return load_folder(path, split)
    if format == "npz":
        from gradfeat.data.arrays import load_npz

        return load_npz(path, split)
    if format == "cifar":
        from gradfeat.data.cifar import load_cifar

        return load_cifar(path, split)
    if format == "svhn":
        from gradfeat.data.svhn import load_svhn

        return load_svhn(path, split)
    if format == "coco":
        from gradfeat.data.coco import load_coco

        return load_coco(path, split)
    from gradfeat.data.voc import load_voc

    return load_voc(path, split)
