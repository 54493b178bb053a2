"""The one door: whole or not at all, over links, never over what is no regular file."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradfeat.files import writing as files
from gradfeat.files.writing import check_file, check_folder, is_stream, make_folder, write_text, write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and devices as Unix has them")
root_only = pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="makes devices")

OLD, NEW = b"old" * 1000, b"new" * 2000

CHILD = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
path = sys.argv[2]
"""


def child(code: str, path: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A process of its own that has the module, without all the rest, and a path."""
    return subprocess.Popen([sys.executable, "-c", CHILD + code, files.__file__, str(path)], **options)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# ---- links ----------------------------------------------------------------------------------------


def to_file(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "target").write_bytes(OLD)
    (folder / "link").symlink_to("data/target")
    return folder / "data" / "target"


def to_link(folder: Path) -> Path:
    target = to_file(folder)
    (folder / "link").rename(folder / "other")
    (folder / "link").symlink_to("other")
    return target


def to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to("later/target")
    return folder / "later" / "target"


def beside_a_linked_folder(folder: Path) -> Path:
    target = to_file(folder)
    (folder / "link").unlink()
    (folder / "away").symlink_to("data")
    (folder / "link").symlink_to("away/../data/target")
    return target


@pytest.mark.parametrize("make", [to_file, to_link, to_nothing, beside_a_linked_folder])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    target = make(tmp_path)
    leads = os.readlink(tmp_path / "link")
    check_file(tmp_path / "link")
    assert write_whole(tmp_path / "link", NEW) == tmp_path / "link"
    assert os.readlink(tmp_path / "link") == leads
    assert (target.read_bytes(), target.is_symlink()) == (NEW, False)
    assert names(target.parent) == ["target"]


def test_a_link_to_a_folder_that_is_not_there_is_a_folder_that_is_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later")
    check_folder(tmp_path / "link")
    make_folder(tmp_path / "link")
    write_whole(tmp_path / "link" / "a" / "b", NEW)
    assert (tmp_path / "later" / "a" / "b").read_bytes() == NEW


# ---- what is no regular file ----------------------------------------------------------------------


def test_a_pipe_takes_what_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    check_file(path)
    write_whole(path, NEW)
    reader.join()
    assert got == [NEW]
    assert is_stream(path)
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_a_device_stays_a_device_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.devnull)
    before = os.lstat(os.devnull)
    for path in (os.devnull, tmp_path / "link"):
        check_file(path)
        write_whole(path, NEW)
        assert is_stream(path)
    after = os.lstat(os.devnull)
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert os.readlink(tmp_path / "link") == os.devnull


@root_only
def test_a_device_of_ones_own_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        check_file(path)
        write_whole(path, NEW)
    except PermissionError:
        pytest.skip("no devices here")
    assert stat.S_ISCHR(path.lstat().st_mode)
    os.mknod(tmp_path / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))
    for refuse in (check_file, lambda path: write_whole(path, NEW)):
        with pytest.raises(FileExistsError, match="block device"):
            refuse(tmp_path / "disk")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_device_is_said_with_its_name() -> None:
    with pytest.raises(OSError, match="No space left") as error:
        write_whole("/dev/full", NEW)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="output as a file")
def test_standard_output_is_written_on_where_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as stdout:
        code = "print('first'); files.check_file(path); files.write_text(path, 'données\\n'); print('after')"
        assert child(code, Path("/dev/stdout"), stdout=stdout).wait() == 0
    assert log.read_text(encoding="utf-8") == "before\nfirst\ndonnées\nafter\n"
    assert names(tmp_path) == ["log"]


# ---- errors have the file's name, and come before the work ------------------------------------------


def a_folder(folder: Path) -> Path:
    return folder


def in_a_file(folder: Path) -> Path:
    (folder / "plain").write_bytes(OLD)
    return folder / "plain" / "deeper" / "x"


def a_loop(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


def too_long(folder: Path) -> Path:
    return folder / ("n" * 300)


def a_long_folder(folder: Path) -> Path:
    return folder / ("n" * 300) / "x"


def a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(folder):  # a socket's name must be short
        made.bind("s")
    return folder / "s"


def a_null(folder: Path) -> Path:
    return folder / "a\0b"


def half_a_pair(folder: Path) -> Path:
    return folder / "a\ud800"


@pytest.mark.parametrize("make", [a_folder, in_a_file, a_loop, too_long, a_long_folder, a_socket, a_null, half_a_pair])
def test_what_cannot_be_written_is_refused_before_and_after(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    before = names(tmp_path)
    for refuse in (check_file, lambda path: write_whole(path, NEW)):
        with pytest.raises(OSError, match=r".") as error:
            refuse(path)
        assert error.value.filename == str(path)
    assert names(tmp_path) == before


def test_a_check_makes_nothing(tmp_path: Path) -> None:
    check_file(tmp_path / "some" / "folder" / "x")
    check_folder(tmp_path / "some" / "folder")
    assert names(tmp_path) == []


def test_a_limit_of_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(OLD)
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_whole(path, b"n" * 5000)
except OSError as error:
    assert error.filename == path, error
    sys.exit(7)
"""
    assert child(code, path).wait() == 7
    assert (path.read_bytes(), names(tmp_path)) == (OLD, ["x"])


def test_a_file_system_that_cannot_wait_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("gradfeat.files.writing.os.fsync", unknown)
    assert write_whole(tmp_path / "x", NEW).read_bytes() == NEW


# ---- names and permissions ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")))
def test_every_name_that_the_system_takes_can_be_written(name: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.fsdecode(name)
        write_whole(path, OLD)
        write_whole(path, NEW)
        assert os.listdir(os.fsencode(folder)) == [name]
        assert path.read_bytes() == NEW


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "😀" * 63 + "abc"])
def test_the_longest_names(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name[:60]}.123.tmp").touch()
    check_file(tmp_path / name)
    assert write_whole(tmp_path / name, NEW).read_bytes() == NEW


