"""A table of images: a column of their names or paths, as image contests hand out beside a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradfeat.data.images import SUFFIXES, names
from gradfeat.data.lines import listed, short
from gradfeat.data.rows import Row
from gradfeat.errors import DataError, did_you_mean

USUAL = (
    "image",
    "image_id",
    "image_index",
    "imageid",
    "image_path",
    "imagepath",
    "image_name",
    "imagename",
    "image_file",
    "image_filename",
    "images",
    "img",
    "img_id",
    "img_path",
    "img_name",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "file",
    "path",
    "photo",
    "picture",
    "id_code",
    "id",
)
_LONG = 300  # characters of a path that a message shows
_TRIED = 50  # rows; where none of their values is a file, a column is no column of images


class Images:
    """Where the values of a column lie.

    Args:
        root: The folder that relative values are of.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, dict[str, list[Path]]] = {}

    def find(self, value: str) -> list[Path]:
        """Return the file that a value names, with or without its suffix; several where that is not clear.

        Args:
            value: A path or the name of a file; absolute, or relative to the root.
        """
        if not value.strip("./\\ "):
            return []  # a folder
        for name in dict.fromkeys((value, value.replace("\\", "/"))):
            path = self.root / name
            if os.path.isfile(path):  # never fails, whatever the name
                return [path]
            found = self._names(path.parent).get(path.name, [])
            if found:
                return found
        return []

    def _names(self, folder: Path) -> dict[str, list[Path]]:
        """Return the images of a folder by their names without the suffix."""
        if folder not in self._folders:
            found: dict[str, list[Path]] = {}
            try:
                files = sorted(os.listdir(folder))
            except (OSError, ValueError):
                files = []
            for file in files:
                stem, suffix = os.path.splitext(file)
                if suffix.lower() in SUFFIXES:
                    found.setdefault(stem, []).append(folder / file)
            self._folders[folder] = found
        return self._folders[folder]


def image_root(file: Path, given: str | os.PathLike[str] | None) -> Path:
    """Return the folder that the paths of a table are relative to: the table's own, or the one that was given.

    Raises:
        DataError: There is no such folder.
    """
    if given is None:
        return file.parent
    root = Path(given).expanduser()
    if not root.is_dir():
        raise DataError(f"image_root (on the command line: --image-root) is {root}, and there is no such folder")
    return root


def find_column(rows: Sequence[Row], root: Path) -> str | None:
    """Return the column with a usual name whose values are images that exist; None where there is none.

    Args:
        rows: Of the table.
        root: The folder that they are relative to.
    """
    images = Images(root)
    by_name = {_plain(column): column for column in rows[0][1]}
    for name in USUAL:
        column = by_name.get(name)
        if column is not None and any(images.find(_value(values[column])) for _, values in rows[:_TRIED]):
            return column
    return None


def column_of(file: Path, rows: Sequence[Row], named: str | None, root: Path) -> str:
    """Return the column that was asked for, or the one that holds images.

    Raises:
        DataError: There is no such column.
    """
    columns = list(rows[0][1])
    if named is not None:
        if named not in columns:
            raise DataError(
                f"{file} has no column {short(named)}. Its columns: {listed(columns)}.{did_you_mean(named, columns)}"
            )
        return named
    found = find_column(rows, root)
    if found is None:
        usual = [column for column in columns if _plain(column) in USUAL]
        said = f"no value of {listed(usual)} is an image in {root}" if usual else "no column of images has a usual name"
        nearby = next((hint for name in usual if (hint := _nearby(file, root, _value(rows[0][1][name])))), "")
        raise DataError(
            f"{file}: {said}. Its columns: {listed(columns)}. Name the one of the images by image_column= (on the "
            f"command line: --image-column), and their folder by image_root= (--image-root).{nearby}"
        )
    return found


def is_plainly_of_images(columns: Iterable[str]) -> bool:
    """Whether a column is called as nothing but images would be."""
    plain = map(_plain, columns)
    return any(name in USUAL and re.match("ima?ge?|photo|picture|id_code", name) for name in plain)


def _plain(column: str) -> str:
    """Return the name of a column as `USUAL` has it: "Image Index" is image_index."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def image_paths(
    file: Path, rows: Sequence[Row], column: str, root: Path, on_error: str = "raise"
) -> tuple[list[Path], list[str]]:
    """Return the image of each row, and what the table calls it.

    Args:
        file: The table, for messages.
        rows: Its rows.
        column: The one that names images.
        root: The folder that they are relative to.
        on_error: "raise" names all that are missing in one error; "skip" returns paths at which there is nothing.

    Raises:
        DataError: A row names no image, none that exists, or several; the message names the rows.
    """
    images = Images(root)
    values = [_value(values[column]) for _, values in rows]
    paths, missing = [], []
    for (where, _), value in zip(rows, values, strict=True):
        if not value:
            raise DataError(f"{file}, {where}: {column!r} is empty, or no name of a file")
        found = images.find(value)
        if len(found) > 1:
            raise DataError(
                f"{file}, {where}: {short(value)} may be {' or '.join(path.name for path in found)} in "
                f"{found[0].parent}: write the suffix"
            )
        paths.append(found[0] if found else root / value)
        if not found:
            missing.append(f"{where}: {_cut(root / value)}")
    if missing and (on_error == "raise" or len(missing) == len(rows)):
        value = next(value for value, path in zip(values, paths, strict=True) if not os.path.isfile(path))
        raise DataError(
            f"{file}: {len(missing):,} of {len(rows):,} images in {column!r} are not there:{names(missing)}\n"
            "Name their folder by image_root= (on the command line: --image-root), or leave such rows out: "
            f"on_error='skip' (--skip-unreadable).{_nearby(file, root, value)}"
        )
    return paths, values


def names_images(file: Path, rows: Sequence[Row], root: Path) -> bool:
    """Whether a column with a usual name holds names of images, which need not be where they are looked for."""
    columns = [column for column in rows[0][1] if _plain(column) in USUAL]
    values = [_value(rows[0][1][column]) for column in columns]
    return any(value.lower().endswith(SUFFIXES) or _nearby(file, root, value) for value in values)


def _nearby(file: Path, root: Path, value: str) -> str:
    """Return where an image lies that is not where it was looked for: in a folder beside the table."""
    name = re.split(r"[\\/]", value)[-1]
    elsewhere = re.match(r"[\\/]|[A-Za-z]:[\\/]", value) is not None
    for folder in (file.parent, *sorted(entry for entry in file.parent.iterdir() if entry.is_dir())):
        if value and folder != root and Images(folder).find(value):
            return f" There is {short(value)} in {folder}"
        if elsewhere and Images(folder).find(name):
            return (
                f" {_cut(Path(value))} seems to be a path of another computer; there is {short(name)} in {folder}: "
                "write paths that are relative to a folder"
            )
    return ""


def _cut(path: Path) -> str:
    said = str(path)
    return said if len(said) <= _LONG else said[:_LONG] + " ..."


def _value(value: Any) -> str:
    """Return a path as text: ids may be numbers in JSON."""
    return str(value).strip() if isinstance(value, str) else ""
