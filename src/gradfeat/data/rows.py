"""The rows of a table: CSV, TSV or JSON lines."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradfeat.data.delimited import read_delimited
from gradfeat.data.lines import short, split_lines, text_of
from gradfeat.errors import DataError

SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its values by column


class Number(str):
    """A number of a JSON file as it is written: 1.50 stays 1.50, and a million digits cost nothing."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return it as JSON has it."""
        return str(self)


def parse_json(text: str) -> Any:
    """Return what a JSON text holds, with its numbers as `Number`.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    return json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=Number).decode(text)


def read_rows(file: Path, format: str, encoding: str | None = None) -> list[Row]:
    """Return the rows of a table, each with the place where it stands.

    CSV is read as RFC 4180 says; a head that has no comma but semicolons, tabs or bars says what stands between fields.
    A TSV file is read so too if all of its quotes are balanced, field by field; if not, its quotes are ordinary
    characters.

    Args:
        file: The table.
        format: "csv", "tsv" or "jsonl".
        encoding: None is what the file's byte-order mark says, UTF-8 without one.

    Returns:
        Values by column: strings (`Quoted` where quotes stood round them), and for JSON whatever it holds, numbers as
        `Number`.

    Raises:
        DataError: The file cannot be decoded or parsed, a row has another number of fields than the head, a quote is
            left open, or there are no rows.
    """
    content = text_of(file, encoding)
    with _uncollected():
        rows = list(_objects(file, content)) if format == "jsonl" else read_delimited(file, content, format)
    if not rows:
        raise DataError(f"{file} has no rows" + ("" if format == "jsonl" else " below its head"))
    return rows


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let the collector of garbage rest: it would look through all rows again and again, and take most of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _objects(file: Path, content: str) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines, or of one JSON list."""
    values = list(_values(file, content))
    if len(values) == 1 and isinstance(values[0][1], dict) and (nested := _rows_of(values[0][1])) is not None:
        values = [(f"row {i}", value) for i, value in enumerate(nested, 1)]
    columns: dict[str, None] = {}
    for where, value in values:
        if not isinstance(value, dict):
            raise DataError(f'{file}, {where}: expected an object {{"text": ..., "label": ...}}, found {short(value)}')
        columns.update(dict.fromkeys(value))
    for i, (where, value) in enumerate(values):
        if len(value) == len(columns):
            yield where, value
        else:  # the first row tells of all columns; the others need not hold what they have not
            yield where, dict.fromkeys(columns) | value if i == 0 else _Fields(value)


class _Fields(dict[str, Any]):
    """An object that lacks some fields of others: they are null."""

    def __missing__(self, name: str) -> None:
        return None


def _rows_of(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows that a single object holds: its only list of objects, or columns, as pandas writes them."""
    if not all(isinstance(item, (list, dict)) for item in value.values()):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(lists) == 1:
        return lists[0]
    columns = [list(item.values()) if isinstance(item, dict) else item for item in value.values()]
    if len({len(column) for column in columns}) != 1:
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(file: Path, content: str) -> Iterator[tuple[str, Any]]:
    try:
        if re.match(r"\s*\[", content):
            for number, value in enumerate(parse_json(content), 1):
                yield f"row {number}", value
            return
        if re.match(r"\s*\{\s*[\r\n]", content):  # one object on several lines
            yield "row 1", parse_json(content)
            return
    except ValueError as error:
        raise DataError(f"{file} is no JSON list or object: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} is no JSON list or object of rows: it is nested too deeply") from error
    for number, line in enumerate(split_lines(content), 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: no JSON object ({error})") from error
            except RecursionError as error:
                raise DataError(f"{file}, line {number}: no JSON object of a row: it is nested too deeply") from error
