"""The one door through which files are written: whole or not at all.

A file is written beside its target under another name, and moved there: a crash, a kill or a full disk leaves the old
file, or none. Over a link it is the link's target that is replaced. What is no regular file is never replaced: a pipe,
a terminal or a device such as /dev/null takes the bytes as they come, all else is refused. Every error has the file's
name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed: locks are not needed
    fcntl = None  # type: ignore[assignment]

_LINKS = 40  # as many as Linux follows
_ATTEMPTS = 5
_LONGEST = 255  # of a file's name, where the system does not say
_BESIDE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV}
"""Errors of a folder that takes no new file, or of a file that is mounted by itself, as into a container."""

_DESCRIPTORS = re.compile(r"/dev/fd|/proc/(?P<process>\d+)(/task/\d+)?/fd")


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all; its folders are made.

    An existing file's permissions and owner are kept. A file in a folder that takes no other, or that is mounted by
    itself, is overwritten in place, after the room for it is taken: only then can a kill leave a mixture. What a killed
    process left beside the target is removed.

    Args:
        path: The file; "~" is the user's folder. A pipe or a device is written to, and stays what it is.
        content: All of it.

    Returns:
        The path, with "~" read.

    Raises:
        OSError: It cannot be written; the error's `filename` is the path.
    """
    path = Path(os.path.expanduser(path))
    with _named(path):
        target = _target(path)
        if target.streams:
            _stream(target, content)
        else:
            _replace(target, content)
    return path


def write_text(path: str | Path, text: str) -> Path:
    r"""Write a text as UTF-8, whatever the locale, with the line ends that it has; as `write_whole`.

    A file's name need not be text: bytes of it that are none are written as Python shows them, ``\udce9``. In JSON that
    is the character's own escape, so nothing is lost.
    """
    return write_whole(path, decoded(text).encode("utf-8", "backslashreplace"))


def decoded(text: str) -> str:
    r"""Return a text in which names of files that the locale could not read are read as UTF-8, where they are that.

    Example:
        >>> decoded("caf\udcc3\udca9"), decoded("caf\udce9")
        ('café', 'caf\udce9')
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which is of no name
        return text


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it, if they are not there; over a link, the folder that it names.

    Raises:
        OSError: It cannot be made; the error's `filename` is the path.
    """
    path = Path(os.path.expanduser(path))
    with _named(path):
        _make(os.path.realpath(path))
    return path


def is_stream(path: str | Path) -> bool:
    """Whether what is written there goes on to somebody else: a pipe, a terminal, /dev/null, /dev/stdout."""
    try:
        return _target(Path(os.path.expanduser(path))).streams
    except (OSError, ValueError):
        return False


def check_file(path: str | Path) -> None:
    """Fail as `write_whole` would, before any work. Nothing is made: missing folders will be.

    Raises:
        OSError: It could not be written; the error's `filename` is the path.
    """
    path = Path(os.path.expanduser(path))
    with _named(path):
        target = _target(path)
        if target.number is not None:
            os.fstat(target.number)
        elif target.streams:
            _refuse_unless(os.access(target.place, os.W_OK))
        else:
            try:
                _check_room(os.path.dirname(target.place))
            except OSError as error:
                if target.there is None or error.errno not in _BESIDE:
                    raise
                _refuse_unless(os.access(target.place, os.W_OK))


def check_folder(path: str | Path) -> None:
    """Fail, before any work, if no file can be put into a folder; it, and those above it, may be made yet.

    Raises:
        OSError: With the path as the error's `filename`.
    """
    path = Path(os.path.expanduser(path))
    with _named(path):
        _check_room(os.path.realpath(path))


class _Target(NamedTuple):
    """Where a path leads: the place behind its links, what is there, and its number if it is a file of this process."""

    place: str
    there: os.stat_result | None
    number: int | None
    streams: bool


def _target(path: Path) -> _Target:
    place, number, opened = _follow(os.fspath(path))
    if opened:
        return _Target(place, None, number, True)
    try:
        there = os.stat(place)
    except FileNotFoundError:
        return _Target(place, None, None, False)
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    streams = stat.S_ISFIFO(there.st_mode) or stat.S_ISCHR(there.st_mode)
    if not streams and not stat.S_ISREG(there.st_mode):
        kind = "block device" if stat.S_ISBLK(there.st_mode) else "socket"
        raise FileExistsError(errno.EEXIST, f"it is a {kind}, which is never written over")
    return _Target(place, there, None, streams)


