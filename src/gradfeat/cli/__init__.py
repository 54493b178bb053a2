"""The command line. Thin: every command reads arguments, calls the library, and shows what came back.

Nothing here imports torch before a command runs, so that `gradfeat --help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `gradfeat`; an error that gradfeat raises on purpose is shown as one message, without a traceback.

    Args:
        arguments: Those of the command line; None takes the process's own.
    """
    from gradfeat.files.terminal import any_encoding

    with any_encoding():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> None:
    from gradfeat.cli.app import app
    from gradfeat.errors import GradfeatError

    plain = warnings.showwarning
    warnings.showwarning = _show_warning
    try:
        app(args=None if arguments is None else list(arguments), prog_name="gradfeat")
    except (GradfeatError, OSError) as error:
        _show("error", _said(error))
        sys.exit(2)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what the library below makes of Ctrl-C, without a word
            sys.stderr.write("interrupted\n")
        raise
    finally:
        warnings.showwarning = plain


def _said(error: Exception) -> str:
    """Return an error in one line; one of the system without its number, which says nothing to a user of commands."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return "; ".join([said, *getattr(error, "__notes__", [])])


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show gradfeat's own warnings in one line; those of libraries are for programmers, not for users of commands."""
    from gradfeat.errors import GradfeatWarning

    if issubclass(category, GradfeatWarning):
        _show("warning", str(message))


def _show(kind: str, text: str) -> None:
    """Write a message; further lines of it are set back, so that none passes for a message of its own."""
    from gradfeat.files.terminal import printable

    with suppress(OSError, AttributeError):  # nobody listens: the work, and its exit code, are not the worse for it
        sys.stderr.write(f"{kind}: " + printable(text, keep="\n\t").replace("\n", "\n  ") + "\n")
