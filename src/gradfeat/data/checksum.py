"""Whether a file is the official one, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

_KINDS = {32: "MD5", 40: "SHA-1"}  # hexadecimal digits -> name


def difference_from_official(file: Path, official: str) -> str:
    """Say that a file's bytes are not the official ones; it is read in pieces.

    It is no error: the same images can be packed in another way. But a copy that was damaged on its way may have the
    official size, and be read without a complaint.

    Args:
        file: Which.
        official: Its MD5 or SHA-1, in hexadecimal digits.

    Returns:
        One sentence; empty where the checksum is the official one.
    """
    kind = _KINDS[len(official)]
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.new(kind.replace("-", ""), usedforsecurity=False))
    if found.hexdigest() == official:
        return ""
    return (
        f"{file.name} differs from the official file: {kind} {found.hexdigest()}, officially {official}; unless it was "
        "packed anew, download it again"
    )
