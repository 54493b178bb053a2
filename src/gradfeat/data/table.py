"""A table of texts or images with labels: CSV, TSV, or JSON lines."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.delimited import Quoted
from gradfeat.data.folder import SPLITS
from gradfeat.data.image_table import (
    column_of,
    find_column,
    image_paths,
    image_root,
    is_plainly_of_images,
    names_images,
)
from gradfeat.data.images import is_hidden, without_unreadable
from gradfeat.data.label_text import Name
from gradfeat.data.labels import read_labels
from gradfeat.data.lines import listed, readable, short, some, split_lines, text_of
from gradfeat.data.rows import SUFFIXES, Number, Row, read_rows
from gradfeat.errors import ConfigurationError, DataError, GradfeatWarning, did_you_mean

_TEXT = (
    "text",
    "sentence",
    "question",
    "review",
    "content",
    "document",
    "title",
    "tweet",
    "message",
    "comment",
    "body",
)
_LABEL = ("label", "labels", "class", "category", "target", "sentiment", "intent", "score", "rating")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What is read of a table, and how; None finds it out.

    Args:
        text_column: Column of the texts.
        label_column: Column of the labels.
        image_column: Column of the names or paths of images.
        image_root: Folder that these are relative to; None is the table's own.
        label_separator: What stands between several labels of a row; "" takes every label as it is.
        encoding: Of the file; None is what its byte-order mark says, or UTF-8.
    """

    text_column: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    image_root: str | os.PathLike[str] | None = None
    label_separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.text_column is not None and self.images:
            raise ConfigurationError(
                "text_column is for a table of texts, image_column and image_root for one of images"
            )

    @property
    def images(self) -> bool:
        """Whether a table of images is asked for."""
        return self.image_column is not None or self.image_root is not None


def is_table(path: Path) -> bool:
    """Whether `path` is a table, or a folder with one for each part of the data and no folders (of images)."""
    if path.is_file():
        return path.suffix.lower() in SUFFIXES
    return bool(_parts(path)) and not any(entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())


def table_format(path: Path, split: str) -> str:
    """Return "csv", "tsv" or "jsonl", by the suffix of the file that is meant."""
    return SUFFIXES[part_of(path, split)[0].suffix.lower()]


def load_table(
    path: Path,
    split: str = "train",
    format: str = "csv",
    *,
    columns: Columns | None = None,
    on_error: str = "raise",
    like: Dataset | None = None,
) -> Dataset:
    """Read texts or images, and their labels.

    Labels are names of classes as they are written, or numbers where all of them plainly are (`read_labels`). A table
    is one of images where that is asked for, or where no column is called as one of texts and one is called as images
    are, or holds the names of images that are there.

    Args:
        path: A file, taken whole; or a folder with ``<split>.csv`` or ``<name>_<split>.csv``.
        split: The part, for a folder.
        format: "csv" or "tsv" with the names of the columns in the first line, or "jsonl": an object a line (or one
            list of objects).
        columns: What is read of it.
        on_error: What to do with images that are missing or cannot be decoded: "raise" or "skip".
        like: Data whose labels these shall be of the same kind as; None decides by these alone.

    Returns:
        The texts, or paths of the images, with labels as whole numbers, floats, strings or an indicator.

    Raises:
        DataError: A column is missing, or a row cannot be read; the message names the file and the row.
    """
    columns = columns or Columns()
    file, part = part_of(path, split)
    rows = read_rows(file, format, columns.encoding)
    rows = _filled(file, rows)
    there = list(rows[0][1])
    root = image_root(file, columns.image_root)
    images = _of_images(file, rows, columns, root)
    if images:
        source = column_of(file, rows, columns.image_column, root)
    else:
        source = _column(file, there, columns.text_column, _TEXT, "text")
    label = _column(file, there, columns.label_column, _LABEL, "label")
    if source == label:
        raise DataError(
            f"{file}: {'images' if images else 'texts'} and labels are both read from the column {source!r}"
        )
    X: Any
    if images:
        X, _ = image_paths(file, rows, source, root, on_error)
    else:
        X = _texts(file, rows, source)
        empty = [where for (where, _), value in zip(rows, X, strict=True) if not value.strip()]
        if empty:
            warnings.warn(f"{file}: {len(empty)} rows have an empty text: {some(empty)}", GradfeatWarning, stacklevel=2)
    found = [(where, _as_label(values[label], format)) for where, values in rows]
    labels = read_labels(file, label, found, separator=columns.label_separator, like=like)
    if images and labels.task == "multiclass":
        _warn_of_two_labels(file, X, labels.y)
    name = file.stem if part == WHOLE or path.resolve() == file.resolve() else path.resolve().name
    dataset = Dataset(X, labels.y, labels.classes, labels.task, name, part, note=labels.note)
    return without_unreadable(dataset, on_error) if images else dataset


