"""Files of text as other programs write them: their encoding, their lines, and how messages show what they hold."""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradfeat.errors import DataError, GradfeatWarning

LINE_END = re.compile(r"\r\n|\r|\n")
_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = (
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"PK\x03\x04", "a zip archive, or a workbook of a spreadsheet (save it as CSV)"),
    (b"\xd0\xcf\x11\xe0", "a workbook of a spreadsheet (save it as CSV)"),
    (b"PAR1", "a Parquet file (save it as CSV or JSON lines)"),
    (b"%PDF-", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"version https://git-lfs", "a pointer of git-lfs (git lfs pull fetches what it stands for)"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MANY_ZEROS = 0.1  # of all characters: a file of another kind, or in UTF-16
_PLACES = 3  # rows that a message names; the rest are counted
_SHOWN = 60  # characters of a value that a message shows
_COLUMNS = 20  # columns that a message names


def text_of(file: Path, encoding: str | None = None) -> str:
    """Return the content of a file without its byte-order mark, or say which line is not in the encoding.

    Raises:
        DataError: There is no such encoding, the file is not in it or no text at all, or it is full of zero bytes.
    """
    data = file.read_bytes()
    other = next((kind for mark, kind in _OTHERS if data.startswith(mark)), None)
    if other is not None:
        raise DataError(f"{file} is {other}, whatever its name says: a text file is expected")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        content = data.decode(encoding or marked)
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        raise DataError(
            f"{file}, line {line}: not {encoding or marked.upper()} ({error.reason}). Say the file's encoding= (on the "
            "command line: --encoding), e.g. latin-1 or cp1252, or save it as UTF-8"
        ) from error
    except (LookupError, ValueError) as error:
        raise DataError(f"there is no encoding {encoding!r}; usual ones are utf-8, latin-1, cp1252, utf-16") from error
    if content.count("\0") > _MANY_ZEROS * len(content):
        raise DataError(
            f"{file} is full of zero bytes: a damaged file, one that is no text, or UTF-16 without its mark "
            "(encoding='utf-16-le', on the command line: --encoding utf-16-le)"
        )
    return content.removeprefix("\ufeff")


def split_lines(content: str) -> list[str]:
    r"""Return the lines of a text, which end at \n, \r\n or \r and at nothing else.

    Example:
        >>> split_lines("a\u2028b\nc\r\n\rd\n")
        ['a\u2028b', 'c', '', 'd']
    """
    lines = LINE_END.split(content)
    return lines if lines[-1] else lines[:-1]


def readable(texts: Sequence[str], places: Sequence[str], file: Path | None = None) -> list[str]:
    """Return texts that can be tokenized and written, with a warning of what was changed or is odd.

    Args:
        texts: n strings.
        places: Where each stands.
        file: They are from.

    Returns:
        The texts, lone halves of a surrogate pair replaced by U+FFFD.
    """
    where = "" if file is None else f"{file}: "
    broken = [i for i, text in enumerate(texts) if has_lone_surrogate(text)]
    if broken:
        warnings.warn(
            f"{where}{len(broken)} texts hold half a character (a lone surrogate), which is replaced by U+FFFD: "
            + some(places[i] for i in broken),
            GradfeatWarning,
            stacklevel=3,
        )
    zeros = [i for i, text in enumerate(texts) if "\0" in text] if file is not None else []
    if zeros:
        warnings.warn(
            f"{where}{len(zeros)} texts hold a zero byte; is the file damaged? {some(places[i] for i in zeros)}",
            GradfeatWarning,
            stacklevel=3,
        )
    changed = list(map(str, texts))  # no `Quoted` goes on
    for i in broken:
        changed[i] = _LONE_SURROGATE.sub("\ufffd", changed[i])
    return changed


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no encoding can write."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def some(places: Iterable[str]) -> str:
    """Return the first places, and that there are more.

    Example:
        >>> some(["line 2", "line 3", "line 5", "line 9"])
        'line 2, line 3, line 5 ...'
    """
    listed = list(places)
    return ", ".join(listed[:_PLACES]) + (" ..." if len(listed) > _PLACES else "")


def short(value: object) -> str:
    """Return a value for a message, at most some sixty characters of it.

    Example:
        >>> short("a" * 70)
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ...'"
    """
    if isinstance(value, str) and len(value) > _SHOWN:
        return repr(value[:_SHOWN] + " ...")
    try:
        shown = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return shown if len(shown) <= _SHOWN + 2 else shown[:_SHOWN] + " ..."


def listed(columns: Iterable[str]) -> str:
    """Return the names of columns for a message: a file that is no table may have a million, or one of a megabyte."""
    names = [name if len(name) <= _SHOWN else name[:_SHOWN] + " ..." for name in columns]
    names = [name if name.isprintable() else repr(name) for name in names]
    return ", ".join(names[:_COLUMNS]) + (f" and {len(names) - _COLUMNS:,} more" if len(names) > _COLUMNS else "")