def test_permissions_are_kept_and_new_files_have_the_users(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(OLD)
    for mode in (0o640, 0o755, 0o444):
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, 1234, 1235)
        owner = path.stat().st_uid, path.stat().st_gid
        write_whole(path, NEW)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert (path.stat().st_uid, path.stat().st_gid) == owner
    before = os.umask(0o027)
    try:
        assert stat.S_IMODE(write_whole(tmp_path / "y", NEW).stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_a_file_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"

    def busy(*args: Any) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("gradfeat.files.writing.os.replace", busy)
    for old, new in ((OLD, NEW), (NEW, OLD), (OLD, b"")):
        path.write_bytes(old)
        place = path.stat().st_ino
        write_whole(path, new)
        assert (path.read_bytes(), path.stat().st_ino, names(tmp_path)) == (new, place, ["x"])

    def full(number: int, *room: int) -> None:
        os.ftruncate(number, 100_000)  # as far as it came
        raise OSError(errno.ENOSPC, "No space left on device")

    path.write_bytes(OLD)
    monkeypatch.setattr("gradfeat.files.writing.os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, NEW)
    assert (error.value.filename, path.read_bytes(), names(tmp_path)) == (str(path), OLD, ["x"])
    with pytest.raises(OSError, match="busy"):  # nothing is there that could be written over
        write_whole(tmp_path / "y", NEW)


@root_only
def test_a_file_in_a_closed_folder_is_written_in_place() -> None:
    code = """
os.setuid(65534)
files.check_file(path)
files.write_whole(path, b"new")
for act in (files.check_file, lambda path: files.write_whole(path, b"new")):
    for other in (path.replace("open", "closed"), path.replace("open", "new")):
        try:
            act(other)
        except PermissionError as error:
            assert error.filename == other, error
        else:
            sys.exit(5)
"""
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which no other user may enter
        folder = Path(place)
        folder.chmod(0o755)
        open_one, closed_one = folder / "open", folder / "closed"
        for path, mode in ((open_one, 0o666), (closed_one, 0o644)):
            path.write_bytes(OLD)
            path.chmod(mode)
        assert child(code, open_one).wait() == 0
        assert (open_one.read_bytes(), closed_one.read_bytes(), names(folder)) == (b"new", OLD, ["closed", "open"])


# ---- kills, leftovers, several at once ----------------------------------------------------------------


@pytest.mark.parametrize("at", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("old", [OLD, None], ids=["over a file", "new"])
def test_a_kill_leaves_the_old_file_or_none_and_the_next_one_tidies_up(
    tmp_path: Path, at: str, old: bytes | None
) -> None:
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)
    elif at == "chmod":
        pytest.skip("a new file has the user's permissions")
    code = f"os.{at} = lambda *args: os.kill(os.getpid(), signal.SIGKILL); files.write_whole(path, b'n' * 100000)"
    assert child(code, path).wait() == -signal.SIGKILL
    assert (path.read_bytes() if path.exists() else None) == old
    left = [name for name in names(tmp_path) if name != "x"]
    assert len(left) == 1
    (tmp_path / ".x.4711.tmp").write_bytes(b"left by an earlier version")
    others = [".y.4711.tmp", ".x.txt.4711.tmp", ".x.tmp"]
    for name in others:
        (tmp_path / name).touch()
    write_whole(path, NEW)
    assert path.read_bytes() == NEW
    assert names(tmp_path) == sorted(["x", *others])


def test_a_kill_at_any_moment_leaves_one_of_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(OLD)
    code = """
print(flush=True)
while True:
    files.write_whole(path, b"a" * 50000)
    files.write_whole(path, b"b" * 70000)
"""
    for moment in (0.0, 0.003, 0.01, 0.02):
        process = child(code, path, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        threading.Event().wait(moment)
        process.kill()
        process.communicate()
        assert path.read_bytes() in (OLD, b"a" * 50000, b"b" * 70000)
    write_whole(path, NEW)
    assert names(tmp_path) == ["x"]


def test_several_write_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([65 + i]) * 20000 for i in range(3)]
    code = "content = sys.stdin.buffer.read()\nfor _ in range(60):\n    files.write_whole(path, content)"
    processes = [child(code, path, stdin=subprocess.PIPE) for _ in contents]
    for process, content in zip(processes, contents, strict=True):
        assert process.stdin is not None
        process.stdin.write(content)
        process.stdin.close()
    failed: list[BaseException] = []

    def thread(content: bytes) -> None:
        try:
            for _ in range(60):
                write_whole(path, content)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=thread, args=(content,)) for content in contents]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert failed == []
    assert path.read_bytes() in contents
    assert names(tmp_path) == ["x"]


# ---- text ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters()))
def test_text_is_utf8_with_its_own_line_ends(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_text(Path(folder) / "x", text)
        assert path.read_bytes().decode("utf-8") == text


def test_bytes_that_are_no_text_are_written_as_python_shows_them(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x", os.fsdecode(b"caf\xe9"))
    assert path.read_text(encoding="utf-8") == "caf\\udce9"
    # a name in UTF-8 that was read under the locale C
    unread = "café".encode().decode("ascii", "surrogateescape")
    assert write_text(tmp_path / "x", f"θ {unread}").read_text(encoding="utf-8") == "θ café"
    assert write_text(tmp_path / "x", "\ud800").read_text(encoding="utf-8") == "\\ud800"


def test_home_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_whole("~/x", NEW) == tmp_path / "x"
    assert (tmp_path / "x").read_bytes() == NEW