def load_texts(
    path: Path,
    split: str = "test",
    format: str = "auto",
    *,
    text_column: str | None = None,
    encoding: str | None = None,
) -> list[str]:
    """Read texts to predict: the text column of a table, or the lines of any other file.

    Args:
        path: The file, or a folder with a table for each part.
        split: The part, for a folder.
        format: "csv", "tsv" or "jsonl", or "auto": by the suffix, and lines for any other.
        text_column: As for `load_table`.
        encoding: Of the file; None is what its byte-order mark says, or UTF-8.

    Raises:
        DataError: There are no texts, or they cannot be read.
    """
    if is_table(path) or format != "auto":
        file, _ = part_of(path, split)
        rows = read_rows(file, SUFFIXES[file.suffix.lower()] if format == "auto" else format, encoding)
        return _texts(file, rows, _column(file, list(rows[0][1]), text_column, _TEXT, "text"))
    if path.is_dir():
        raise DataError(f"{path} has no table of texts: expected a file, or {split}.csv, .tsv or .jsonl in the folder")
    texts = split_lines(text_of(path, encoding))
    if not texts:
        raise DataError(f"{path} is empty: expected a text in each line")
    return readable(texts, [f"line {i}" for i in range(1, len(texts) + 1)], path)


def load_table_images(
    path: Path, split: str = "test", format: str = "auto", *, columns: Columns | None = None, on_error: str = "raise"
) -> tuple[list[Path], list[str]] | None:
    """Read images to predict from a table, which needs no labels.

    Args:
        path: As for `load_table`.
        split: The part, for a folder.
        format: "csv", "tsv" or "jsonl", or "auto": by the suffix.
        columns: What is read of it.
        on_error: As for `load_table`.

    Returns:
        Paths of the images, and what the table calls each; None where the table is not one of images.

    Raises:
        DataError: An image is missing or cannot be decoded, or a column is not there.
    """
    columns = columns or Columns()
    file, part = part_of(path, split)
    rows = read_rows(file, SUFFIXES[file.suffix.lower()] if format == "auto" else format, columns.encoding)
    root = image_root(file, columns.image_root)
    if not _of_images(file, rows, columns, root):
        return None
    paths, called = image_paths(file, rows, column_of(file, rows, columns.image_column, root), root, on_error)
    names = dict(zip(paths, called, strict=True))
    rest = without_unreadable(Dataset(paths, None, [], "multiclass", file.stem, part), on_error)
    return [Path(path) for path in rest.X], [names[Path(path)] for path in rest.X]


# ---- files ----------------------------------------------------------------------------------------------------------


