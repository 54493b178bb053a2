"""Image files: find them, decode them, and name the ones that cannot be decoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from gradfeat.data.dataset import Dataset
from gradfeat.errors import DataError, GradfeatWarning

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
ON_ERROR = ("raise", "skip")
_NAMED = 10  # files that a message names; the rest are counted
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_image(path: Path) -> bool:
    """Whether `path` is a file, not hidden, with the suffix of an image in any case."""
    return is_file(path, SUFFIXES)


def is_file(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether `path` is a file, not hidden, with one of some suffixes in any case."""
    return path.suffix.lower() in suffixes and not is_hidden(path.name) and path.is_file()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's own rather than data."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(folder: Path) -> list[Path]:
    """Return all images of a folder and its folders, sorted; nothing that is hidden."""
    return find_files(folder, SUFFIXES)


def find_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return all files of a folder and its folders with one of some suffixes, sorted; nothing that is hidden."""
    return sorted(
        file
        for file in folder.rglob("*")
        if is_file(file, suffixes) and not any(map(is_hidden, file.relative_to(folder).parts))
    )


def read_image(path: str | os.PathLike[str], *, draft: bool = False) -> Image.Image:
    """Decode an image, turned upright as its EXIF orientation says.

    Args:
        path: The file.
        draft: A JPEG may come back at an eighth of its size, in less time; damage shows all the same.

    Returns:
        The image, fully decoded; 16-bit grey values are scaled to 8 bits.

    Raises:
        DataError: It cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            if draft:
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return eight_bit(upright(image))
    except MemoryError:
        raise
    except Exception as error:  # damaged files make decoders fail in more ways than OSError
        raise DataError(f"{path} cannot be read as an image: {_reason(error)}") from error


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says; itself, and no copy, where it is upright."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits a channel: Pillow's own conversion cuts 16-bit values off at 255.

    Raises:
        DataError: Its values have no known range (floating point).
    """
    if image.mode == "F":
        raise DataError("its pixels are floating point numbers, whose range is not known; store 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `work` of every item in order, from a few threads: Pillow and numpy let others run while they decode."""
    workers = min(8, os.cpu_count() or 1, len(items))
    if workers < 2:
        return [work(item) for item in items]
    # A pool of its own for each call costs little beside decoding, and leaves nothing behind that a fork could break.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the files that cannot be decoded, with the reason of each.

    Args:
        paths: Images; every one of them is decoded once.
    """

    def reason(path: Path) -> str | None:
        try:
            read_image(path, draft=True)
        except DataError as error:
            return _reason(error.__cause__ or error)
        return None

    return {path: why for path, why in zip(paths, in_threads(reason, paths), strict=True) if why is not None}


def without_unreadable(dataset: Dataset, on_error: str) -> Dataset:
    """Decode every image of a data set once, so that a damaged file is known before any long work.

    Args:
        dataset: Data whose X is a list of paths.
        on_error: "raise" names all damaged files in one error; "skip" leaves them out and warns once.

    Returns:
        The data set, or its readable part.

    Raises:
        DataError: Files cannot be decoded, or leaving them out leaves a class without images.
    """
    bad = unreadable([Path(path) for path in dataset.X])
    if not bad:
        return dataset
    files = f"{len(bad)} of {len(dataset)} images"
    listed = names(f"{path} ({why})" for path, why in bad.items())
    if on_error == "raise":
        raise DataError(
            f"{dataset.name}: {files} cannot be read:{listed}\n"
            "Repair or remove them, or leave them out: on_error='skip' (on the command line: --skip-unreadable)."
        )
    rest = dataset.subset([i for i, path in enumerate(dataset.X) if Path(path) not in bad])
    if rest.task == "multiclass" and rest.y is not None:
        left = set(rest.y.astype(str))
        lost = [name for name in dataset.classes if name not in left]
        if lost:
            raise DataError(f"{dataset.name}: class {lost[0]!r} has no readable image: {files} cannot be read:{listed}")
    if not len(rest):
        raise DataError(f"{dataset.name}: no image can be read:{listed}")
    warnings.warn(f"{dataset.name}: {files} cannot be read and are left out:{listed}", GradfeatWarning, stacklevel=3)
    return rest


def names(items: Iterable[object]) -> str:
    r"""Return the first items, one on each line, and how many more there are.

    Example:
        >>> names(["a.jpg", "b.jpg"])
        '\n  a.jpg\n  b.jpg'
    """
    lines = [str(item) for item in items]
    more = [f"... and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "".join(f"\n  {line}" for line in [*lines[:_NAMED], *more])


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text = str(error)
    return "not an image that Pillow knows" if "cannot identify image file" in text else text or type(error).__name__
