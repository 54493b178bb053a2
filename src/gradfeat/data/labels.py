"""What the labels of a table are: names of classes, whole numbers, numbers to predict, or several labels a row."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.dataset import Dataset
from gradfeat.data.delimited import Quoted
from gradfeat.data.label_text import NUMBER, PLAIN, Name, all_labels, has_fraction, warn, whole_numbers
from gradfeat.data.lines import short, some
from gradfeat.data.multilabel import indicator_of, several_labels
from gradfeat.errors import DataError

_FEW = 10  # rows; below, a class for nearly each of them is no sign of anything
_MANY = 30  # different whole numbers; fewer are classes, or a scale
_GAPS = 1.3  # times the number of classes; equally frequent ones leave fewer numbers out, or are nearly all different
_MOSTLY = 0.9  # of a column: the rest are odd ones out

_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}([,'\u00a0\u202f ][0-9]{3})+(\.[0-9]+)?")
_UNIT = re.compile(r"[$€£¥₹]|%|USD|EUR|GBP")
_ABSENT = ("nan", "na", "n/a", "null", "none", "inf", "-inf")
_MISSING = ("nan", "na", "n/a", "null", "<na>", "#n/a")  # as the name of a class; "none" is a usual one


@dataclass(frozen=True)
class Labels:
    """Labels as a `Dataset` has them.

    Args:
        y: Whole numbers, floats or strings (n,), or an indicator (n, c).
        classes: Names of the classes; empty for regression.
        task: "multiclass", "multilabel" or "regression".
        note: What a reader of the data should know.
    """

    y: np.ndarray
    classes: list[str]
    task: str
    note: str = ""


@dataclass(frozen=True)
class _Cells:
    """A column of labels."""

    file: Path
    column: str
    places: list[str]
    texts: list[str]
    typed: bool  # whether some of them are said to be strings, by quotes or by JSON
    named: bool  # ... by JSON

    def said(self, i: int) -> str:
        return f"{self.file}, {self.places[i]}"

    def warn(self, text: str) -> None:
        warn(self.file, text)


def read_labels(
    file: Path,
    column: str,
    found: Sequence[tuple[str, Any]],
    *,
    separator: str | None = None,
    like: Dataset | None = None,
) -> Labels:
    """Decide what a column of labels is, and return it.

    Labels are names of classes, exactly as they are written, unless they are plainly numbers. Whole numbers, all of
    them without a leading zero or plus and within 64 bits, are classes in the order of the numbers (so are 1.0 and 2.0,
    where no two are equal); with a fraction among them numbers make it regression. A JSON string is a name, and so is a
    whole number in quotes. Lists make it multi-label, in all formats; so do bars (``x|y``) where the parts stand alone
    or at several places too.

    Args:
        file: The table, for messages.
        column: The column, for messages.
        found: Where each label stands, and what stands there: a string (`Quoted`, `Name`), a `Number`, a list ...
        separator: What stands between several labels; "" never splits one, nor reads lists in text; None finds out.
        like: Data whose labels these shall be of the same kind as, e.g. the training part; None decides by these alone.

    Returns:
        The labels; see `Labels`.

    Raises:
        DataError: A label that is missing, cannot be one or is no number among numbers, or several labels that cannot
            be told apart.
    """
    several = several_labels(file, column, found, separator, like)
    if several is not None:
        y, classes, note = indicator_of(file, column, [where for where, _ in found], several, like)
        return Labels(y, classes, "multilabel", note)
    cells = _Cells(
        file,
        column,
        [where for where, _ in found],
        all_labels(file, found, column),
        any(isinstance(value, (Quoted, Name)) for _, value in found),
        any(isinstance(value, Name) for _, value in found),
    )
    alike = None if like is None else _as_before(cells, like)
    return _decide(cells) if alike is None else alike


# ---- one label a row ------------------------------------------------------------------------------------------------


def _decide(cells: _Cells) -> Labels:
    """Return a column of single labels; this is the one place that says what they are."""
    texts = cells.texts
    names = set(texts)
    numbers = {text for text in names if NUMBER.fullmatch(text)}
    numeric = [text in numbers for text in texts]
    odd = [i for i, number in enumerate(numeric) if not number]
    if odd and len(odd) < len(texts) and all(texts[i].lower() in _ABSENT for i in odd):
        raise DataError(
            f"{cells.said(odd[0])}: {cells.column!r} is {texts[odd[0]]!r}, where the other labels are numbers "
            f"({len(odd)} such rows)"
        )
    if not odd and all(map(PLAIN.fullmatch, names)):
        if any(map(has_fraction, names)):
            if not cells.named:
                return _numbers(cells)
            if _nearly_all_different(texts):
                cells.warn(
                    f"the labels in {cells.column!r} are strings, but all of them are numbers, and nearly all "
                    "different: read as numbers, for regression"
                )
                return _numbers(cells)
        elif not cells.typed and (whole := whole_numbers(texts)) is not None:
            _warn_of_many(cells, "whole numbers", _nearly_all_different(texts) or _look_measured(whole))
            return Labels(whole, [str(value) for value in np.unique(whole)], "multiclass")
    _warn_of_names(cells, numeric)
    return _named(texts)


def _named(texts: Sequence[str]) -> Labels:
    return Labels(np.array(texts), sorted(set(texts)), "multiclass")


def _numbers(cells: _Cells) -> Labels:
    values = np.array([float(text) for text in cells.texts])
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{cells.said(first)}: the number {short(cells.texts[first])} in {cells.column!r} is too large")
    return Labels(values, [], "regression", f"the labels in {cells.column!r} have fractions: regression")


def _as_before(cells: _Cells, like: Dataset) -> Labels | None:
    """Return labels of the kind that other data have; None where they cannot be of it."""
    texts = cells.texts
    if like.task == "regression":
        return Labels(_numbers(cells).y, [], "regression") if all(map(NUMBER.fullmatch, texts)) else None
    if like.task != "multiclass" or like.y is None:
        return None
    if like.y.dtype.kind in "iu":
        whole = whole_numbers(texts)
        return None if whole is None else Labels(whole, [str(value) for value in np.unique(whole)], "multiclass")
    if like.y.dtype.kind not in "UO" or (not set(texts) & set(like.classes)):
        return None
    return _named(texts)


# ---- what labels look like ------------------------------------------------------------------------------------------


def _nearly_all_different(texts: Sequence[str]) -> bool:
    different = len(set(texts))
    return (len(texts) >= _FEW and 2 * different > len(texts)) or (different == len(texts) > _FEW // 2)


def _look_measured(values: np.ndarray) -> bool:
    """Whether whole numbers are many, few of each, and far apart: prices, not the numbers of classes."""
    different = len(np.unique(values))
    low, high = int(values.min()), int(values.max())
    return different >= _MANY and 10 * different > len(values) and high - low >= _GAPS * different


def _warn_of_many(cells: _Cells, kind: str, many: bool) -> None:
    """Warn of nearly as many classes as rows: ids, or numbers to predict."""
    if many:
        way = (
            ". For regression give the numbers fractions (another unit does), or use GradientFeatureRegressor in Python"
            if kind == "whole numbers"
            else ""
        )
        cells.warn(
            f"of the {len(cells.texts):,} labels in {cells.column!r}, which are {kind}, "
            f"{len(set(cells.texts)):,} are different, and each is read as a class; label_column= (on the command "
            f"line: --label-column) names another column{way}"
        )


def _warn_of_names(cells: _Cells, numeric: Sequence[bool]) -> None:
    """Warn of names that look like something else."""
    texts, column = cells.texts, cells.column
    names = list(dict.fromkeys(texts))
    _warn_of_many(cells, "names", _nearly_all_different(texts))
    missing = [i for i, text in enumerate(texts) if text.lower() in _MISSING or text == "None"]
    if missing and len(missing) < len(texts):
        cells.warn(
            f"{len(missing)} labels in {column!r} are {texts[missing[0]]!r}, as missing ones are written, and are read "
            f"as a class of that name: {some(cells.places[i] for i in missing)}"
        )
    if all(len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" for name in names):
        cells.warn(
            f"the quotes in {column!r} are part of the labels, as in {short(names[0])}: no space belongs before one"
        )
    twins = _twins(names)
    if twins:
        cells.warn(
            f"labels in {column!r} differ little, and are classes of their own: "
            + some(" and ".join(map(short, pair)) for pair in twins)
        )
    commas = [text for text in names if _DECIMAL_COMMA.fullmatch(text)]
    marked = [name for name in names if _is_marked(name)]
    if marked and all(_is_marked(name) or NUMBER.fullmatch(name) for name in names):
        cells.warn(
            f"labels in {column!r} such as {marked[0]!r} look like numbers, with units or thousands marked off, and "
            "are read as names of classes: write plain numbers, 1234.5 say, for regression"
        )
    elif commas and all(_DECIMAL_COMMA.fullmatch(text) or NUMBER.fullmatch(text) for text in names):
        cells.warn(
            f"labels in {column!r} such as {commas[0]!r} look like numbers with a decimal comma, and are read as names "
            "of classes: write points for regression"
        )
    elif sum(numeric) < len(texts) <= sum(numeric) / _MOSTLY:
        odd = [i for i, number in enumerate(numeric) if not number]
        cells.warn(
            f"{len(odd)} of {len(texts):,} labels in {column!r} are no numbers, so all are read as names of classes: "
            + some(f"{texts[i]!r} in {cells.places[i]}" for i in odd)
        )
    elif cells.named and all(map(PLAIN.fullmatch, names)) and any(map(has_fraction, names)):
        cells.warn(
            f"the labels in {column!r} are strings that look like numbers, and are read as names of classes: write "
            "them without quotes for regression"
        )


def _is_marked(name: str) -> bool:
    """Whether a name is a number with a unit, or with its thousands marked off: 35 %, $1,200.50."""
    bare = _UNIT.sub("", name).strip()
    number = NUMBER.fullmatch(bare) or _DECIMAL_COMMA.fullmatch(bare)
    return _THOUSANDS.fullmatch(bare) is not None or (bare != name and number is not None)


def _twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ in case, spaces, signs that are not seen or the form of a number only."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        shown = "".join(char for char in unicodedata.normalize("NFKC", name) if unicodedata.category(char) != "Cf")
        key = " ".join(shown.casefold().split())
        if NUMBER.fullmatch(name):
            whole = re.fullmatch(r"([+-]?)0*([0-9]+?)(?:\.0*)?", name)
            value = float(name)
            if whole is not None:
                key = whole.group(1).replace("+", "") + whole.group(2)
            elif np.isfinite(value):
                key = repr(value)
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs
