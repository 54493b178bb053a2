"""Tables and notes on the terminal."""

from __future__ import annotations

import errno
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gradfeat.files.terminal import fits, json_safe, mute, printable
from gradfeat.files.writing import decoded

_LONG = 30  # a cell longer than this may be broken between words


def table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Print a table; the first column on the left, numbers on the right. Numbers and names are never broken."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title:  # a table's own title would be broken to the table's width
        note(False, printable(title))
    header, rows = list(map(printable, header)), [list(map(printable, row)) for row in rows]
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        whole = [cell for cell in cells if len(cell) <= _LONG]
        width = max(map(len, [*name.split(), *whole]), default=1)
        numeric = i > 0 and all(_is_number(cell) for cell in cells)
        shown.add_column(Text(name), justify="right" if numeric else "left", min_width=width, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    with _ends_with_its_reason():
        _print(shown)


def note(silent: bool, text: str) -> None:
    """Print a line, unless the output is for programs."""
    if not silent:
        for line in printable(text, keep="\n").split("\n"):  # rich's own wrapping leaves a space past the last column
            for part in textwrap.wrap(line, _console().width, break_on_hyphens=False) or [""]:
                with suppress(OSError):  # a full disk under a log: what is being done is worth more than a note of it
                    _print(part, highlight=False, markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    text = decoded(json.dumps(value, indent=2, ensure_ascii=False))
    print_data((json_safe(text) if fits(text, sys.stdout) else json.dumps(json.loads(text), indent=2)) + "\n")


def print_data(text: str) -> None:
    """Print what is for programs; on a terminal, where people look at it, without controls.

    Raises:
        OSError: It cannot be written, e.g. to a full disk, or its reader has gone.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", "standard output")
    text = decoded(text)
    if sys.stdout.isatty():
        text = printable(text, keep="\n")
    if not fits(text, sys.stdout):
        encoding = sys.stdout.encoding or "utf-8"
        if not encoding.lower().startswith("utf"):
            sys.stderr.write(
                f"warning: characters that {encoding}, the output's encoding, does not have are written as \\u and a "
                "number; -o FILE writes all of them, in UTF-8\n"
            )
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    with _ends_with_its_reason():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _ends_with_its_reason() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mute(sys.stdout)  # else Python says so once more at its end
        raise OSError(error.errno, error.strerror, "standard output") from error


def _print(shown: Any, **how: Any) -> None:
    """Print for people: where they have gone (`| head`), the work goes on all the same, and its results are kept."""
    try:
        _console().print(shown, **how)
    except BrokenPipeError:
        mute(sys.stdout)


def _console() -> Any:
    from rich.console import Console

    class Unbreakable(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process
            mute(sys.stdout)

    return Unbreakable()


def _is_number(text: str) -> bool:
    return bool(text) and text.lstrip("-")[:1].isdigit()
