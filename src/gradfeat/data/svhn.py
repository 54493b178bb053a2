"""SVHN (Netzer et al., 2011), the street view house numbers, as its official cropped digits: MATLAB files."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data.checksum import differences_from_official
from gradfeat.data.dataset import Dataset
from gradfeat.data.matlab import read_matrices
from gradfeat.errors import DataError, did_you_mean

OFFICIAL = {"train": 73_257, "test": 26_032, "extra": 531_131}  # images
CHECKSUMS = {  # MD5, as in torchvision/datasets/svhn.py (torchvision 0.28)
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
    "extra": "a93ce644f1a588dc4d68dda5feec44a7",
}
SOURCE = "http://ufldl.stanford.edu/housenumbers/"
DIGITS = [str(digit) for digit in range(10)]


def is_svhn(path: Path) -> bool:
    """Whether `path` is a folder with at least one of the three official files."""
    return any((path / _name(split)).is_file() for split in OFFICIAL)


def load_svhn(path: Path, split: str) -> Dataset:
    """Read the cropped digits ("format 2") of SVHN; the paper trains on "extra" and tests on "test".

    Args:
        path: The folder with ``train_32x32.mat``, ``test_32x32.mat`` and ``extra_32x32.mat``; only the file of the
            split needs to be there.
        split: "train", "test" or "extra".

    Returns:
        Images, uint8 (n, 32, 32, 3), and their digits, "0" to "9" (the files write 0 as 10); a note where there are not
        as many images as officially, or the file is not the official one.

    Raises:
        DataError: The file of the split is missing, cut off or damaged, or holds something else; the message names it.
    """
    if split not in OFFICIAL:
        raise DataError(f"SVHN has the splits {', '.join(OFFICIAL)}, not {split!r}.{did_you_mean(split, OFFICIAL)}")
    file = path / _name(split)
    if not file.is_file():
        raise DataError(
            f"{path} has no file {file.name}: download it from {SOURCE} (Format 2, cropped digits) and put it there"
        )
    content = _read(file)
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None:
        raise DataError(f"{file} is not a file of SVHN: expected the arrays X and y, {_others(content)}")
    n = images.shape[-1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, n) or not n:
        raise DataError(f"{file}: expected X as uint8 (32, 32, 3, n), found {images.dtype} {images.shape}")
    if labels.shape != (n, 1) or labels.dtype.kind not in "iuf":
        raise DataError(f"{file}: expected y as numbers ({n}, 1), found {labels.dtype} {labels.shape}")
    strange = labels[~np.isin(labels, np.arange(1, 11))]
    if len(strange):
        raise DataError(f"{file}: expected the labels 1 to 10, where 10 is the digit 0; found {strange[0]}")
    return Dataset(
        # A view, not a copy: the file's order keeps each image in one piece of memory, and `extra` has 1.6 GB of them.
        X=images.transpose(3, 0, 1, 2),
        y=np.array(DIGITS)[labels[:, 0].astype(np.int64) % 10],
        classes=list(DIGITS),
        task="multiclass",
        name="SVHN",
        split=split,
        note=(
            differences_from_official({file: CHECKSUMS[split]})
            if n == OFFICIAL[split]
            else f"officially {OFFICIAL[split]:,} images"
        ),
    )


def _name(split: str) -> str:
    return f"{split}_32x32.mat"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_matrices(file, ("X", "y"))
    except (OSError, ValueError, zlib.error, OverflowError) as error:
        raise DataError(
            f"{file} is cut off or damaged, or no MATLAB file: {error}. Download it again from {SOURCE}"
        ) from error
    for name in ("X", "y"):
        if isinstance(content.get(name), str) and {"X", "y"} <= content.keys():
            raise DataError(f"{file}: expected {name} as numbers, found {content[name]}")
    return content


def _others(content: dict[str, Any]) -> str:
    return f"found {', '.join(content)}" if content else "found none"
