"""What is shown to people: whatever the encoding of their terminal, and without what would steer it."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from gradfeat.files.writing import decoded

ERRORS = "gradfeat.spelled"
"""Name of an error handler for streams: a character that their encoding lacks is spelled out."""

_SPELLED = {
    "θ": "theta",
    "ω": "omega",
    "λ": "lambda",
    "κ": "kappa",
    "Φ": "Phi",
    "₀": "0",
    "₁": "1",
    "₂": "2",
    "ẏ": "y'",
    "ż": "z'",
    "×": "x",
    "±": "+-",
    "·": "*",
    "²": "^2",
    "⁻": "^-",
    "¹": "1",
    "⁴": "4",
    "ᵀ": "^T",
    "‖": "||",
    "√": "sqrt ",
    "½": "1/2",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "°": " degrees",
    "\u0304": "",  # the bar of ω̄
}

_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # terminals' controls, also those of one byte
    "\u2028\u2029"  # line ends
    "\u202a-\u202e\u2066-\u206f"  # turn the direction of what follows
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"  # bytes of a file's name that are no text
)


def printable(text: str, keep: str = "") -> str:
    r"""Return a text from outside (a class, a path, a header) as it may be shown: controls as Python writes them.

    Args:
        text: Anything.
        keep: Controls that stay, e.g. line ends of our own.

    Example:
        >>> printable("cat\x1b[31m\n\u202egod")
        'cat\\x1b[31m\\n\\u202egod'
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), decoded(text))


def json_safe(text: str) -> str:
    r"""Return JSON with its controls as JSON's own escapes: the same value, and safe to look at.

    Example:
        >>> json_safe('{"a": "\u202e\x9b"}')
        '{"a": "\\u202e\\u009b"}'
    """
    return _STEERING.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def fits(text: str, stream: TextIO | None) -> bool:
    """Whether a stream's encoding has all characters of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def any_encoding() -> Iterator[None]:
    """Let everything be printed while this is open: what an encoding lacks is spelled out (θ₂ as theta2).

    Where there is no standard error (a service may close it), what is said there goes nowhere.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    changed: list[tuple[Any, str]] = []
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):  # a stream that somebody has put there, or none
            before: Any = stream.errors
            stream.reconfigure(errors=ERRORS)  # type: ignore[union-attr]
            changed.append((stream, before))
    try:
        yield
    finally:
        for stream, before in changed:
            with suppress(ValueError, OSError):
                stream.reconfigure(errors=before)


def mute(stream: TextIO) -> None:
    """Let a stream that cannot be written, e.g. because its reader has gone, lead to nowhere from now on."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_SPELLED[c] if c in _SPELLED else _escaped(c) for c in characters), error.end


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


codecs.register_error(ERRORS, _spell)
