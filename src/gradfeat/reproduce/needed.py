"""What a data set's folder lacks of its parts, found out by the files' names before any work."""

from __future__ import annotations

from pathlib import Path

from gradfeat.data.load import official
from gradfeat.data.voc import years_of


def lacking(path: Path, *, training: str = "train") -> list[str]:
    """Return what is missing in a data set's folder; whether the files can be read is seen when they are.

    Args:
        path: Folder of CIFAR, SVHN, VOC or COCO in the official layout, or of the parts "train" and "test".
        training: Part of SVHN that is trained on.
    """
    layout = official(path)
    if layout == "svhn":
        return _absent(path, [f"{part}_32x32.mat" for part in (training, "test")])
    if layout == "voc":
        return [name for year in years_of(path)[:1] for name in _without_lists(year)]
    if layout == "coco":
        parts = ("train", "val")
        wanted = [f"annotations/instances_{part}2014.json" for part in parts]
        return _absent(path, [*wanted, *(f"{part}2014" for part in parts)])
    if layout == "cifar":
        return _of_cifar(path)
    return _absent(path, ["train", "test"])


def _of_cifar(path: Path) -> list[str]:
    """Only whole parts are asked for: some batches of CIFAR-10 are a subset of it."""
    parts = {"training images": ("data_batch_*", "train", "train.bin"), "test images": ("test*",)}
    return [part for part, names in parts.items() if not any(_files(path, name) for name in names)]


def _files(path: Path, pattern: str) -> list[Path]:
    return [file for file in (*path.glob(pattern), *path.glob(f"cifar-10*/{pattern}")) if file.is_file()]


def _without_lists(year: Path) -> list[str]:
    lists = [f"ImageSets/Main/*_{part}.txt" for part in ("trainval", "test")]
    return [*(pattern for pattern in lists if not any(year.glob(pattern))), *_absent(year, ["JPEGImages"])]


def _absent(path: Path, names: list[str]) -> list[str]:
    return [name for name in names if not (path / name).exists()]
