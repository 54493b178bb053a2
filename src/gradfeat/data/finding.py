"""Find the files of a folder that count, in links to folders too, and count the others."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from gradfeat.errors import GradfeatWarning

_SYSTEM = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini")
)
_BESIDE = frozenset(  # files that lie beside samples, and are none
    (
        *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".html", ".htm", ".url"),
        *(".log", ".ini", ".db", ".py", ".ipynb", ".sh", ".pkl", ".npy", ".npz", ".mat", ".pt", ".pth", ".h5", ".zip"),
        *(".tar", ".gz", ".pdf", ".license", ".sha256", ".md5"),
    )
)
_KINDS = 6  # suffixes that a sentence names


@dataclasses.dataclass(frozen=True)
class Found:
    """What a folder and its folders hold.

    Args:
        files: Those that count, sorted.
        left: How many others there are, by suffix.
    """

    files: list[Path]
    left: Counter[str]


def is_file(path: Path, suffixes: Collection[str]) -> bool:
    """Whether `path` is a file, not hidden, with one of some suffixes in any case."""
    return path.suffix.lower() in suffixes and not is_hidden(path.name) and is_regular(path)


def is_regular(path: Path) -> bool:
    """Whether `path` is a file, not a folder or a device, and can be asked about."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text may be too long for a name, or hold a zero byte
        return False


def counter_of(suffixes: Sequence[str], inside: Callable[[Path], bool] | None) -> Callable[[Path], bool]:
    """Return whether a path is a file that counts: by its suffix, or else by what is inside."""
    return lambda path: is_file(path, suffixes) or (inside is not None and inside(path))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's own rather than data."""
    return name.startswith(".") or name.lower() in _SYSTEM or name == "Icon\r"


def find_files(folder: Path, suffixes: Sequence[str], inside: Callable[[Path], bool] | None = None) -> list[Path]:
    """Return all files of a folder and its folders that count, sorted; arguments are those of `search`."""
    return search(folder, suffixes, inside).files


def search(folder: Path, suffixes: Sequence[str], inside: Callable[[Path], bool] | None = None) -> Found:
    """Find all files of a folder and its folders that count, and count the others; nothing that is hidden is either.

    Links to folders are followed, but not to a folder that is read already or that `folder` itself is in.

    Args:
        folder: Where.
        suffixes: Of the files that count, in lower case.
        inside: Whether a file with another suffix, or none, counts all the same.
    """
    counts = counter_of(suffixes, inside)
    files, left = [], Counter[str]()
    for path in _walk(folder, left):
        if counts(path):
            files.append(path)
        else:
            broken = path.is_symlink() and not path.exists()
            left["broken links" if broken else path.suffix.lower() or "without a suffix"] += 1
    return Found(sorted(files), left)


def counted(left: Counter[str]) -> str:
    """Return what was left out, in words.

    Example:
        >>> counted(Counter({".txt": 3, "without a suffix": 1}))
        'left out: 3 .txt, 1 without a suffix'
    """
    if not left:
        return ""
    kinds = [f"{count:,} {kind}" for kind, count in left.most_common(_KINDS)]
    rest = left.total() - sum(count for _, count in left.most_common(_KINDS))
    return "left out: " + ", ".join([*kinds, *([f"{rest:,} others"] if rest else [])])


def warn_of_samples(where: str, what: str, left: Counter[str], stacklevel: int = 3) -> None:
    """Warn where files were left out that are more than texts beside the samples."""
    odd = Counter({kind: count for kind, count in left.items() if kind not in _BESIDE})
    if odd:
        warnings.warn(
            f"{where}: not all files are read as {what} ({counted(odd)}); convert or move those that are samples",
            GradfeatWarning,
            stacklevel=stacklevel,
        )


def _walk(folder: Path, left: Counter[str]) -> Iterator[Path]:
    """Yield the files of a folder and its folders; what hangs on links to folders last, and nothing twice."""
    visited = {key for parent in folder.resolve().parents if (key := _key(parent)) is not None}
    folders, links = deque([folder]), deque[Path]()
    while folders or links:
        place = folders.popleft() if folders else links.popleft()
        key = _key(place)
        if key is None or key in visited:
            continue
        visited.add(key)
        try:
            entries = list(os.scandir(place))
        except PermissionError:
            left["folders that may not be read"] += 1
            continue
        for entry in visible(entries):
            if is_folder(entry):
                (links if entry.is_symlink() else folders).append(place / entry.name)
            else:
                yield place / entry.name


def visible(entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder that are not hidden."""
    return (entry for entry in entries if not is_hidden(entry.name))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _key(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
