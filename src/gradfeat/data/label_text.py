"""One label as text, and what it may be as a number."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.lines import has_lone_surrogate, short
from gradfeat.data.rows import Number
from gradfeat.errors import DataError, GradfeatWarning

LONGEST = 1000  # characters of a label; longer ones are texts, and an array of them would fill the memory
_DIGITS = 19  # of the largest whole number that has 64 bits

PLAIN = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")  # without leading zeros
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_CANONICAL = re.compile(r"0|-?[1-9][0-9]*")
_WHOLE = re.compile(r"([+-]?(?:0|[1-9][0-9]*))(?:\.0*)?")


class Name(str):
    """A string of a JSON file."""

    __slots__ = ()


def one_label(file: Path, where: str, value: Any, column: str) -> str:
    """Return a label as text, whatever JSON it was.

    Args:
        file: For the message.
        where: It stands.
        value: What stands there: a string, a `Number`, true, null ...
        column: For the message.

    Raises:
        DataError: It is missing, no single value, too long, or holds what cannot be written.
    """
    if isinstance(value, (list, dict)):
        raise DataError(f"{file}, {where}: {column!r} must be one label, or a list of labels, not {short(value)}")
    if isinstance(value, Number):
        label = _json_number(value)
    else:
        label = "" if value is None else str(value).strip() if isinstance(value, str) else json.dumps(value)
    if not label:
        raise DataError(f"{file}, {where}: the label in {column!r} is empty: fill it in, or leave the row out")
    if len(label) > LONGEST:
        raise DataError(
            f"{file}, {where}: the label in {column!r} has {len(label):,} characters, {short(label)}; a class or a "
            f"number has {LONGEST:,} at most. Is it the column of the texts?"
        )
    if "\0" in label or has_lone_surrogate(label):
        raise DataError(f"{file}, {where}: the label {short(label)} holds a zero byte or half a character")
    return label


def all_labels(file: Path, found: Sequence[tuple[str, Any]], column: str) -> list[str]:
    """Return the label of each cell, given where it stands and what stands there; see `one_label`."""
    known: dict[str, str] = {}  # a column has few labels
    texts = []
    for where, value in found:
        if not isinstance(value, str) or isinstance(value, Number):
            texts.append(one_label(file, where, value, column))
            continue
        if value not in known:
            known[value] = one_label(file, where, value, column)
        texts.append(known[value])
    return texts


def _json_number(text: Number) -> str:
    """Return a number of JSON in one form: 1, 1.0 and 1e0 are the same there."""
    whole = _WHOLE.fullmatch(text)
    if whole is not None and len(whole.group(1)) <= _DIGITS + 1:
        return str(int(whole.group(1)))
    value = float(text) if len(text) <= LONGEST else float("nan")
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(text)


def has_fraction(text: str) -> bool:
    """Whether a number that is `PLAIN` has a fraction, or is written as if it may."""
    value = float(text)
    return value != np.round(value) if re.search("[eE]", text) else _WHOLE.fullmatch(text) is None


def whole_numbers(texts: Sequence[str]) -> np.ndarray | None:
    """Return whole numbers of 64 bits, as long as no two labels become one and no sign is lost; None for all else.

    Example:
        >>> whole_numbers(["10", "2.0"]).tolist(), whole_numbers(["2", "2.0"]), whole_numbers(["07"])
        ([10, 2], None, None)
    """
    known: dict[str, int] = {}
    for text in set(texts):
        match = _WHOLE.fullmatch(text)
        if match is None or len(match.group(1)) > _DIGITS + 1 or not _CANONICAL.fullmatch(match.group(1)):
            return None
        known[text] = int(match.group(1))
    values = set(known.values())
    if len(values) < len(known) or max(values) >= 2**63 or min(values) < -(2**63):
        return None
    return np.array([known[text] for text in texts], dtype=np.int64)


def warn(file: Path, text: str) -> None:
    """Warn of what a table holds."""
    warnings.warn(f"{file}: {text}", GradfeatWarning, stacklevel=2)
