"""Whether outputs can be written: looked at before any work; and what becomes of them if they cannot be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gradfeat.errors import ConfigurationError, GradfeatError
from gradfeat.files import writing as files


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
        files.check_folder(path)


def check_file(path: Path | None, *inputs: Path | None) -> None:
    """Fail, before any work, if a file cannot be put where it shall be; its folder may be made yet.

    Args:
        path: The file; None for none.
        inputs: What the work reads, which must not be lost.

    Raises:
        ConfigurationError: There is a folder of that name, or it is one of the inputs.
    """
    if path is not None:
        if Path(os.path.expanduser(path)).is_dir():
            raise ConfigurationError(f"{path} is a folder: name a file in it")
        if any(one is not None and _same_file(path, one) for one in inputs):
            raise ConfigurationError(f"{path} is read here, and would be lost: name another file")
        files.check_file(path)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other) and not files.is_stream(one)
    except (OSError, ValueError):  # not there, or not a file's name
        return False


def written(path: Path, write: Callable[[Path], Path]) -> Path:
    """Write the result of some work; if the disk has filled up since it began, put it where there is room.

    Args:
        path: Where it belongs.
        write: Writes it to a path, and returns that.

    Raises:
        OSError: It could not be written to `path`; a note says where it is instead. Or GradfeatError from one.
    """
    try:
        return write(path)
    except (OSError, GradfeatError) as error:
        if isinstance(error, BrokenPipeError) or (not isinstance(error, OSError) and error.__cause__ is None):
            raise
        with suppress(OSError, GradfeatError):
            folder = Path(tempfile.mkdtemp(prefix="gradfeat-"))
            try:
                error.add_note(f"it is kept in {write(folder / path.name)} instead: move it from there")
            finally:
                with suppress(OSError):
                    folder.rmdir()  # if nothing could be put into it
        raise
