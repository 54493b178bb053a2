"""Whether files are the official ones, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

_KINDS = {32: "md5", 40: "sha1"}  # hexadecimal digits -> name


def differences_from_official(checksums: Mapping[Path, str]) -> str:
    """Say which files' bytes are not the official ones; they are read in pieces.

    It is no error: the same images can be packed in another way. But a copy that was damaged on its way may have the
    official size, and be read without a complaint.

    Args:
        checksums: MD5 or SHA-1 of the official files, in hexadecimal digits, by where they are.

    Returns:
        One sentence; empty where all checksums are the official ones.
    """
    others = [file.name for file, checksum in checksums.items() if not _matches(file, checksum)]
    if not others:
        return ""
    return (
        f"by checksum not the official {', '.join(others)}: unless packed anew, download "
        f"{'it' if len(others) == 1 else 'them'} again"
    )


def _matches(file: Path, checksum: str) -> bool:
    kind = _KINDS[len(checksum)]
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest() == checksum
