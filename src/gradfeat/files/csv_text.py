"""Tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    r"""Return a table as CSV with plain line ends; a cell with a line end is quoted, a lone carriage return too.

    Example:
        >>> csv_text([["name", "label"], ["a,b", 'c"d']])
        'name,label\n"a,b","c""d"\n'
    """
    lines = []
    for row in rows:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\r\n").writerow(row)  # Python quotes what holds one of these
        lines.append(stream.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)
