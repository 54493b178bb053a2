"""The parts of a data set in folders: which names mean train, validation and test, and which folders are no classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gradfeat.data.finding import is_folder, is_hidden, is_regular, visible

SPLITS = ("train", "training", "trainval", "validation", "valid", "val", "dev", "test", "testing")
_PART = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    "trainval": "trainval",
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_WRAPPING = frozenset(  # words of a folder's name that say nothing of a class
    (
        *("all", "archive", "class", "classes", "data", "dataset", "datasets", "dir", "extracted", "file", "files"),
        *("final", "folder", "image", "images", "img", "imgs", "input", "jpegimages", "jpg", "jpeg", "labeled"),
        *("labelled", "main", "new", "original", "part", "photo", "photos", "pic", "pics", "picture", "pictures"),
        *("png", "processed", "raw", "resized", "root", "sample", "samples", "set", "sets", "split", "splits", "the"),
    )
)
_PORTION = frozenset(("fold", "folds", "part", "split", "batch", "subset", "chunk", "shard"))
_PICTURES = frozenset(
    ("image", "images", "img", "imgs", "input", "inputs", "jpegimages", "photo", "photos", "pictures")
)
_ANNOTATIONS = frozenset(
    (
        *("annotation", "annotations", "bboxes", "boxes", "groundtruth", "gt", "label", "labels", "mask", "masks"),
        *("segmentation", "segmentations", "segmentationclass", "segmentationobject"),
    )
)
_GLUED = re.compile(r"(train|training|test|testing|val|valid|validation)(set|data|images?|imgs?|dir|folder|split)")


def part_named(name: str) -> str | None:
    """Return the part that a name means on its own; None for any other.

    Example:
        >>> [part_named(name) for name in ("Training", "val", "trainset", "test_images", "trainers")]
        ['train', 'validation', 'train', 'test', None]
    """
    part, rest = _read(name)
    return None if rest else part


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """Return which of the names in a folder are plainly parts, and of what.

    A name is one if it says nothing else, or if what else it says is said of another part too.

    Example:
        >>> parts_among(["seg_train", "seg_test", "seg_pred"])
        {'seg_train': 'train', 'seg_test': 'test'}
        >>> parts_among(["training_shoes", "test_tube"])
        {}
    """
    read = {name: _read(name) for name in names}
    return {
        name: part
        for name, (part, rest) in read.items()
        if part and (not rest or any(other and other != part and words == rest for other, words in read.values()))
    }


def is_portion(name: str) -> bool:
    """Whether a name means some portion of the data, a fold say, and no class."""
    words = _words(name)
    return (
        bool(words)
        and any(word in _PORTION for word in words)
        and all(word in _PORTION or word in _WRAPPING or len(word) == 1 for word in words)
    )


def are_portions(names: Sequence[str]) -> bool:
    """Whether all names mean portions of the data, or say the same of one: HAM_part_1 and HAM_part_2."""
    said = {tuple(_words(name)) for name in names}
    return all(map(is_portion, names)) or (len(said) == 1 and bool(_PORTION.intersection(*said)))


def is_wrapping(folder: Path) -> bool:
    """Whether a folder that is alone in another one only wraps what is in it, by its name."""
    words = _words(folder.name)
    alike = folder.name.lower() == folder.parent.resolve().name.lower()
    return alike or (bool(words) and all(word in _WRAPPING or word in _PART for word in words))


def annotations_among(folders: Sequence[Path], counts: Callable[[Path], bool]) -> list[tuple[Path, Path]]:
    """Return pairs of folders, of images and of masks, labels or annotations of the same images by their names."""
    pictures = [folder for folder in folders if _ends_in(folder.name, _PICTURES)]
    others = [folder for folder in folders if _ends_in(folder.name, _ANNOTATIONS)]
    pairs = [(images, other) for other in others for images in pictures if _same_stems(images, other, counts)]
    return list({other: (images, other) for images, other in pairs}.values())


def masks_among(files: Sequence[Path]) -> list[Path]:
    """Return the files that are called masks of others beside them: ``a_mask.png`` of ``a.png``."""
    suspects = [file for file in files if _ANNOTATIONS.intersection(re.findall(r"[^\W\d_]+", file.stem.lower()))]
    if not suspects:
        return []
    images = {(file.parent, _said(file)) for file in set(files).difference(suspects)}
    return [file for file in suspects if _said(file) and (file.parent, _said(file)) in images]


def folders_of(path: Path) -> list[Path]:
    """Return the folders in a folder, sorted; nothing that is hidden."""
    with os.scandir(path) as entries:
        return sorted(path / entry.name for entry in visible(entries) if is_folder(entry))


def loose(folder: Path, counts: Callable[[Path], bool]) -> bool:
    """Whether files that count are in a folder itself."""
    return any(counts(file) for file in folder.iterdir())


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _read(name: str) -> tuple[str | None, frozenset[str]]:
    """Return the part that a name speaks of, and what else it says."""
    words = _words(_GLUED.sub(r"\1 \2", name.lower()) if _GLUED.fullmatch(name.lower()) else name)
    parts = [word for word in words if word in _PART]
    if words == ["train", "val"]:
        return "trainval", frozenset()
    if len(parts) != 1:
        return None, frozenset()
    return _PART[parts[0]], frozenset(words) - {parts[0]} - _WRAPPING


def _ends_in(name: str, known: frozenset[str]) -> bool:
    words = _words(name)
    joined = "".join(words)
    return joined in known or (bool(words) and words[-1] in known and all(w in known | _PART.keys() for w in words))


def _same_stems(images: Path, others: Path, counts: Callable[[Path], bool]) -> bool:
    """Whether at least half of some files are named after the images: ``a.png`` or ``a_mask.png`` after ``a.jpg``."""
    named = {_said(path) for path in images.rglob("*") if counts(path)} - {()}
    said = [_said(path) for path in others.rglob("*") if is_regular(path) and not is_hidden(path.name)]
    after = sum(words in named or words[:-1] in named for words in said)
    return bool(said) and 2 * after >= len(said)


def _said(path: Path) -> tuple[str, ...]:
    """Return the words and numbers of a file's name less those that say that it is an image or a mask."""
    words = re.findall(r"[^\W\d_]+|\d+", path.stem.lower())
    return tuple(word for word in words if word not in _PICTURES | _ANNOTATIONS)