def _follow(place: str) -> tuple[str, int | None, bool]:
    """Return where links lead; the number, where that is an open file of this process; whether it is an open file.

    An open file (/dev/stdout, /dev/fd/3) may be a regular one, but whoever opened it means it to be written on, from
    where it is: to replace it would take away what others write there.
    """
    for _ in range(_LINKS):
        folder, name = os.path.split(place)
        folder = os.path.realpath(folder or os.curdir)
        opened = _DESCRIPTORS.fullmatch(folder)
        if opened is not None and name.isdecimal():
            own = opened["process"] in (None, str(os.getpid()))
            return os.path.join(folder, name), int(name) if own else None, True
        place = os.path.join(folder, name)
        if not os.path.islink(place):
            return place, None, False
        place = os.path.join(folder, os.readlink(place))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _stream(target: _Target, content: bytes) -> None:
    for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
        with suppress(AttributeError, ValueError):
            stream.flush()
    with open(target.place if target.number is None else os.dup(target.number), "wb") as file:
        file.write(content)


def _replace(target: _Target, content: bytes) -> None:
    folder, name = os.path.split(target.place)
    for attempt in range(_ATTEMPTS):
        _make(folder)
        start = _temporary(folder, name)
        _sweep(folder, start)
        try:
            _put(os.path.join(folder, f"{start}.{secrets.token_hex(4)}.tmp"), target, content)
            return
        except FileNotFoundError:  # where locks do not work, another process may have taken it for a killed one's
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError as error:
            if target.there is None or error.errno not in _BESIDE:
                raise
            try:
                _overwrite(target, content)
            except OSError as second:
                raise (error if second.errno in _BESIDE else second) from None
            return


def _make(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:  # the system's word for it, but not what is wrong
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _put(temporary: str, target: _Target, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(temporary, flags, 0o666), "wb") as file:
        try:
            _lock(file.fileno())
            file.write(content)
            _settle(file)
            if target.there is not None:
                _take_over(temporary, target.there)
            if fcntl is None:
                file.close()
            os.replace(temporary, target.place)  # under the lock: else it might be taken for a leftover now
        except BaseException:
            with suppress(OSError):  # what went wrong first is what a reader wants to know
                if fcntl is None:
                    file.close()
                os.unlink(temporary)
            raise


def _overwrite(target: _Target, content: bytes) -> None:
    """Write over a file in place, where nothing can be put beside it; the room for it is taken before it is touched."""
    with open(os.open(target.place, os.O_WRONLY | getattr(os, "O_BINARY", 0)), "wb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if content and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, len(content))
        except OSError as error:
            os.ftruncate(file.fileno(), size)
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise
        file.write(content)
        file.truncate(len(content))
        _settle(file)


def _settle(file: BinaryIO) -> None:
    """Wait until a file is on its disk, where the file system can say so."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def _take_over(temporary: str, old: os.stat_result) -> None:
    """Give a new file the owner and the permissions of the one that it replaces, as far as the system lets us."""
    new = os.stat(temporary)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(OSError, AttributeError):
            os.chown(temporary, old.st_uid, old.st_gid)
    with suppress(OSError):
        os.chmod(temporary, stat.S_IMODE(old.st_mode))


def _temporary(folder: str, name: str) -> str:
    """Return how the names of a target's temporary files begin: legal ones, however long its own is."""
    longest = _LONGEST
    with suppress(OSError, ValueError, AttributeError):
        longest = os.pathconf(folder, "PC_NAME_MAX")
    room = longest - len("..01234567.tmp")
    if len(os.fsencode(name)) <= room:
        return f".{name}"
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    while len(os.fsencode(name)) > room - len(digest) - 1:
        name = name[:-1]
    return f".{name}-{digest}"


def _sweep(folder: str, start: str) -> None:
    """Remove what killed processes left of a target: temporary files that nobody holds."""
    pattern = re.compile(re.escape(start) + r"\.[0-9a-f]+\.(tmp|part)", re.DOTALL)
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be closed to readers
        left = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
        for path in left:
            with suppress(OSError):
                _remove_unheld(path)


def _remove_unheld(path: str) -> None:
    if fcntl is None:
        os.unlink(path)
        return
    number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(number)


def _lock(number: int) -> None:
    """Hold a file as long as it is open; the system lets go of it when the process ends, however it ends."""
    if fcntl is not None:
        with suppress(OSError):  # not all file systems have locks
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_room(folder: str) -> None:
    """Fail if no file can be made in a folder, or in the nearest one above it that is there."""
    while True:
        try:
            os.stat(folder)
            break
        except FileNotFoundError:
            if folder == os.path.dirname(folder):  # a drive that is not there
                raise
            folder = os.path.dirname(folder)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _refuse_unless(allowed: bool) -> None:
    if not allowed:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def _named(path: Path) -> Iterator[Any]:
    """Give errors the name of the file that was asked for: the system's have none, or the temporary one's."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"not a name for a file: {error}", str(path)) from error
