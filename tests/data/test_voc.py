from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gradfeat.data import load_dataset
from gradfeat.data.voc import OFFICIAL
from gradfeat.errors import DataError, GradfeatWarning

# image -> label in each list; 0 is `difficult`
LISTS = {
    "cat_trainval": {"000001": 1, "000002": -1, "000005": 0},
    "potted_plant_trainval": {"000001": 1, "000002": 1, "000005": -1},
    "cat_train": {"000001": 1},
    "potted_plant_train": {"000001": 1},
    "cat_test": {"000007": -1},
    "potted_plant_test": {"000007": 1},
}


@pytest.fixture
def year(tmp_path):
    year = tmp_path / "VOCdevkit" / "VOC2007"
    (year / "ImageSets/Main").mkdir(parents=True)
    (year / "JPEGImages").mkdir()
    for name, labels in LISTS.items():
        text = "".join(f"{image} {label:2d}\n" for image, label in labels.items())
        (year / f"ImageSets/Main/{name}.txt").write_text(text)
    (year / "ImageSets/Main/trainval.txt").write_text("000001\n000002\n000005\n")
    for image in ("000001", "000002", "000005", "000007"):
        Image.new("RGB", (6, 5)).save(year / f"JPEGImages/{image}.jpg")
    return year


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_labels_and_difficult_ones(year, levels):
    path = [year, year.parent, year.parent.parent][levels]
    data = load_dataset(path)
    assert (data.classes, data.task, data.name) == (["cat", "potted_plant"], "multilabel", "VOC2007")
    assert [image.stem for image in data.X] == ["000001", "000002", "000005"]
    assert data.y.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert data.ignore.tolist() == [[False, False], [False, False], [True, False]]
    assert data.subset([2]).ignore.tolist() == [[True, False]]
    assert data.describe() == "VOC2007 (trainval): 3 images, 2 labels (multi-label) (officially 5,011 images)"


def test_splits(year):
    assert load_dataset(year, split="train").split == "trainval"  # the VOC07 protocol trains on both
    assert (len(load_dataset(year, split="train-only")), load_dataset(year, split="train-only").split) == (1, "train")
    test = load_dataset(year, split="test")
    assert (test.y.tolist(), test.ignore) == ([[0, 1]], None)
    with pytest.raises(DataError, match=r"no lists <class>_tests.txt; splits there: .*Did you mean test\?"):
        load_dataset(year, split="tests")
    for name in ("cat", "potted_plant"):
        (year / f"ImageSets/Main/{name}_trainval.txt").unlink()
    assert load_dataset(year).split == "train"


def test_the_number_of_images_is_that_of_2007_alone(year, monkeypatch):
    assert load_dataset(year, split="test").note == "officially 4,952 images"
    monkeypatch.setitem(OFFICIAL, "test", 1)
    assert load_dataset(year, split="test").note == ""
    year.rename(year.parent / "VOC2012")
    assert load_dataset(year.parent).note == ""


def test_several_years_are_not_chosen_from(year):
    (year.parent / "VOC2012/ImageSets/Main").mkdir(parents=True)
    with pytest.raises(DataError, match=r"several years: give the path of one, .*VOC2007, .*VOC2012"):
        load_dataset(year.parent.parent)
    assert len(load_dataset(year)) == 3


def test_no_devkit(tmp_path):
    with pytest.raises(DataError, match="no VOC devkit: expected ImageSets/Main"):
        load_dataset(tmp_path, format="voc")


def test_a_class_without_a_list_is_named(year):
    (year / "ImageSets/Main/cat_test.txt").unlink()
    with pytest.raises(DataError, match=r"no cat_test.txt, though other parts have a list of 'cat'"):
        load_dataset(year, split="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000001 1\n000002 yes\n", "cat_trainval.txt, line 2: expected .* found '000002 yes'"),
        ("000001\n", "line 1"),
        ("000001 1\n\n000001 -1\n", "line 3: 000001 is listed a second time"),
        ("\n", "cat_trainval.txt is empty"),
        ("000001 1\n000002 1\n", r"lists other images than cat_trainval.txt: 000005 \(1 in all\)"),
    ],
)
def test_lists_that_cannot_be_read(year, text, message):
    (year / "ImageSets/Main/cat_trainval.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(year)


def test_missing_and_damaged_images(year):
    (year / "JPEGImages/000002.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1 of 3 images cannot be read(.|\n)*000002.jpg"):
        load_dataset(year)
    with pytest.warns(GradfeatWarning, match="left out"):
        data = load_dataset(year, on_error="skip")
    assert (data.y.tolist(), data.ignore.tolist()) == ([[1, 1], [0, 0]], [[False, False], [True, False]])
    (year / "JPEGImages/000005.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images are missing: 000005.jpg"):
        load_dataset(year)


@pytest.mark.parametrize(("split", "count"), [("train", 1204), ("test", 803)])
def test_voc07_5cls(shared_data, split, count):
    data = load_dataset(shared_data / "voc07_5cls", split=split)
    assert data.classes == ["bus", "car", "cat", "person", "train"]
    assert (data.y.shape, data.ignore) == ((count, 5), None)
    assert set(np.unique(data.y)) == {0, 1}
    assert (data.y.sum(1) > 1).any()
    assert data.y.any(0).all()


def test_lists_are_utf8(year):
    for name in ("cat", "potted_plant"):
        file = year / f"ImageSets/Main/{name}_test.txt"
        file.write_bytes("\ufeffstra\u00dfe  1\r\n000007 -1\r".encode())
    Image.new("RGB", (6, 5)).save(year / "JPEGImages/stra\u00dfe.jpg")
    data = load_dataset(year, split="test")
    assert [image.stem for image in data.X] == ["stra\u00dfe", "000007"]
    file.write_bytes(b"000007 -1\nstra\xdfe 1\n")
    with pytest.raises(DataError, match=r"potted_plant_test\.txt, line 2: not UTF-8"):
        load_dataset(year, split="test")
