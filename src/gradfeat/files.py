"""Writing files whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file under another name, and move it: a crash or a full disk leaves the old file, or none.

    Raises:
        OSError: It cannot be written; the error's `filename` is the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong first is what a reader wants to know
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            # a full disk is noticed by its file's number: the system's error has no path, or the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return path
