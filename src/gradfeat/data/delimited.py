"""CSV and TSV files: their dialect, their quotes, and rows that an open quote merged."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gradfeat.data.lines import LINE_END, listed, some, split_lines
from gradfeat.errors import DataError, GradfeatWarning

_Row = tuple[str, dict[str, str]]

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_NAMES_OF = {",": "CSV", "\t": "TSV", ";": "CSV (semicolons)", "|": "CSV (bars)"}


class Quoted(str):
    """A field of a CSV or TSV file that stands in quotes."""

    __slots__ = ()


_LINE = re.compile(r"[^\r\n]*+")
_BLANK = " \x1a"  # of a line that holds nothing; old programs end a file by the second


class _Record(NamedTuple):
    line: int  # where it begins
    end: int  # where it ends
    fields: list[str]
    raw: str


class _Unbalanced(Exception):
    """A quote is left open, or closed in the middle of a field."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def read_delimited(file: Path, content: str, format: str) -> list[_Row]:
    """Return the rows of a CSV or TSV file, each with the place where it stands.

    CSV is read as RFC 4180 says, TSV too if its quotes are balanced, field by field; else they are ordinary characters.

    Args:
        file: For messages.
        content: Of the file.
        format: "csv" or "tsv": a comma or a tab between fields, unless the head has none of it and another.

    Returns:
        Fields by column, `Quoted` where quotes stood round them.

    Raises:
        DataError: A quote is left open, or merged rows; a row has another number of fields than the head; a column is
            named twice.
    """
    first, delimiter = _dialect(content, _DELIMITERS[format])
    rows = _rows(file, content, format, first, delimiter)
    head = list(rows[0][1]) if rows else []
    again = {where: None for where, values in rows if len(head) > 1 and _repeats(head, values)}
    if again:
        warnings.warn(
            f"{file}: the names of the columns stand there again, and no row: {some(again)}",
            GradfeatWarning,
            stacklevel=4,
        )
        rows = [row for row in rows if row[0] not in again]
    return rows


def _repeats(head: list[str], values: dict[str, str]) -> bool:
    return values[head[0]].strip() == head[0] and [value.strip() for value in values.values()] == head


def _rows(file: Path, content: str, format: str, first: int, delimiter: str) -> list[_Row]:
    name = _NAMES_OF.get(delimiter, format.upper())
    tabs = delimiter == "\t"
    try:
        records = _tidied(list(_records(content, delimiter, first)))
    except _Unbalanced as error:
        if tabs and (rows := _unquoted(file, content, first)) is not None:
            return rows
        raise DataError(f"{file}, from line {error.line}: not {name} ({error}); is a quote left open?") from error
    merged, certain = _merged(records, delimiter)
    wide = bool(records) and len(records[0].fields) > 1  # of one column several lines may be rows, or a text
    if merged is not None and tabs and wide and (rows := _unquoted(file, content, first)) is not None:
        return rows
    if merged is not None:
        said = (
            f"{file}, line {merged.line}: a quoted text goes on to line {merged.end}, and each of these lines has the "
            "columns of a row of its own; is a quote left open?"
        )
        if certain and not tabs:
            raise DataError(f"{said} Close it, or write quotes within a text twice")
        warnings.warn(f"{said} It is read as one text", GradfeatWarning, stacklevel=6)
    return list(_by_column(file, records))


def _unquoted(file: Path, content: str, first: int) -> list[_Row] | None:
    """Return the rows of a TSV file whose quotes are ordinary characters; None if it cannot be read so."""
    records = [_Record(i, i, line.split("\t"), line) for i, line in enumerate(split_lines(content), 1) if line]
    records = _tidied([record for record in records if record.line >= first])
    if not records or any(name.strip().startswith('"') for name in records[0].fields):
        return None  # who quotes the head quotes the fields
    try:
        return list(_by_column(file, records))
    except DataError:
        return None


def _tidied(records: list[_Record]) -> list[_Record]:
    """Return records less lines of spaces, and less empty cells that every row has beyond the head."""
    width = len(records[0].fields) if records else 0
    if width < 2:
        return records
    records = [record for record in records if len(record.fields) > 1 or record.raw.strip(_BLANK)]
    if all(len(record.fields) > width and not any(record.fields[width:]) for record in records[1:]):
        records[1:] = [record._replace(fields=record.fields[:width]) for record in records[1:]]
    return records


def _by_column(file: Path, records: Iterable[_Record]) -> Iterator[_Row]:
    head: list[str] | None = None
    for record in records:
        if head is None:
            head = [str(field).strip() for field in record.fields]
            named = [name for name in head if name]
            if len(set(named)) < len(named):
                raise DataError(f"{file}: its first line names a column twice: {listed(head)}")
        elif len(record.fields) != len(head):
            quote = f" A quote opens here and closes in line {record.end}." if record.end > record.line else ""
            raise DataError(
                f"{file}, line {record.line}: {len(record.fields)} fields, where the first line names {len(head)} "
                f"columns ({listed(head)}).{quote} A text with commas, tabs or quotes must stand in double quotes"
            )
        else:
            yield f"line {record.line}", dict(zip(head, record.fields, strict=True))


