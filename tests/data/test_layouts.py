"""The official layouts of CIFAR and VOC, in small."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradfeat.data import load_dataset
from gradfeat.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, size=(3, 3072), dtype=np.uint8)
NAMES = ["plane", "car", "bird"]


def binary(root: Path, labels: list[list[int]], folder: str = "cifar-10-batches-bin") -> Path:
    path = root / folder
    path.mkdir()
    train, test, meta = (
        ("data_batch_1.bin", "test_batch.bin", "batches.meta.txt")
        if "10-" in folder
        else ("train.bin", "test.bin", "fine_label_names.txt")
    )
    (path / meta).write_text("\n".join(NAMES) + "\n")
    for name in (train, test):
        (path / name).write_bytes(
            b"".join(bytes(label) + image.tobytes() for label, image in zip(labels, PIXELS, strict=True))
        )
    return path


def python(root: Path, *, labels: object, folder: str = "cifar-10-batches-py") -> Path:
    path = root / folder
    path.mkdir()
    ten = folder == "cifar-10-batches-py"
    key = b"labels" if ten else b"fine_labels"
    names = {b"label_names" if ten else b"fine_label_names": [name.encode() for name in NAMES]}
    (path / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(names))
    for name in ("data_batch_1", "test_batch") if ten else ("train", "test"):
        (path / name).write_bytes(pickle.dumps({b"data": PIXELS, key: labels}))
    return path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "kind", ["cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"]
)
def test_cifar(tmp_path: Path, kind: str, split: str) -> None:
    if "python" in kind or kind.endswith("py"):
        path = python(tmp_path, labels=[2, 0, 1], folder=kind)
    else:
        path = binary(tmp_path, [[2], [0], [1]] if "10-" in kind else [[9, 2], [9, 0], [9, 1]], kind)
    for place in (path, path.parent):
        data = load_dataset(place, split=split)
        assert data.y.tolist() == ["bird", "plane", "car"]
        assert data.classes == NAMES
        assert data.X.shape == (3, 32, 32, 3)
        assert (data.X[1, :, :, 2].ravel() == PIXELS[1, 2048:]).all()  # planes are red, green, blue


def test_cifar_bad_files(tmp_path: Path) -> None:
    path = binary(tmp_path, [[2], [0], [7]])
    with pytest.raises(DataError, match="labels from 0 to 7"):
        load_dataset(path)
    with pytest.raises(DataError, match="splits train and test"):
        load_dataset(path, split="val")
    file = path / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"data_batch_1.bin is cut off.*3,073"):
        load_dataset(path)
    (path / "batches.meta.txt").unlink()
    with pytest.raises(DataError, match=r"batches.meta.txt"):
        load_dataset(path, format="cifar")


def test_cifar_refuses_foreign_objects(tmp_path: Path) -> None:
    path = python(tmp_path, labels=[datetime.date(2020, 1, 1)])
    with pytest.raises(DataError, match=r"data_batch_1.*datetime.date"):
        load_dataset(path)
    (path / "data_batch_1").write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match="damaged"):
        load_dataset(path)


def devkit(root: Path, lists: dict[str, str]) -> Path:
    main = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    images = root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    images.mkdir()
    for name in ("000001", "000002", "000003"):
        Image.new("RGB", (8, 8)).save(images / f"{name}.jpg")
    for name, content in lists.items():
        (main / f"{name}.txt").write_text(content)
    return root


GOOD = {
    "cat_trainval": "000001  1\n000002 -1\n000003  0\n",
    "dog_trainval": "000001 -1\n000002  1\n000003  1\n",
    "cat_test": "000002 1\n",
    "dog_test": "000002 -1\n",
}


def test_voc(tmp_path: Path) -> None:
    root = devkit(tmp_path, GOOD)
    for place in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2007"):
        data = load_dataset(place)
        assert (data.split, data.task, data.classes) == ("trainval", "multilabel", ["cat", "dog"])
        assert data.y.tolist() == [[1, 0], [0, 1], [0, 1]]
        assert data.ignore.tolist() == [[False, False], [False, False], [True, False]]
        assert [path.stem for path in data.X] == ["000001", "000002", "000003"]
    test = load_dataset(root, split="test")
    assert (len(test), test.ignore) == (1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cat_trainval": "000001 1\n000002 maybe\n000003 0\n"}, "cat_trainval.txt, line 2"),
        ({"cat_trainval": "000001 1\n"}, "lists other images.*000002"),
        ({"cat_trainval": ""}, "is empty"),
        (
            {name: GOOD[name] + "000009 1\n" for name in ("cat_trainval", "dog_trainval")},
            "1 of 4 images are missing: 000009",
        ),
    ],
)
def test_voc_bad_lists(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(devkit(tmp_path, {**GOOD, **change}))


def test_voc_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="splits there: test, trainval"):
        load_dataset(devkit(tmp_path, GOOD), split="val")


@pytest.mark.parametrize(
    ("folder", "split", "count"),
    [
        ("voc07_5cls", "train", 1204),
        ("voc07_5cls", "test", 803),
        ("cifar10_5k", "train", 4000),
        ("cifar10_5k", "test", 1000),
    ],
)
def test_real_data(shared_data: Path, folder: str, split: str, count: int) -> None:
    data = load_dataset(shared_data / folder, split=split)
    assert len(data) == count
    assert len(data.classes) == (5 if folder == "voc07_5cls" else 10)
