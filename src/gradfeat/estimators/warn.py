"""Warnings at the line of the caller, however deep in a fit they are said."""

from __future__ import annotations

import sys
import warnings

from gradfeat.errors import GradfeatWarning

_OURS = ("gradfeat.", "contextlib")


def warn_user(message: str) -> None:
    """Warn at the innermost line that is not of this library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, GradfeatWarning, stacklevel=level)
