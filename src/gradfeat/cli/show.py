"""Tables and notes on the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table; the first column on the left, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        numeric = i > 0 and all(_is_number(row[i]) for row in rows)
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def note(silent: bool, text: str) -> None:
    """Print a line, unless the output is for programs."""
    if not silent:
        from rich.console import Console

        Console().print(text, highlight=False, markup=False)


def _is_number(text: str) -> bool:
    return bool(text) and text.lstrip("-")[:1].isdigit()
