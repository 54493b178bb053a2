"""Leaving out what torch says about its own insides, in one thread: what other threads say meanwhile is not lost.

Python keeps its warnings' filters, its loggers and its standard error for the whole process. So nothing is turned off
here: what is put in asks which thread speaks, and is taken out again.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from gradfeat.contexts import alone


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show none of the warnings of this thread, none of torch's log records in it, and nothing of its standard error.

    Critical records are shown. No other thread of the library is quiet, captures or computes meanwhile.

    Example:
        >>> with quiet():
        ...     warnings.warn("of a tracer", stacklevel=1)
    """
    here = _Here()
    try:
        with alone(), _warnings_ignored(here), _records_dropped(here), _standard_error_dropped(here):
            yield
    finally:
        here.active = False


class _Here:
    """Whether the present thread is the one that is quiet; no thread is from the end on."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self.active = True

    def __bool__(self) -> bool:
        return self.active and threading.get_ident() == self._thread


class _Pattern:
    """Stands for the compiled expression in a filter of warnings: matches all texts, in one thread."""

    def __init__(self, here: _Here) -> None:
        self._here = here

    def match(self, text: str) -> bool:
        return bool(self._here)


@contextlib.contextmanager
def _warnings_ignored(here: _Here) -> Iterator[None]:
    entry: Any = ("ignore", _Pattern(here), Warning, None, 0)
    warnings.filters.insert(0, entry)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        # another thread may have put a list of its own in place meanwhile, or back the one that it found
        with contextlib.suppress(ValueError):
            warnings.filters.remove(entry)  # type: ignore[attr-defined]


class _OfTorch(logging.Filter):
    """Lets all records through but torch's, up to errors, in one thread."""

    def __init__(self, here: _Here) -> None:
        super().__init__()
        self._here = here

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.ERROR or not _is_torchs(record.name) or not self._here


def _is_torchs(name: str) -> bool:
    return name.partition(".")[0] == "torch"


@contextlib.contextmanager
def _records_dropped(here: _Here) -> Iterator[None]:
    dropping = _OfTorch(here)
    known = list(logging.root.manager.loggerDict.items())
    loggers = [logger for name, logger in known if _is_torchs(name) and isinstance(logger, logging.Logger)]
    handlers = {handler for logger in [logging.root, *loggers] for handler in logger.handlers}
    try:
        for handler in handlers:
            handler.addFilter(dropping)
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(dropping)


class _StandardError:
    """Standard error, without what one thread writes to it."""

    def __init__(self, whole: TextIO, here: _Here) -> None:
        self._whole = whole
        self._here = here

    def write(self, text: str) -> int:
        return len(text) if self._here else self._whole.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


@contextlib.contextmanager
def _standard_error_dropped(here: _Here) -> Iterator[None]:
    before = sys.stderr
    replaced: Any = before if before is None else _StandardError(before, here)
    sys.stderr = replaced
    try:
        yield
    finally:
        if sys.stderr is replaced:
            sys.stderr = before
