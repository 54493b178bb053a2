"""Tables and notes on the terminal."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

_LONG = 30  # a cell longer than this may be broken between words


def table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table; the first column on the left, numbers on the right. Numbers and names are never broken."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:  # a table's own title would be broken to the table's width
        note(False, title)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        whole = [cell for cell in cells if len(cell) <= _LONG]
        width = max(map(len, [*name.split(), *whole]), default=1)
        numeric = i > 0 and all(_is_number(cell) for cell in cells)
        shown.add_column(Text(name), justify="right" if numeric else "left", min_width=width, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console().print(shown)


def note(silent: bool, text: str) -> None:
    """Print a line, unless the output is for programs."""
    if not silent:
        from rich.console import Console

        console = Console()
        for line in text.splitlines() or [""]:  # rich's own wrapping leaves a space past the last column
            for part in textwrap.wrap(line, console.width, break_on_hyphens=False) or [""]:
                console.print(part, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _is_number(text: str) -> bool:
    return bool(text) and text.lstrip("-")[:1].isdigit()
