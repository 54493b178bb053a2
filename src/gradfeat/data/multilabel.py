"""Several labels in one row of a table: lists, and names with something between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.label_text import LONGEST, PLAIN, all_labels, has_fraction, one_label, warn, whole_numbers
from gradfeat.data.lines import short, some
from gradfeat.data.rows import Number, parse_json
from gradfeat.errors import DataError

_MOST = 1 << 28  # entries of an indicator
_STRING = re.compile(r"'[^'\\]*'|\"[^\"\\]*\"")  # as Python writes it, and numpy without commas
_STRING_LIST = re.compile(rf"\[\s*(?:{_STRING.pattern})(?:(?:\s*,\s*|\s+)(?:{_STRING.pattern}))*+\s*\]")
_NUMBER_LIST = re.compile(r"\[\s*+[+-]?[0-9]++\.?(?:\s++[+-]?[0-9]++\.?)*+\s*+\]")  # as numpy writes it


def several_labels(
    file: Path, column: str, found: Sequence[tuple[str, Any]], separator: str | None, like: Dataset | None
) -> list[list[str]] | None:
    """Return the labels of each row where there may be several; None where each row has one.

    Args:
        file: For messages.
        column: For messages.
        found: Where each cell stands, and what stands there.
        separator: What stands between labels; "" takes every text as it is; None finds out.
        like: Data whose labels these shall be of the same kind as.

    Raises:
        DataError: Lists in some rows and single labels in others, or a label that is missing or cannot be one.
    """
    multilabel = like is not None and like.task == "multilabel"
    cells = [_listed(value, text=separator is None) for _, value in found]
    lists = [cell for cell in cells if cell is not None]
    if not lists:
        return None if separator == "" else _split(file, column, found, separator, like)
    if len(lists) < len(found) and not multilabel:
        plain = next(i for i, cell in enumerate(cells) if cell is None)
        first = next(i for i, cell in enumerate(cells) if cell is not None)
        if not any(isinstance(value, list) for _, value in found) and max(map(len, lists)) < 2:
            return None  # names that stand in brackets
        raise DataError(
            f"{file}, {found[first][0]}: {column!r} is a list of labels, {short(found[first][1])}, and in "
            f"{found[plain][0]} it is the one label {short(found[plain][1])}: write a list in every row, or one label "
            "in every row (label_separator='', on the command line --label-separator '', takes text as it is)"
        )
    if not multilabel and not any(isinstance(value, list) for _, value in found):
        said = f"labels in {column!r} such as {short(found[0][1])} look like lists"
        if all(len(cell) == 1 for cell in lists):
            warn(file, f"{said} of one label each, and are read as names of classes as they stand")
            return None
        if _are_intervals(lists):
            warn(file, f"{said} or like intervals; no number is in two of them, so they are read as names of classes")
            return None
    return [
        [one_label(file, where, item, column) for item in ([value] if cell is None else cell)]
        for cell, (where, value) in zip(cells, found, strict=True)
    ]


def _split(
    file: Path, column: str, found: Sequence[tuple[str, Any]], separator: str | None, like: Dataset | None
) -> list[list[str]] | None:
    """Return the parts of labels that something stands between; None where they are whole."""
    texts = all_labels(file, found, column)
    if like is not None and like.task == "multilabel":
        return [[text] if text in like.classes else _parts(text, separator or "|") for text in texts]
    if separator is not None:
        return [_parts(text, separator) for text in texts]
    for mark in "|;,":
        example = next((text for text in texts if mark in text), None)
        if example is None:
            continue
        said = f"labels in {column!r} such as {short(example)}"
        way = f"label_separator={mark!r} (on the command line: --label-separator {mark!r}) splits them"
        if not _recombine(texts, mark):
            if mark == "|":
                warn(file, f"{said} hold a bar; they are read as names of classes. {way}")
        elif mark == "|":
            kept = "label_separator='' (on the command line: --label-separator '') keeps them as names of classes"
            warn(file, f"{said} are read as several labels; {kept}")
            return [_parts(text, mark) for text in texts]
        else:
            warn(file, f"{said} look like several labels; they are read as names of classes. {way}")
    return None


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _recombine(texts: Iterable[str], mark: str) -> bool:
    """Whether parts of labels stand alone too, or at several places: names that hold the mark by chance do not."""
    places: dict[str, set[int]] = {}
    whole: set[str] = set()
    split: set[str] = set()
    for text in set(texts):
        parts = [part.strip() for part in text.split(mark)]
        if len(parts) == 1:
            whole.add(text)
            continue
        for place, part in enumerate(parts):
            places.setdefault(part, set()).add(place)
            split.add(part)
    split.discard("")
    return bool(split & whole) or any(part and len(found) > 1 for part, found in places.items())


def _listed(value: Any, *, text: bool) -> list[Any] | None:
    """Return the items of a list, in JSON or written as JSON or Python write it; None for all else."""
    if isinstance(value, list):
        return value
    if not text or not isinstance(value, str) or isinstance(value, Number) or len(value) > LONGEST:
        return None
    inner = value.strip()
    if inner[:1] + inner[-1:] in ("()", "{}"):  # a tuple or a set of Python's, if of strings; else a name
        inner = f"[{inner[1:-1].rstrip().removesuffix(',')}]"
        if not _STRING_LIST.fullmatch(inner):
            return None
    if not (inner.startswith("[") and inner.endswith("]")):
        return None
    try:
        items = parse_json(inner)
    except (ValueError, RecursionError):
        if _NUMBER_LIST.fullmatch(inner):
            return [Number(item) for item in inner[1:-1].split()]
        return [found[1:-1] for found in _STRING.findall(inner)] if _STRING_LIST.fullmatch(inner) else None
    return items if all(isinstance(item, (str, bool)) for item in items) else None


def _are_intervals(lists: Sequence[list[Any]]) -> bool:
    """Whether lists in text are pairs of ascending numbers none of which is in two pairs, as bins of ages are."""
    if not all(len(row) == 2 and all(isinstance(item, Number) for item in row) for row in lists):
        return False
    pairs = {tuple(row) for row in lists}
    return len({item for pair in pairs for item in pair}) == 2 * len(pairs) and all(
        float(low) < float(high) for low, high in pairs
    )


def indicator_of(
    file: Path, column: str, places: list[str], rows: list[list[str]], like: Dataset | None
) -> tuple[np.ndarray, list[str], str]:
    """Return lists of labels as an indicator (n, c).

    Args:
        file: For messages.
        column: For messages.
        places: Where each row stands.
        rows: The labels of each row; or zeros and ones for all labels, the same number in each row.
        like: Data whose columns these shall have.

    Returns:
        The indicator, the names of its columns, and a note.

    Raises:
        DataError: Lists of two that may be labels or zeros and ones, numbers with fractions, fewer than two labels,
            more than memory should hold, or one that `like` has not.
    """
    length = len(rows[0])
    given = like is None or like.task != "multilabel" or len(like.classes) == length
    if length > 1 and given and all(len(row) == length and set(row) <= {"0", "1"} for row in rows):
        if any(len(set(row)) < length for row in rows):  # a list of labels has none twice
            classes = [str(j) for j in range(length)] if like is None or like.task != "multilabel" else like.classes
            y = np.array([[int(value) for value in row] for row in rows], dtype=np.int64)
            return y, classes, f"zeros and ones in {column!r}: multi-label"
        raise DataError(
            f"{file}: lists of two in {column!r} such as [{', '.join(rows[0])}] may be labels 0 and 1, or an absent "
            "and a present one: write names of labels instead"
        )
    for where, row in zip(places, rows, strict=True):
        if any(PLAIN.fullmatch(item) and has_fraction(item) for item in row):
            raise DataError(
                f"{file}, {where}: {column!r} is a list with fractions: several numbers to predict belong in the y "
                "(n, c) of an .npz file"
            )
    names = {name for row in rows for name in row}
    whole = whole_numbers(list(names)) if names else None
    ordered = sorted(names) if whole is None else [name for _, name in sorted(zip(whole.tolist(), names, strict=True))]
    classes = _columns(file, column, ordered, like)
    if len(classes) < 2:
        raise DataError(
            f"{file}: {column!r} must be one label, or a list of labels of which there are two at least; the lists "
            f"hold {' '.join(map(short, classes)) or 'none'}"
        )
    if len(rows) * len(classes) > _MOST:
        raise DataError(
            f"{file}: the {len(rows):,} lists in {column!r} hold {len(classes):,} different labels: is it the column "
            "of the labels?"
        )
    if like is None and all(len(row) == 1 for row in rows):
        warn(
            file,
            f"every list in {column!r} holds one label: read as multi-label; for one class a row leave out the lists",
        )
    place = {name: j for j, name in enumerate(classes)}
    y = np.zeros((len(rows), len(classes)), dtype=np.int64)
    for i, row in enumerate(rows):
        y[i, [place[name] for name in row]] = 1
    return y, classes, f"several labels in {column!r}: multi-label"


def _columns(file: Path, column: str, names: list[str], like: Dataset | None) -> list[str]:
    """Return the labels of the columns: those of other data, where they are asked for."""
    if like is None or like.task != "multilabel":
        return names
    unknown = [name for name in names if name not in set(like.classes)]
    if unknown:
        raise DataError(
            f"{file}: {column!r} has labels that the training data has not: {some(map(short, unknown))}; known are "
            f"{', '.join(map(short, like.classes[:10]))}{' ...' if len(like.classes) > 10 else ''}"
        )
    return list(like.classes)
