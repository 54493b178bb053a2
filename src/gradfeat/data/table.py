"""Texts with labels in a table: CSV, TSV, or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.folder import SPLITS
from gradfeat.data.images import is_hidden
from gradfeat.errors import DataError, GradfeatWarning, did_you_mean

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl"}
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
_WHOLE_NUMBER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ABSENT = ("nan", "na", "n/a", "null", "none", "inf", "-inf")

Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its values by column


def is_table(path: Path) -> bool:
    """Whether `path` is a table of texts, or a folder with one for each part of the data and no folders (of images)."""
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
    text_column: str | None = None,
    label_column: str | None = None,
    encoding: str | None = None,
) -> Dataset:
    """Read texts and their labels.

    Labels that are whole numbers, all of them, are classes in the order of the numbers; numbers with fractions among
    them make it regression; all else are names of classes.

    Args:
        path: A file, taken whole; or a folder with ``<split>.csv`` or ``<name>_<split>.csv``.
        split: The part, for a folder.
        format: "csv" or "tsv" with the names of the columns in the first line, or "jsonl": an object a line (or one
            list of objects).
        text_column: Name of the column with the texts; None finds it by the usual names.
        label_column: Name of the column with the labels; None finds it by the usual names.
        encoding: Of the file; None is UTF-8.

    Returns:
        The texts, with labels as whole numbers, floats or strings.

    Raises:
        DataError: A column is missing, or a row cannot be read; the message names the file and the row.
    """
    file, part = part_of(path, split)
    rows = read_rows(file, format, encoding)
    columns = list(rows[0][1])
    text = _column(file, columns, text_column, _TEXT, "text")
    label = _column(file, columns, label_column, _LABEL, "label")
    if text == label:
        raise DataError(f"{file}: texts and labels are both read from the column {text!r}")
    X = [_text(file, where, values, text) for where, values in rows]
    empty = [where for (where, _), value in zip(rows, X, strict=True) if not value.strip()]
    if empty:
        shown = ", ".join(empty[:3]) + (" ..." if len(empty) > 3 else "")
        warnings.warn(f"{file}: {len(empty)} rows have an empty text: {shown}", GradfeatWarning, stacklevel=2)
    y, classes, task = _labels(file, [(where, _label(file, where, values, label)) for where, values in rows], label)
    note = f"the labels in {label!r} have fractions: regression" if task == "regression" else ""
    name = file.stem if part == WHOLE or path.resolve() == file.resolve() else path.resolve().name
    return Dataset(X, y, classes, task, name, part, note=note)


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
        encoding: Of the file; None is UTF-8.

    Raises:
        DataError: There are no texts, or they cannot be read.
    """
    if is_table(path) or format != "auto":
        file, _ = part_of(path, split)
        rows = read_rows(file, SUFFIXES[file.suffix.lower()] if format == "auto" else format, encoding)
        column = _column(file, list(rows[0][1]), text_column, _TEXT, "text")
        return [_text(file, where, values, column) for where, values in rows]
    if path.is_dir():
        raise DataError(f"{path} has no table of texts: expected a file, or {split}.csv, .tsv or .jsonl in the folder")
    texts = _decoded(path, encoding).splitlines()
    if not texts:
        raise DataError(f"{path} is empty: expected a text in each line")
    return texts


def read_rows(file: Path, format: str, encoding: str | None = None) -> list[Row]:
    """Return the rows of a table, each with the place where it stands.

    Raises:
        DataError: The file cannot be decoded or parsed, a row has another number of fields than the head, or there are
            no rows.
    """
    content = _decoded(file, encoding)
    rows = list(_objects(file, content) if format == "jsonl" else _records(file, content, format))
    if not rows:
        raise DataError(f"{file} has no rows" + ("" if format == "jsonl" else " below its head"))
    return rows


# ---- files ----------------------------------------------------------------------------------------------------------


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


def _decoded(file: Path, encoding: str | None) -> str:
    """Return the content of a file, or say which line is not in the encoding."""
    data = file.read_bytes()
    try:
        return data.decode(encoding or "utf-8-sig")
    except LookupError as error:
        raise DataError(f"there is no encoding {encoding!r}; usual ones are utf-8, latin-1, cp1252, utf-16") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}, line {line}: not {encoding or 'UTF-8'} ({error.reason}). Say the file's encoding= (on the "
            "command line: --encoding), e.g. latin-1 or cp1252, or save it as UTF-8"
        ) from error