def has_parts(path: Path) -> bool:
    """Whether a folder has tables of parts of the data: ``train.csv``, ``<name>_test.csv`` ..."""
    return bool(_parts(path))


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Return the tables of a folder by part: ``train.csv`` and ``<name>_train.csv`` are of "train"."""
    found: dict[str, list[Path]] = {}
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            part = file.stem.rpartition("_")[2]
            if file.suffix.lower() in SUFFIXES and part in SPLITS and file.is_file():
                found.setdefault(part, []).append(file)
    return found


def part_of(path: Path, split: str) -> tuple[Path, str]:
    """Return the file of a part, and what part of the data it is."""
    if not path.is_dir():
        return path, WHOLE
    parts = _parts(path)
    files = parts.get(split, [])
    if len(files) == 1:
        return files[0], split
    if files:
        raise DataError(
            f"{path} has {len(files)} tables of the part {split!r}, {', '.join(file.name for file in files)}: give the "
            "path of one"
        )
    if not parts:
        raise DataError(f"{path} has no table: expected {split}.csv, .tsv or .jsonl in it, or the path of a file")
    raise DataError(f"{path} has no part {split!r}. Its parts: {', '.join(parts)}.{did_you_mean(split, parts)}")


# ---- columns --------------------------------------------------------------------------------------------------------


def _of_images(file: Path, rows: list[Row], columns: Columns, root: Path) -> bool:
    """Whether a table is read as one of images: never one that has texts, unless that is asked for."""
    if columns.text_column is not None or columns.images:
        return columns.images
    there = list(rows[0][1])
    if any(column.lower() in _TEXT for column in there):
        return False
    return is_plainly_of_images(there) or find_column(rows, root) is not None or names_images(file, rows, root)


def _column(file: Path, columns: list[str], named: str | None, usual: tuple[str, ...], what: str) -> str:
    """Return the column that was asked for, or the one with a usual name; the first of the usual names goes first."""
    option = f"{what}_column= (on the command line: --{what}-column)"
    there = f"Its columns: {listed(columns)}"
    if named is not None:
        if named not in columns:
            raise DataError(f"{file} has no column {named!r}. {there}.{did_you_mean(named, columns)}")
        return named
    found = [column for column in columns if column.lower() in usual]
    first = [column for column in found if column.lower() == usual[0]]
    if len(first) == 1 or len(found) == 1:
        return (first or found)[0]
    if found:
        raise DataError(f"{file}: the {what} column may be {' or '.join(found)}: name it by {option}")
    images = " (images: --image-column, --image-root)" if what == "text" else ""
    raise DataError(
        f"{file} has no {what} column with a usual name ({', '.join(usual)}). {there}. Name it by {option}{images}; "
        "the first line of a table must name its columns"
    )


def _filled(file: Path, rows: list[Row]) -> list[Row]:
    """Return rows less those without any value, which spreadsheets leave behind."""
    rest = [row for row in rows if any(value not in ("", None) for value in row[1].values())]
    if len(rest) in (0, len(rows)):
        return rows
    kept = {where for where, _ in rest}
    empty = [where for where, _ in rows if where not in kept]
    warnings.warn(
        f"{file}: {len(empty):,} rows hold nothing and are left out: {some(empty)}", GradfeatWarning, stacklevel=3
    )
    return rest


def _warn_of_two_labels(file: Path, paths: Sequence[Path], y: np.ndarray) -> None:
    """Warn of images that a table lists with one label here and with another one there."""
    first: dict[Path, Any] = {}
    twice = [path for path, label in zip(paths, y.tolist(), strict=True) if first.setdefault(path, label) != label]
    if twice:
        warnings.warn(
            f"{file}: {len(twice):,} rows give an image another label than a row before, e.g. {twice[0]}; each row is "
            "a sample of its own. For several labels of an image write them in one row",
            GradfeatWarning,
            stacklevel=3,
        )


def _texts(file: Path, rows: list[Row], column: str) -> list[str]:
    for where, values in rows:
        if not isinstance(values[column], str) or isinstance(values[column], Number):
            raise DataError(f"{file}, {where}: {column!r} must be a text, not {short(values[column])}")
    return readable([values[column] for _, values in rows], [where for where, _ in rows], file)


def _as_label(value: Any, format: str) -> Any:
    """Return a value of the label column; a string of JSON is said to be one."""
    plain = isinstance(value, str) and not isinstance(value, (Number, Quoted))
    return Name(value) if format == "jsonl" and plain else value
