"""A folder of class folders with images (or other files), with or without parts (train, test) above them."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gradfeat.data.dataset import WHOLE, Dataset
from gradfeat.data.finding import counted, counter_of, is_file, search, warn_of_samples
from gradfeat.data.images import SUFFIXES, is_image_inside
from gradfeat.data.parts import (
    SPLITS,
    annotations_among,
    are_portions,
    folders_of,
    is_portion,
    is_wrapping,
    loose,
    masks_among,
    part_named,
    parts_among,
)
from gradfeat.data.rows import SUFFIXES as TABLES
from gradfeat.errors import DataError, GradfeatWarning, did_you_mean
from gradfeat.files.writing import decoded

_Counts = Callable[[Path], bool]
__all__ = ["SPLITS", "Classes", "class_folders", "load_folder", "part_folder"]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The files of each class folder.

    Args:
        files: By the folder's name.
        part: What part of the data they are.
        note: What was read together or left out.
    """

    files: dict[str, list[Path]]
    part: str
    note: str

    @property
    def names(self) -> list[str]:
        """The class of each file."""
        return [name for name in self.files for _ in self.files[name]]

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [file for name in self.files for file in self.files[name]]


def load_folder(path: Path, split: str = "train") -> Dataset:
    """Read ``path/<class>/*.jpg``, or ``path/<split>/<class>/*.jpg`` where `path` has parts.

    The images are not decoded here; `gradfeat.data.load_dataset` does that once for each. Files without an image's
    suffix count where they begin as images do. Other files are left out, and counted in the note of the result.

    Args:
        path: The folder.
        split: Its part, also by another name of it (training_set, val); a folder without parts is taken whole, and the
            split of the result is "all".

    Returns:
        Paths in sorted order, with the names of their class folders as labels.

    Raises:
        DataError: There is no such folder or part, no class folder, fewer than two of them, or one without images; or
            the folders are no classes by their names (images beside masks, folds).
    """
    found = class_folders(path, split, SUFFIXES, "images", is_image_inside)
    y, classes, name = np.array(found.names), list(found.files), path.resolve().name
    return Dataset(found.paths, y, classes, "multiclass", name, found.part, note=found.note)