def _records(file: Path, content: str, format: str) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV file."""
    reader = csv.reader(io.StringIO(content, newline=""), "excel" if format == "csv" else "excel-tab", strict=True)
    head: list[str] | None = None
    end = 0
    try:
        for fields in reader:
            where, end = f"line {end + 1}", reader.line_num
            if not fields:
                continue  # an empty line
            if head is None:
                head = [field.strip() for field in fields]
                if len(set(head)) < len(head):
                    raise DataError(f"{file}: its first line names a column twice: {', '.join(head)}")
                continue
            if len(fields) != len(head):
                raise DataError(
                    f"{file}, {where}: {len(fields)} fields, where the first line names {len(head)} columns "
                    f"({', '.join(head)}). A text with commas, tabs or quotes must stand in double quotes"
                )
            yield where, dict(zip(head, fields, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{file}, from line {end + 1}: not {format.upper()} ({error}); is a quote left open?"
        ) from error


def _objects(file: Path, content: str) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines, or of one JSON list."""
    columns: set[str] | None = None
    for where, value in _values(file, content):
        if not isinstance(value, dict):
            raise DataError(
                f'{file}, {where}: expected an object {{"text": ..., "label": ...}}, found {str(value)[:60]}'
            )
        columns = set(value) if columns is None else columns
        if set(value) != columns:
            odd = ", ".join(sorted(set(value) ^ columns))
            raise DataError(f"{file}, {where}: its fields are not those of the first row; they differ in {odd}")
        yield where, value


def _values(file: Path, content: str) -> Iterator[tuple[str, Any]]:
    try:
        if content.lstrip().startswith("["):
            for number, value in enumerate(json.loads(content), 1):
                yield f"row {number}", value
            return
    except ValueError as error:
        raise DataError(f"{file} is no JSON list: {error}") from error
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: no JSON object ({error})") from error


# ---- columns --------------------------------------------------------------------------------------------------------


def _column(file: Path, columns: list[str], asked: str | None, usual: tuple[str, ...], what: str) -> str:
    """Return the column that was asked for, or the one with a usual name; the first of the usual names goes first."""
    option = f"{what}_column= (on the command line: --{what}-column)"
    there = f"Its columns: {', '.join(columns)}"
    if asked is not None:
        if asked not in columns:
            raise DataError(f"{file} has no column {asked!r}. {there}.{did_you_mean(asked, columns)}")
        return asked
    found = [column for column in columns if column.lower() in usual]
    first = [column for column in found if column.lower() == usual[0]]
    if len(first) == 1 or len(found) == 1:
        return (first or found)[0]
    if found:
        raise DataError(f"{file}: the {what} column may be {' or '.join(found)}: name it by {option}")
    raise DataError(f"{file} has no {what} column with a usual name ({', '.join(usual)}). {there}. Name it by {option}")


def _text(file: Path, where: str, values: dict[str, Any], column: str) -> str:
    if not isinstance(values[column], str):
        raise DataError(f"{file}, {where}: {column!r} must be a text, not {values[column]!r}")
    return str(values[column])


def _label(file: Path, where: str, values: dict[str, Any], column: str) -> str:
    """Return a label as text, whatever JSON it was."""
    value = values[column]
    if isinstance(value, (list, dict)):
        raise DataError(f"{file}, {where}: {column!r} must be one label, not {str(value)[:60]}")
    label = "" if value is None else json.dumps(value) if not isinstance(value, str) else value.strip()
    if not label:
        raise DataError(f"{file}, {where}: the label in {column!r} is empty: fill it in, or leave the row out")
    return label


def _labels(file: Path, found: list[tuple[str, str]], column: str) -> tuple[np.ndarray, list[str], str]:
    """Return labels as they are given back, the names of the classes, and the task."""
    labels = [label for _, label in found]
    if all(map(_WHOLE_NUMBER.fullmatch, labels)):
        whole = [int(label) for label in labels]
        if max(map(abs, whole)) < 2**63:
            y = np.array(whole, dtype=np.int64)
            return y, [str(value) for value in np.unique(y)], "multiclass"
    numeric = [_NUMBER.fullmatch(label) is not None for label in labels]
    odd = [entry for entry, is_number in zip(found, numeric, strict=True) if not is_number]
    if odd and len(odd) < len(labels) and all(label.lower() in _ABSENT for _, label in odd):
        raise DataError(
            f"{file}, {odd[0][0]}: {column!r} is {odd[0][1]!r}, where the other labels are numbers ({len(odd)} such "
            "rows)"
        )
    if odd:
        names = np.array(labels)
        return names, np.unique(names).tolist(), "multiclass"
    values = np.array([float(label) for label in labels])
    if not np.isfinite(values).all():
        raise DataError(f"{file}: {column!r} has a number that is too large")
    if (values == np.round(values)).all():
        y = values.astype(np.int64)
        return y, [str(value) for value in np.unique(y)], "multiclass"
    return values, [], "regression"
