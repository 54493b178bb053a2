"""Whether outputs can be written: looked at before any work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradfeat.errors import ConfigurationError


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Add to the error of a full or broken disk that nothing finished is lost: a user may fear so."""
    try:
        yield
    except OSError as error:
        error.add_note(f"what was finished is kept in {folder}: the same command goes on from there")
        raise


def check_folder(path: Path | None) -> None:
    """Fail with the system's own message, before any work, if nothing can be put into a folder; it may be made yet."""
    if path is not None:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


def check_file(path: Path | None) -> None:
    """Fail, before any work, if a file cannot be put where it shall be; its folder may be made yet.

    Raises:
        ConfigurationError: There is a folder of that name.
    """
    if path is not None:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder: name a file in it")
        check_folder(path.parent)