def class_folders(
    path: Path, split: str, suffixes: Sequence[str], what: str, inside: Callable[[Path], bool] | None = None
) -> Classes:
    """Return the files of each class folder, and what part of the data they are.

    Args:
        path: A folder of class folders, or of parts that hold them.
        split: The part.
        suffixes: Of the files that count.
        what: What they are called in messages.
        inside: Whether a file with another suffix counts all the same.

    Raises:
        DataError: As `load_folder` says.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    counts = counter_of(suffixes, inside)
    root, part = _part(path, split, counts)
    folders = folders_of(root)
    beside = sum(counts(file) for file in root.iterdir())
    tables = _tables(path, root)
    if not folders:
        found = f"{beside} {what} without class folders" if beside else "no folders"
        raise DataError(f"{root} has {found}: expected one folder for each class, with its {what} inside{tables}")
    _refuse_others(root, folders, counts, what)
    _warn_of_parts(root, folders, tables)
    left = Counter[str]({f"{what} beside the class folders": beside} if beside else {})
    files = {}
    for folder in folders:
        here = search(folder, suffixes, inside)
        left += here.left
        files[decoded(folder.name)], apart = _without_masks(folder, here.files, counts)
        left += apart
    _refuse_empty(root, files, suffixes, what, left, tables)
    warn_of_samples(str(root), what, left, stacklevel=5)
    _warn_of_masks(root, files)
    beyond = [file.name for file in root.iterdir() if file.suffix != ".json" and is_file(file, TABLES)]
    notes = [_nested(folders), f"not read: {_listed(sorted(beyond), 2)}" if beyond else "", counted(left)]
    return Classes(files, part, "; ".join(note for note in notes if note))


def part_folder(path: Path, split: str, suffixes: Sequence[str]) -> Path:
    """Return the folder of a part whose files need no labels, so that it may have no class folders.

    Args:
        path: A folder, with parts or without.
        split: The part, also by another name of it; the folder called so exactly goes first.
        suffixes: Of the files that count.

    Returns:
        The part, or `path` where it has none of that name.
    """
    if (path / split).is_dir():
        return path / split
    counts = counter_of(suffixes, None)
    folders = folders_of(path) if path.is_dir() and not loose(path, counts) else []
    known = parts_among(folder.name for folder in folders)
    part = part_named(split)
    meant = [folder for folder in folders if part is not None and known.get(folder.name) == part]
    if len(meant) == 1 and (len(set(known.values())) > 1 or len(known) == len(folders)):
        return meant[0]
    inner = _unwrapped(path, counts) if folders else path
    return path if inner == path else part_folder(inner, split, suffixes)


def _refuse_empty(
    root: Path, files: dict[str, list[Path]], suffixes: Sequence[str], what: str, left: Counter[str], tables: str
) -> None:
    known = f"Known suffixes: {', '.join(suffixes)}" + (f". There is more, {counted(left)}" if left else "")
    if not any(files.values()):
        raise DataError(f"{root} has no {what} in its {len(files)} folders. {known}")
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise DataError(
            f"No {what} in the class folder{'s' if len(empty) > 1 else ''} {', '.join(map(repr, empty))} of {root}: "
            f"remove or fill {'them' if len(empty) > 1 else 'it'}. {known}"
        )
    if len(files) < 2:
        only = next(iter(files))
        way = f". If its folders are the classes, give {root / only}" if folders_of(root / only) else ""
        raise DataError(f"{root} has only one class, {only!r}: at least two are needed to tell apart{way}{tables}")


def _part(path: Path, split: str, counts: _Counts) -> tuple[Path, str]:
    """Return the folder with the class folders, and what part of the data it is."""
    if (path / split).is_dir() and not _is_class(path / split, counts):
        return _unwrapped(path / split, counts), split
    folders = folders_of(path)
    known = parts_among(folder.name for folder in folders)
    parts = [
        folder
        for folder in folders
        if folders_of(folder)
        if folder.name.lower() in SPLITS or (folder.name in known and not loose(folder, counts))
    ]
    certain = len(set(known.values())) > 1 or len(known) == len(folders)
    if parts and (certain or any(folder.name.lower() in SPLITS for folder in parts)):
        part = _meant(path, parts, known, split)
        return _unwrapped(part, counts), part.name
    inner = _unwrapped(path, counts)
    return (path, WHOLE) if inner == path else _part(inner, split, counts)


def _meant(path: Path, parts: list[Path], known: dict[str, str], split: str) -> Path:
    """Return the part that a name means, by the same letters or another word for it."""
    meant = [folder for folder in parts if folder.name.lower() == split.lower()] or [
        folder for folder in parts if part_named(split) is not None and known.get(folder.name) == part_named(split)
    ]
    if len(meant) == 1:
        return meant[0]
    flat = [folder for folder in folders_of(path) if part_named(split) and known.get(folder.name) == part_named(split)]
    if len(flat) == 1 and not meant:
        return flat[0]  # whose files lack class folders, as is said next
    names = [folder.name for folder in (meant or parts)]
    if meant:
        raise DataError(f"{path} has several folders for the part {split!r}: {', '.join(names)}. Give the path of one")
    raise DataError(f"{path} has no part {split!r}. Its parts: {', '.join(names)}.{did_you_mean(split, names)}")


def _unwrapped(path: Path, counts: _Counts) -> Path:
    """Return the folder with the class folders where others are wrapped round it: ``train/train/<class>``."""
    folders = folders_of(path)
    if len(folders) != 1 or loose(path, counts):
        return path
    inner = folders[0]
    if not folders_of(inner) or loose(inner, counts) or not (is_wrapping(inner) or _has_parts(inner)):
        return path
    return _unwrapped(inner, counts) if inner.resolve() not in path.resolve().parents else path


def _has_parts(path: Path) -> bool:
    """Whether the folders in a folder are parts of the data by their names, two of them at least."""
    return len(set(parts_among(folder.name for folder in folders_of(path)).values())) > 1


def _is_class(folder: Path, counts: _Counts) -> bool:
    """Whether a folder called like a part is a class, a vehicle say: files in it and in a folder beside it."""
    beside = [other for other in folders_of(folder.parent) if other.name != folder.name]
    return _only_files(folder, counts) and any(_only_files(other, counts) for other in beside)


def _only_files(folder: Path, counts: _Counts) -> bool:
    """Whether a folder holds files that count, and no folders."""
    return not folders_of(folder) and loose(folder, counts)


def _refuse_others(root: Path, folders: list[Path], counts: _Counts, what: str) -> None:
    """Refuse folders that are no classes by their names; say so where it can be meant either way."""
    for images, others in annotations_among(folders, counts):
        raise DataError(
            f"{root}: {others.name!r} holds files named after those of {images.name!r}, so these are not two classes. "
            f"Expected one folder for each class, with its {what} inside"
        )
    if len(folders) < 2 or any(loose(folder, counts) for folder in folders):
        return
    within = [tuple(folder.name for folder in folders_of(folder)) for folder in folders]
    if len(set(within)) > 1 or len(within[0]) < 2 or annotations_among(folders_of(folders[0]), counts):
        return
    tops, same = _listed([folder.name for folder in folders]), _listed(within[0])
    if all(is_portion(folder.name) for folder in folders):
        raise DataError(
            f"The folders {tops} of {root} all hold the same folders, {same}: they look like portions of the data, not "
            "like classes. Give the path of one, or call them train and test"
        )
    if len(parts_among(within[0])) == len(within[0]):
        way = f"all of them are read together. To tell them apart, put {same} above the class folders"
    else:
        way = (
            f"{tops} are taken as the classes. If {same} are, give the path of one of {tops}, or call these train and "
            "test"
        )
    warnings.warn(
        f"The folders {tops} of {root} all hold the same folders, {same}: {way}", GradfeatWarning, stacklevel=5
    )


def _warn_of_parts(root: Path, folders: list[Path], tables: str) -> None:
    """Warn of classes that are called like parts of the data, as where contests have no class folders."""
    names = [folder.name for folder in folders]
    if len(names) > 1 and (len(parts_among(names)) == len(names) or are_portions(names)):
        warnings.warn(
            f"The folders {_listed(names)} of {root} are called like parts of the data, have no class folders, and are "
            f"taken as the classes{tables}",
            GradfeatWarning,
            stacklevel=5,
        )
    for folder in folders:
        others = {name for name in names if name != folder.name}
        if len(others) > 1 and others <= {inner.name for inner in folders_of(folder)}:
            warnings.warn(
                f"{folder} holds folders that are called as the other classes, and is taken as a class itself: is it a "
                "copy of the data? Then move it away",
                GradfeatWarning,
                stacklevel=5,
            )


def _nested(folders: list[Path]) -> str:
    """Return which classes hold folders of their own: these may be the classes that are meant."""
    names = [repr(folder.name) for folder in folders if len(folders_of(folder)) > 1]
    return f"the folders in {_listed(names, 2)} are read together" if names else ""


def _tables(*folders: Path) -> str:
    """Return what to do where a table beside the files may have their labels."""
    found = [file for folder in dict.fromkeys(folders) for file in sorted(folder.iterdir()) if is_file(file, TABLES)]
    if not found:
        return ""
    return (
        f". If {_listed([str(file) for file in found], 2)} names the files and their labels, give its path, and their "
        "folder by image_root= (on the command line: --image-root)"
    )


def _without_masks(folder: Path, files: list[Path], counts: _Counts) -> tuple[list[Path], Counter[str]]:
    """Return the files of a class less the masks that lie in a folder beside one of its images, and their number."""
    masks = {others for _, others in annotations_among(folders_of(folder), counts)}
    if not masks:
        return files, Counter()
    kept = [file for file in files if not masks.intersection(file.parents)]
    names = " and ".join(sorted({mask.name for mask in masks}))
    return kept, Counter({f"in folders {names!r}, named after images": len(files) - len(kept)} if kept != files else {})


def _warn_of_masks(root: Path, files: dict[str, list[Path]]) -> None:
    masks = [file for found in files.values() for file in masks_among(found)]
    if masks:
        warnings.warn(
            f"{root}: {len(masks):,} files are called masks of others, e.g. {masks[0].name}, and are read as samples "
            "of their class: move them away unless they are meant to be",
            GradfeatWarning,
            stacklevel=5,
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
