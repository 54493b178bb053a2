"""The rows of a table: CSV, TSV or JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradfeat.data.delimited import read_delimited
from gradfeat.data.lines import decoded, listed, short, split_lines
from gradfeat.errors import DataError

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
    content = decoded(file, encoding)
    rows = list(_objects(file, content)) if format == "jsonl" else read_delimited(file, content, format)
    if not rows:
        raise DataError(f"{file} has no rows" + ("" if format == "jsonl" else " below its head"))
    return rows


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _objects(file: Path, content: str) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines, or of one JSON list."""
    columns: set[str] | None = None
    for where, value in _values(file, content):
        if not isinstance(value, dict):
            raise DataError(f'{file}, {where}: expected an object {{"text": ..., "label": ...}}, found {short(value)}')
        columns = set(value) if columns is None else columns
        if set(value) != columns:
            odd = listed(sorted(set(value) ^ columns))
            raise DataError(f"{file}, {where}: its fields are not those of the first row; they differ in {odd}")
        yield where, value


def _values(file: Path, content: str) -> Iterator[tuple[str, Any]]:
    try:
        if re.match(r"\s*\[", content):
            for number, value in enumerate(parse_json(content), 1):
                yield f"row {number}", value
            return
    except ValueError as error:
        raise DataError(f"{file} is no JSON list: {error}") from error
    except RecursionError as error:
        raise DataError(f"{file} is no JSON list of objects: it is nested too deeply") from error
    for number, line in enumerate(split_lines(content), 1):
        if line.strip():
            try:
                yield f"line {number}", parse_json(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: no JSON object ({error})") from error
            except RecursionError as error:
                raise DataError(f"{file}, line {number}: no JSON object of a row: it is nested too deeply") from error
