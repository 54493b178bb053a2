"""Folders as people lay them out: parts by other names, wrappings, masks, links, and what is left out."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gradfeat.data import load_dataset, load_images
from gradfeat.data.parts import part_named, parts_among
from gradfeat.errors import DataError, GradfeatWarning


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path, format="PNG")
    return root


def classes_in(*tops: str, classes: tuple[str, ...] = ("cat", "dog")) -> list[str]:
    return [f"{top}/{name}/{i}.png" for top in tops for name in classes for i in range(2)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("Training", "Testing"),
        ("train_images", "test_images"),
        ("birds-train", "birds-test"),
        ("TrainSet", "TestSet"),
        ("trainset", "testset"),
        ("train2017", "test2017"),
        ("images/train", "images/test"),
        ("data/archive/train", "data/archive/test"),
        ("train/train", "test/test"),
        ("train/images", "test/images"),
    ],
)
def test_parts_by_other_names_are_parts(tmp_path: Path, train: str, test: str) -> None:
    make(tmp_path, *classes_in(train, test), f"{train}/cat/more.png")
    for split, top, count in (("train", train, 5), ("test", test, 4)):
        data = load_dataset(tmp_path, split=split)
        assert (data.classes, len(data)) == (["cat", "dog"], count)
        assert all((tmp_path / top) in path.parents for path in data.X)
        assert data.split != "all"
    with pytest.raises(DataError, match=r"no part 'validation'\. Its parts: "):
        load_dataset(tmp_path, split="validation")


@pytest.mark.parametrize("asked", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("there", ["validation", "valid", "val", "dev", "Val", "val_set"])
def test_every_word_for_validation_finds_it(tmp_path: Path, asked: str, there: str) -> None:
    make(tmp_path, *classes_in("train", there))
    data = load_dataset(tmp_path, split=asked)
    assert {path.parent.parent.name for path in data.X} == {there}


def test_folders_beside_the_parts_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, *classes_in("training_set", "test_set"), "single_prediction/1.png")
    assert load_dataset(tmp_path).classes == ["cat", "dog"]


def test_several_folders_for_one_part_are_named(tmp_path: Path) -> None:
    make(tmp_path, *classes_in("train_2017", "train_2018", "test_2019"))
    with pytest.raises(DataError, match="several folders for the part 'train': train_2017, train_2018"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, split="train_2018")) == 4


@pytest.mark.parametrize(
    ("tops", "within"),
    [
        (("cat", "dog"), ("indoor", "outdoor")),
        (("training_shoes", "test_tube"), ("red", "blue")),
        (("A", "B"), ("x", "y")),
        (("cat", "dog"), ("train", "test")),
    ],
)
def test_classes_with_the_same_folders_stay_classes_with_a_word(
    tmp_path: Path, tops: tuple[str, ...], within: tuple[str, ...]
) -> None:
    make(tmp_path, *classes_in(*tops, classes=within))
    with pytest.warns(GradfeatWarning, match="all hold the same folders"):
        data = load_dataset(tmp_path)
    assert (data.classes, len(data), data.split) == (sorted(tops), 8, "all")


def test_classes_with_folders_of_their_own_are_read_as_ever(tmp_path: Path) -> None:
    make(tmp_path, "cat/siamese/1.png", "cat/manx/2.png", "dog/poodle/3.png", "dog/4.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(tmp_path).y.tolist() == ["cat", "cat", "dog", "dog"]  # type: ignore[union-attr]


def test_folds_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *classes_in("fold_1", "fold_2", "fold_3"))
    with pytest.raises(DataError, match=r"fold_1, fold_2, fold_3 .*the same folders, cat, dog.*Give the path of one"):
        load_dataset(tmp_path)


def test_a_folder_that_is_alone_is_a_class_unless_its_name_says_nothing(tmp_path: Path) -> None:
    make(tmp_path / "a", *classes_in("dataset"))
    assert load_dataset(tmp_path / "a").classes == ["cat", "dog"]
    make(tmp_path / "b", *classes_in("apples"))
    with pytest.raises(DataError, match=r"only one class, 'apples'.*If its folders are the classes, give .*apples"):
        load_dataset(tmp_path / "b")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.png", "masks/{}.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("images/{}.png", "labels/{}.png"),
        ("images/image_{}.png", "masks/mask_{}.png"),
        ("images/ISIC_{}.png", "masks/ISIC_{}_segmentation.png"),
        ("images/benign ({}).png", "masks/benign ({})_lesion.png"),
        ("JPEGImages/{}.png", "Annotations/{}.png"),
        ("img/train/{}.png", "gt/train/{}.png"),
        ("train_images/{}.png", "train_masks/{}.png"),
        ("train/images/{}.png", "train/masks/{}.png"),
    ],
)
def test_masks_are_no_class(tmp_path: Path, images: str, masks: str) -> None:
    make(tmp_path, *(name.format(i) for name in (images, masks) for i in range(4)))
    with pytest.raises(DataError, match="not two classes"):
        load_dataset(tmp_path)


def test_masks_within_a_class_are_left_out_and_counted(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{kind}/{i}.png" for name in "ab" for kind in ("images", "masks") for i in range(3)))
    with pytest.warns(GradfeatWarning, match="6 in folders 'masks'"):
        data = load_dataset(tmp_path)
    assert {path.parent.name for path in data.X} == {"images"}
    assert len(data) == 6


def test_masks_beside_their_images_are_spoken_of(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{name} ({i}){end}.png" for name in "ab" for i in range(3) for end in ("", "_mask")))
    with pytest.warns(GradfeatWarning, match=r"6 files are called masks of others, e\.g\. a \(0\)_mask\.png"):
        assert len(load_dataset(tmp_path)) == 12


def test_classes_called_photos_and_masks_are_classes_if_their_files_differ(tmp_path: Path) -> None:
    make(tmp_path, *(f"photos/holiday {i}.png" for i in range(3)), *(f"masks/venice {i}.png" for i in range(3)))
    assert load_dataset(tmp_path).classes == ["masks", "photos"]


words = st.sampled_from(["train", "training", "val", "valid", "test", "testing"])
around = st.sampled_from(["", "set", "data", "images", "birds", "2017", "seg"])
joints = st.sampled_from(["_", "-", " "])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(words, words, around, joints, st.booleans(), st.booleans())
def test_names_that_differ_in_the_part_alone_are_parts(
    one: str, two: str, rest: str, joint: str, before: bool, upper: bool
) -> None:
    names = [joint.join(filter(None, (rest, word) if before else (word, rest))) for word in (one, two)]
    names = [name.upper() if upper else name for name in names]
    meant = [part_named(word) for word in (one, two)]
    found = parts_among(names)
    if meant[0] != meant[1]:
        assert [found[name] for name in names] == meant
    elif rest in ("birds", "seg"):  # nothing says that it is a part rather than a class
        assert not found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["cat", "dog", "trainer", "contest", "latest", "value", "trains", "test tube"])))
def test_other_words_are_no_parts(names: list[str]) -> None:
    assert not parts_among([name for name in names if name != "test tube"])
    assert not parts_among(["test tube", "training shoe", *names])


# ---- what counts, and what is left out ------------------------------------------------------------------------------


def test_files_count_by_their_content_where_the_suffix_is_not_known(tmp_path: Path) -> None:
    for i, (name, format) in enumerate(
        [
            ("a.jpe", "JPEG"),
            ("b.JFIF", "JPEG"),
            ("c", "PNG"),
            ("d.jpg_large", "JPEG"),
            ("e.jp2", "JPEG2000"),
            ("f.2019", "GIF"),
            ("g.jpg!d", "WEBP"),
            ("h.dib", "BMP"),
        ]
    ):
        for folder in ("cat", "dog"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / folder / name, format=format)
    for name in ("._a.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat" / "notes").write_text("no image")
    (tmp_path / "cat" / "i.txt").write_text("no image")
    (tmp_path / "dog" / "j.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "dog" / "k.part").write_bytes(b"\xff\xd8\xff")
    with pytest.warns(GradfeatWarning, match=r"left out: (1 \.heic|1 \.part|1 without a suffix|, )+\)"):
        data = load_dataset(tmp_path)
    assert len(data) == 16
    assert sorted(data.note.removeprefix("left out: ").split(", ")) == [
        "1 .heic",
        "1 .part",
        "1 .txt",
        "1 without a suffix",
    ]
    assert data.note in data.describe()
    with pytest.warns(GradfeatWarning, match="without a suffix"):
        assert load_images(tmp_path / "cat") == data.X[:8]
    assert load_images(tmp_path / "cat" / "c") == [tmp_path / "cat" / "c"]


def test_damaged_files_that_nobody_called_images_stop_nothing(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog" / "cover").write_bytes((tmp_path / "dog" / "1.png").read_bytes()[:40])
    with pytest.warns(GradfeatWarning, match="cannot be read and are left out"):
        data = load_dataset(tmp_path)
    assert [path.name for path in data.X] == ["1.png", "1.png"]


def test_a_class_of_files_that_cannot_be_read_says_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"class folder 'dog'.*left out: 1 \.heic"):
        load_dataset(tmp_path)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = make(tmp_path / "data", "cat/1.png", "dog/2.png")
    make(tmp_path / "elsewhere", "3.png", "deep/4.png")
    links = {
        "cat/more": tmp_path / "elsewhere",
        "cat/again": tmp_path / "elsewhere" / "deep",  # read already
        "cat/up": Path(".."),
        "cat/self": Path(),
        "cat/circle": Path("circle"),
        "dog/gone.jpg": Path("nowhere"),
    }
    try:
        for name, target in links.items():
            os.symlink(target, root / name)
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    with pytest.warns(GradfeatWarning, match="2 broken links"):
        data = load_dataset(root)
    found = [path.resolve().name for path in data.X]
    assert (sorted(found), data.y.tolist()) == (["1.png", "2.png", "3.png", "4.png"], ["cat"] * 3 + ["dog"])  # type: ignore[union-attr]


def test_images_beside_the_class_folders_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "dog/1.png", "a.png", "b.png")
    with pytest.warns(GradfeatWarning, match="2 images beside the class folders"):
        assert len(load_dataset(tmp_path)) == 2
