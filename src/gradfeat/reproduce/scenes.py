"""Images with several labels each, for Tables 2 and 4: VOC 2007, COCO 2014, and small ones made of digits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradfeat.data import Dataset, load_dataset
from gradfeat.data.coco import SOURCE as COCO_SOURCE
from gradfeat.data.coco import is_coco
from gradfeat.data.voc import years_of
from gradfeat.errors import DataError
from gradfeat.losses import Loss, MultiLabelLogistic

ADVICE = {
    "voc07": "put VOCdevkit/VOC2007 there, of VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar "
    "(http://host.robots.ox.ac.uk/pascal/VOC/voc2007)",
    "coco2014": f"put annotations/, train2014/ and val2014/ there, in a folder of their own, from {COCO_SOURCE}",
}
_SPLITS = {"voc07": ("trainval", "test"), "coco2014": ("train", "val")}


@dataclass(frozen=True, eq=False)
class SceneData:
    """Images with an indicator of their labels.

    Attributes:
        name: "voc07", "coco2014" or "digits".
        train: Paths of images, or uint8 (n, h, w, c).
        y: (n, c), 0, 1, or NaN for an entry that does not count.
        test: As `train`.
        y_test: As `y`.
        note: What a reader of the numbers should know.
    """

    name: str
    train: Any
    y: np.ndarray
    test: Any
    y_test: np.ndarray
    note: str = ""
    loss: Loss = field(default_factory=MultiLabelLogistic)

    def digest(self) -> str:
        """Return a digest of all images, by their pixels or by their names and sizes, and of all labels."""
        digest = hashlib.sha256()
        for images, y in ((self.train, self.y), (self.test, self.y_test)):
            if isinstance(images, np.ndarray):
                digest.update(np.ascontiguousarray(images).data)
            else:
                digest.update("\n".join(f"{path.name} {path.stat().st_size}" for path in images).encode())
            digest.update(np.ascontiguousarray(y).data)
        return digest.hexdigest()[:16]

    def labelled(self, n: int | None, seed: int) -> tuple[Any, np.ndarray]:
        """Return n training images and their labels, drawn at random; all of them where n is None."""
        if n is None or n >= len(self.y):
            return self.train, self.y
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.y))[:n])
        images = self.train[chosen] if isinstance(self.train, np.ndarray) else [self.train[i] for i in chosen]
        return images, self.y[chosen]


def find_scenes(name: str, folder: Path) -> Path | None:
    """Return where a data set lies in a folder: the folder itself, or the first one in it that is one.

    Of VOC it is the folder of the year, since others may lie beside it in the devkit.
    """
    inside = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    places = (folder, *inside)
    if name == "coco2014":
        return next((place for place in places if is_coco(place)), None)
    years = [year for place in places for year in years_of(place) if not _other_year(year.name)]
    return min(years, key=lambda year: year.name != "VOC2007", default=None)


def load_scenes(name: str, path: Path) -> SceneData:
    """Read VOC 2007 (trainval and test) or COCO 2014 (train and val).

    Raises:
        DataError: A part is missing or damaged, or the parts have other classes.
    """
    train, test = (load_dataset(path, split=split) for split in _SPLITS[name])
    if train.classes != test.classes:
        raise DataError(f"{path}: the parts have other classes: {len(train.classes)} and {len(test.classes)}")
    notes = [f"{part.split}: {part.note}" for part in (train, test) if part.note]
    notes += [f"{len(train.classes)} classes: {', '.join(train.classes)}"] if len(train.classes) < 20 else []
    return SceneData(name, train.X, _indicator(train), test.X, _indicator(test), "; ".join(notes))


def digit_scenes() -> tuple[SceneData, np.ndarray]:
    """Return scenes of 16 × 16 pixels, each of four of scikit-learn's digits, and the first digit of each.

    The labels of a scene are the digits in it. 600 scenes are for training and 300 for the test, of different digits.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    parts = train_test_split(pixels, labels, train_size=1_200, stratify=labels, random_state=0)
    rng = np.random.default_rng(0)
    made = []
    for digits, classes, n in ((parts[0], parts[2], 600), (parts[1], parts[3], 300)):
        four = rng.integers(0, len(digits), (n, 2, 2))
        scenes = digits[four].transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, 16, 1)
        shown = classes[four].reshape(n, 4)
        made.append((scenes, (shown[:, :, None] == np.arange(10)).any(1).astype(np.float64), shown[:, 0]))
    (train, y, first), (test, y_test, _) = made
    return SceneData("digits", train, y, test, y_test), first


def _other_year(folder: str) -> bool:
    return re.fullmatch(r"VOC\d{4}", folder) is not None and folder != "VOC2007"


def _indicator(part: Dataset) -> np.ndarray:
    y = np.asarray(part.y, dtype=np.float64)
    return y if part.ignore is None else np.where(part.ignore, np.nan, y)
