"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_UNFINISHED = (
    ".part",
    ".partial",
    ".crdownload",
    ".download",
    ".tmp",
    ".temp",
    ".bak",
    ".old",
    ".orig",
    ".swp",
    ".thm",
)
_KINDS = (  # first bytes, where they are, and what a file is that begins so
    (b"%!PS", 0, "a PostScript file (EPS)"),
    (b"\xc5\xd0\xd3\xc6", 0, "a PostScript file (EPS)"),
    (b"%PDF", 0, "a PDF document"),
    (b"8BPS", 0, "a Photoshop file"),
    (b"version https://git-lfs", 0, "a pointer of Git LFS: `git lfs pull` fetches the image"),
    (b"PK\x03\x04", 0, "a zip archive"),
    (b"\x1f\x8b", 0, "a gzip archive"),
    (b"\x1aE\xdf\xa3", 0, "a video"),
)
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"heif")
_AVIF = (b"avif", b"avis")
_ENOUGH = 256


def starts_like_an_image(path: Path) -> bool:
    """Whether a file begins as photographs on the web do, and its name is not one of an unfinished or spare copy."""
    if path.name.endswith("~") or path.suffix.lower() in _UNFINISHED:
        return False
    try:
        head = _head(path)
    except OSError:
        return False
    return (
        head.startswith((b"\xff\xd8\xff", _PNG, b"GIF87a", b"GIF89a", _JPEG2000))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _AVIF)
    )


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return in words what a file is that is no image; "" where its first bytes do not tell."""
    try:
        head = _head(path)
    except OSError:
        return ""
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "a file of zeros"
    for start, place, kind in _KINDS:
        if head[place:].startswith(start):
            return kind
    if head[4:8] == b"ftyp":
        if head[8:12] in _HEIF:
            return "a HEIC image: save it as JPEG or PNG, or let the package pillow-heif register its reader"
        return (
            "an AVIF image, damaged or of a kind that this Pillow does not read" if head[8:12] in _AVIF else "a video"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text or text.startswith(b"<?xml"):
        return "an SVG or XML file"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML): the download brought no image"
    return ""


def png_without_texts(path: str | os.PathLike[str]) -> io.BytesIO:
    """Return a PNG file less its texts and its colour profile, neither of which changes the pixels.

    Raises:
        ValueError: It is no PNG.
    """
    kept = io.BytesIO()
    with open(path, "rb") as file:
        if file.read(8) != _PNG:
            raise ValueError("its texts are larger than Pillow's limit")
        kept.write(_PNG)
        while len(start := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            if name in _TEXTS:
                file.seek(length + 4, os.SEEK_CUR)
            else:
                kept.write(start + file.read(length + 4))
    kept.seek(0)
    return kept


def _head(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read(_ENOUGH)