def _dialect(content: str, usual: str) -> tuple[int, str]:
    """Return the line of the head, and what stands between fields, by the head.

    Another character than the format's usual one is taken only where the head is a single column without it.
    """
    first, position = 1, 0
    while (end := _end_of_line(content, position))[0] == position and position < len(content):  # empty lines
        first, position = first + 1, end[1]
    head = content[position : end[0]]
    hint = re.fullmatch(r'"?sep=([^"\w])"?', head)  # what Excel writes, and reads
    if hint is not None:
        return first + 1, hint.group(1)
    for delimiter in dict.fromkeys((usual, ",", ";", "\t", "|")):
        if len(_fields(head, delimiter)) > 1:
            return first, delimiter
    return first, usual


def _end_of_line(content: str, position: int) -> tuple[int, int]:
    """Return where a line ends, and where the next one begins."""
    end = _always(_LINE, content, position).end()
    return end, min(len(content), end + 1 + content.startswith("\r\n", end))


def _always(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    """Return what a pattern that matches nothing too finds at a place."""
    found = pattern.match(text, position)
    if found is None:
        raise DataError(f"the place {position} lies behind the end of the text")
    return found


def _field(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a field in quotes and of one without, up to the delimiter or the end of the line."""
    mark = re.escape(delimiter)
    return re.compile(rf'"((?:[^"]++|"")*+)"(?=[{mark}\r\n]|\Z)'), re.compile(rf"[^{mark}\r\n]*+")


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of one line; a quote that is not closed in its field is an ordinary character."""
    if '"' not in line:
        return line.split(delimiter)
    quoted, bare = _field(delimiter)
    fields: list[str] = []
    position = 0
    while True:
        found = quoted.match(line, position)
        if found is not None:
            fields.append(_unescaped(found))
        else:
            found = _always(bare, line, position)
            fields.append(found.group())
        position = found.end() + 1
        if found.end() >= len(line):
            return fields


def _records(content: str, delimiter: str, first: int) -> Iterator[_Record]:
    """Yield the records of RFC 4180 from a line on; quotes in the middle of a bare field are ordinary characters."""
    quoted, bare = _field(delimiter)
    position, line = 0, 1
    while position < len(content):
        end, after = _end_of_line(content, position)
        start, last, fields = position, line, []
        if content.find('"', position, end) < 0 or line < first:
            fields = content[position:end].split(delimiter)
        else:
            while True:
                opened = content.startswith('"', position)
                found = (quoted if opened else bare).match(content, position)
                if found is None:
                    raise _Unbalanced(line, _why(content, position, delimiter))
                fields.append(_unescaped(found) if opened else found.group())
                position = found.end()
                if not content.startswith(delimiter, position):
                    break
                position += 1
            end, after = _end_of_line(content, position)
            last += len(LINE_END.findall(content, start, end))
        raw = content[start:end]
        if raw and line >= first:
            yield _Record(line, last, fields, raw)
        position, line = after, last + 1


def _unescaped(found: re.Match[str]) -> Quoted:
    return Quoted(found.group(1).replace('""', '"'))


def _why(content: str, position: int, delimiter: str) -> str:
    closed = re.compile(r'"(?:[^"]++|"")*+"').match(content, position)
    if closed is None:
        return "unexpected end of data"
    line = len(LINE_END.findall(content[:position])) + 1 + len(LINE_END.findall(closed.group()))
    return f"{delimiter!r} expected after '\"' in line {line}; quotes within a quoted text are written twice"


def _merged(records: list[_Record], delimiter: str) -> tuple[_Record | None, bool]:
    """Return a record that may be several rows, which an open quote merged, and whether that is certain.

    Each of its lines has the head's number of fields. Texts have commas, so that alone tells little of a CSV file: it
    is certain where the other columns look as they do in rows of one line, plausible where they hold single words.

    Args:
        records: The head first.
        delimiter: What stands between fields.
    """
    width = len(records[0].fields) if records else 0
    long = [record for record in records[1:] if record.end > record.line and len(record.fields) == width]
    if not long or (width == 1 and delimiter != "\t"):
        return None, False
    rows = [record.fields for record in records[1:] if record.end == record.line and len(record.fields) == width]
    columns = [_Column({row[j].strip() for row in rows}, len(rows)) for j in range(width)] if width > 1 else []
    maybe: _Record | None = None
    for record in long:
        lines = [_fields(line, delimiter) for line in LINE_END.split(record.raw) if line.strip()]
        broken = [j for j, field in enumerate(record.fields) if LINE_END.search(field)]
        if len(broken) != 1 or any(len(fields) != width for fields in lines):
            continue
        rest = [j for j in range(width) if j != broken[0]]
        alike = [columns[j].alike(record.fields[j], [fields[j] for fields in lines]) for j in rest]
        if any(alike) and False not in alike:
            return record, True
        values = [fields[j] for fields in lines for j in rest]
        if delimiter == "\t" or all(value == value.strip() and len(value.split()) == 1 for value in values):
            maybe = maybe or record
    return maybe, False


class _Column:
    """What a column holds in rows of one line."""

    def __init__(self, known: set[str], n: int) -> None:
        self.known, self.ids = known, len(known) == n > 2
        self.numbers = all(map(_is_number, known)) and 2 * len(known) >= n  # ids, or numbers to predict; else classes

    def alike(self, own: str, found: list[str]) -> bool | None:
        """Whether values look like the others; None for names that are all different, which tell nothing."""
        values = {value.strip() for value in (own, *found)}
        longest = max(map(len, (own.strip(), *self.known))) + 1
        if self.numbers and all(_is_number(value) and len(value) <= longest for value in values):
            return True
        return None if self.ids else all(value in self.known or value == own.strip() for value in values)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+([.,][0-9]*)?([eE][+-]?[0-9]+)?", text) is not None
